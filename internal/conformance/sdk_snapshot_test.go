package conformance_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/textproto"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/smithy-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

// The SDK's module has a recorded request and response of each operation, and a
// recorded error of each exception. They are read where the go command keeps them.

// snapshot is one of the SDK's *.snap files.
type snapshot struct {
	first  string // "POST /", or a status
	header textproto.MIMEHeader
	body   []byte
}

// sdkModule is the directory of the SDK's module.
var sdkModule = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/aws/aws-sdk-go-v2/service/ecr").Output()
	return strings.TrimSpace(string(out)), err
})

func readSnapshot(t *testing.T, name string) (s snapshot) {
	t.Helper()
	dir, err := sdkModule()
	require.NoError(t, err)
	raw, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
	require.NoError(t, err)
	// A request has an empty line behind its first line, an answer has not.
	raw = bytes.Replace(raw, []byte("POST /\n\n"), []byte("POST /\n"), 1)
	r := bufio.NewReader(bytes.NewReader(raw))
	s.first, err = r.ReadString('\n')
	require.NoError(t, err)
	s.first = strings.TrimSpace(s.first)
	s.header, err = textproto.NewReader(r).ReadMIMEHeader()
	require.NoError(t, err)
	s.body, err = io.ReadAll(r)
	require.NoError(t, err)
	return s
}

// What the SDK has on record as a request is read whole by ecrapi, and gets as far
// as the checks of its values: the placeholders on record break them.
func TestSDKRequestSnapshots(t *testing.T) {
	t.Parallel()
	h := hostECR(t, nil)
	eachOperation(t, func(t *testing.T, op operation) {
		s := readSnapshot(t, "request_snapshot/"+op.name+".request.snap")
		require.Equal(t, "POST /", s.first)
		assert.Equal(t, "application/x-amz-json-1.1", s.header.Get("Content-Type"))
		read := reflect.New(op.in)
		require.NoError(t, strictly(s.body, read.Interface()))
		assert.JSONEq(t, string(s.body), string(ours(t, read.Interface())))

		if op.in.NumField() == 0 {
			return // nothing can be wrong with it
		}
		resp, body := h.post(t, s.header.Get("X-Amz-Target"), string(s.body))
		assert.Equal(t, http.StatusBadRequest, resp.StatusCode, body)
		assert.Contains(t, body, `{"__type":"InvalidParameterException","message":"Invalid parameter at '`)
	})
}

// What the SDK has on record as a response is, but for the members that are never
// answered, what ecrapi writes for the same values, and the SDK reads it likewise.
func TestSDKResponseSnapshots(t *testing.T) {
	t.Parallel()
	eachOperation(t, func(t *testing.T, op operation) {
		s := readSnapshot(t, "response_snapshot/"+op.name+".response.snap")
		require.Equal(t, "200", s.first)
		want := op.withoutUnanswered(t, s.body)
		value := reflect.New(op.out)
		require.NoError(t, strictly(want, value.Interface()))
		body := ours(t, value.Interface())
		assert.JSONEq(t, string(want), string(body))
		assert.JSONEq(t, string(want), string(sdkJSON(t, op.received(t, body))))
	})
}

// withoutUnanswered is a response without the members in notAnswered.
func (op operation) withoutUnanswered(t *testing.T, body []byte) []byte {
	t.Helper()
	var v any
	require.NoError(t, json.Unmarshal(body, &v))
	var walk func(at string, v any)
	walk = func(at string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, member := range v {
				if _, never := notAnswered[at+"."+name]; never {
					delete(v, name)
					continue
				}
				walk(at+"."+name, member)
			}
		case []any:
			for _, item := range v {
				walk(at, item)
			}
		}
	}
	walk(op.name, v)
	return ours(t, v)
}

// recordedElsewhere are members of exceptions that ecrapi never sends.
var recordedElsewhere = map[string]string{"KmsException": "kmsError"}

// An exception looks on the wire as it does on record, and is the SDK's type for it.
func TestSDKErrorSnapshots(t *testing.T) {
	t.Parallel()
	all := hostECR(t, func(h *host) {
		h.api.Identify = func(r *http.Request) (pullthrough.Identity, error) {
			return pullthrough.Identity{}, &ecrapi.Error{Code: path.Base(r.URL.Path), Message: "__Message__"}
		}
	})
	for _, exception := range allExceptions() {
		h := *all
		h.url += "/" + exception
		s := readSnapshot(t, "response_snapshot/"+exception+".error.snap")
		var want map[string]any
		require.NoError(t, json.Unmarshal(s.body, &want))
		delete(want, recordedElsewhere[exception])
		resp, body := h.post(t, sdkTarget+"ListPullTimeUpdateExclusions", "{}")
		assert.Equal(t, s.first, strconv.Itoa(resp.StatusCode), exception)
		assert.Equal(t, s.header.Get("Content-Type"), resp.Header.Get("Content-Type"))
		assert.JSONEq(t, string(ours(t, want)), body)

		_, err := h.client().ListPullTimeUpdateExclusions(t.Context(), nil)
		entry := ecr.TypeRegistry.Entries["com.amazonaws.ecr#"+exception]
		require.NotNil(t, entry, exception)
		assertIsA(t, err, entry.New(), exception)
	}
}

// assertIsA asserts that err has, somewhere, an error of want's type.
func assertIsA(t *testing.T, err error, want any, exception string) {
	t.Helper()
	found := reflect.New(reflect.TypeOf(want))
	if assert.ErrorAs(t, err, found.Interface(), exception) {
		e, ok := found.Elem().Interface().(smithy.APIError)
		require.True(t, ok, exception)
		assert.Equal(t, exception, e.ErrorCode())
		assert.Equal(t, "__Message__", e.ErrorMessage())
	}
}
