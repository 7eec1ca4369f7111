package pullthrough_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
)

// Each of these errors has its documents in a file of testdata/errors. Kinds are taken
// as a proxy returns them.
var (
	goldenKinds = map[string]error{
		"no-rule":      pullthrough.ErrNoRule,
		"not-found":    pullthrough.ErrNotFound,
		"denied":       pullthrough.ErrDenied,
		"unauthorized": pullthrough.ErrUnauthorized,
		"rate-limited": pullthrough.ErrRateLimited,
		"unavailable":  pullthrough.ErrUnavailable,
		"digest":       pullthrough.ErrDigest,
		"too-large":    pullthrough.ErrTooLarge,
		"invalid":      pullthrough.ErrInvalid,
		"immutable":    pullthrough.ErrImmutable,
		"closed":       pullthrough.ErrClosed,
	}
	goldenOthers = map[string]error{
		"nil":      nil,
		"unknown":  errors.New("canary: disk /dev/sda failed"),
		"canceled": context.Canceled,
		"deadline": context.DeadlineExceeded,
		"own-code": &pullthrough.Error{Kind: pullthrough.ErrDenied, Code: "OWN", Message: "my sentence"},
		"joined":   errors.Join(errors.New("canary"), &pullthrough.Error{Kind: pullthrough.ErrDigest, Err: errors.New("canary")}),
	}
)

// golden is what becomes of an error on the wire.
type golden struct {
	Status   int               `json:"status"`
	Header   map[string]string `json:"header"`
	Registry json.RawMessage   `json:"registry"` // the document that registry clients read
	// Of ECR's JSON API, by operation: an exception, or a failure of one image or layer.
	ECR map[string]ecrAnswer `json:"ecr"`
}

type ecrAnswer struct {
	Exception   string `json:"__type,omitempty"`
	FailureCode string `json:"failureCode,omitempty"`
	Message     string `json:"message"`
}

// ecrOperations are those that have failures of their own, and any other one.
var ecrOperations = []string{"BatchGetImage", "GetDownloadUrlForLayer", "ListImageReferrers", "DescribeImages"}

// With -update the files are written anew.
func TestErrorDocuments(t *testing.T) {
	for name, err := range goldenOthers {
		t.Run(name, func(t *testing.T) { checkGolden(t, name, documentsOf(t, err)) })
	}
	for name, kind := range goldenKinds {
		t.Run(name, func(t *testing.T) {
			got, bare := documentsOf(t, &pullthrough.Error{
				Kind: kind, Repo: pullthrough.Repo{Account: "111122223333", Region: "us-east-1", Name: "docker-hub/library/alpine"},
				Ref: digest.FromString("x").String(), Host: "registry-1.docker.io", RetryAfter: map[error]time.Duration{pullthrough.ErrRateLimited: 7 * time.Second}[kind], Err: errors.New("canary"),
			}), documentsOf(t, kind)
			checkGolden(t, name, got)
			assert.Equal(t, got.Status, bare.Status)
			for op, a := range bare.ECR { // the same in fewer words
				assert.Equal(t, got.ECR[op].Exception+got.ECR[op].FailureCode, a.Exception+a.FailureCode, op)
			}
		})
	}
	files, err := filepath.Glob(goldenFile("*"))
	require.NoError(t, err)
	assert.Len(t, files, len(goldenKinds)+len(goldenOthers), "each file has its error")
}

func checkGolden(t *testing.T, name string, got golden) {
	t.Helper()
	if update := flag.Lookup("update"); update != nil && update.Value.String() == "true" {
		writeGolden(t, name, got)
	}
	want := readGolden(t, name)
	assert.JSONEq(t, string(want.Registry), string(got.Registry))
	want.Registry, got.Registry = nil, nil
	assert.Equal(t, want, got)
}

// documentsOf are an error's documents, which tell no cause.
func documentsOf(t *testing.T, err error) golden {
	t.Helper()
	rec := httptest.NewRecorder()
	pullthrough.WriteError(rec, err)
	g := golden{Status: rec.Code, Header: map[string]string{}, Registry: rec.Body.Bytes(), ECR: map[string]ecrAnswer{}}
	for _, name := range []string{"Content-Type", "Retry-After", "Www-Authenticate"} {
		if v := rec.Header().Get(name); v != "" {
			g.Header[name] = v
		}
	}
	status, code, message := pullthrough.OCI(err)
	assert.Equal(t, rec.Code, status)
	document, err2 := json.Marshal(map[string]any{"errors": []any{map[string]string{"code": code, "message": message}}})
	require.NoError(t, err2)
	assert.JSONEq(t, string(document), rec.Body.String())
	for _, op := range ecrOperations {
		var a ecrAnswer
		a.Exception, a.FailureCode, a.Message = pullthrough.AWS(err, op)
		assert.True(t, a.Exception == "" || a.FailureCode == "", op)
		assert.NotEmpty(t, a.Message, op)
		g.ECR[op] = a
	}
	exception, failure, other := pullthrough.AWS(err, "")
	assert.Equal(t, g.ECR["DescribeImages"], ecrAnswer{exception, failure, other}, "an operation that nobody knows")
	text, err2 := json.Marshal(g)
	require.NoError(t, err2)
	assert.NotContains(t, string(text), "canary", "causes are for logs")
	return g
}

func goldenFile(name string) string { return filepath.Join("testdata", "errors", name+".json") }

func readGolden(t *testing.T, name string) (g golden) {
	t.Helper()
	content, err := os.ReadFile(goldenFile(name))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(content, &g))
	return g
}

func writeGolden(t *testing.T, name string, g golden) {
	t.Helper()
	content, err := json.MarshalIndent(g, "", "  ")
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Dir(goldenFile(name)), 0o755))
	require.NoError(t, os.WriteFile(goldenFile(name), append(content, '\n'), 0o644))
}

func TestTheHostsOwnChallengeIsKept(t *testing.T) {
	rec := httptest.NewRecorder()
	rec.Header().Set("WWW-Authenticate", `Bearer realm="https://host.example/token"`)
	pullthrough.WriteError(rec, pullthrough.ErrUnauthorized)
	assert.Equal(t, http.StatusUnauthorized, rec.Code)
	assert.Equal(t, []string{`Bearer realm="https://host.example/token"`}, rec.Header().Values("WWW-Authenticate"))
}
