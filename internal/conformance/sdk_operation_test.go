package conformance_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/schemas"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/aws/smithy-go/transport/http/protocol/awsjson"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
)

const (
	sdkAccount = "123456789012"
	sdkRegion  = "us-east-1"
	sdkTarget  = "AmazonEC2ContainerRegistry_V20150921."
)

// sdkOptions lead a client of the SDK to url. Nothing is tried twice: each request
// is one of the test's.
func sdkOptions(url string) ecr.Options {
	return ecr.Options{
		Region: sdkRegion, BaseEndpoint: &url, RetryMaxAttempts: 1, HTTPClient: inOnePiece(awshttp.NewBuildableClient()),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "canary"}, nil
		}),
	}
}

// inOnePiece has c send each request's body from memory. The SDK closes the body that it
// streams as soon as the answer's header is in; net/http, which looks whether more of
// it comes, is then told io.EOF as an error (smithy-go 1.28.8), and closes the connection
// under an answer that is longer than the first read.
func inOnePiece(c aws.HTTPClient) aws.HTTPClient {
	return smithyhttp.ClientDoFunc(func(r *http.Request) (*http.Response, error) {
		if r.Body == nil {
			return c.Do(r)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		if err := r.Body.Close(); err != nil {
			return nil, err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		return c.Do(r)
	})
}

// operation is an operation of ecrapi and of the SDK.
type operation struct {
	name    string
	in, out reflect.Type // ecrapi's structs
	call    reflect.Method
}

// operations are all that ecrapi has, by its methods, in the order of their names.
func operations() (all []operation) {
	api := reflect.TypeFor[*ecrapi.API]()
	for i := range api.NumMethod() {
		m := api.Method(i)
		if m.Type.NumIn() != 4 || m.Type.In(2) != reflect.TypeFor[pullthrough.Identity]() || m.Type.In(3).Name() != m.Name+"Input" {
			continue
		}
		op := operation{name: m.Name, in: m.Type.In(3), out: m.Type.Out(0)}
		op.call, _ = reflect.TypeFor[*ecr.Client]().MethodByName(m.Name)
		all = append(all, op)
	}
	return all
}

// eachOperation is a subtest for each of them.
func eachOperation(t *testing.T, run func(*testing.T, operation)) {
	for _, op := range operations() {
		t.Run(op.name, func(t *testing.T) {
			require.True(t, op.call.Func.IsValid(), "the SDK has no such operation")
			run(t, op)
		})
	}
}

// input is a new input of the SDK's.
func (op operation) input() reflect.Value { return reflect.New(op.call.Type.In(2).Elem()) }

// output is a new output of the SDK's.
func (op operation) output() reflect.Value { return reflect.New(op.call.Type.Out(0).Elem()) }

// do calls the operation with the SDK's input.
func (op operation) do(ctx context.Context, c *ecr.Client, in any) (out any, err error) {
	results := op.call.Func.Call([]reflect.Value{reflect.ValueOf(c), reflect.ValueOf(ctx), reflect.ValueOf(in)})
	err, _ = results[1].Interface().(error)
	return results[0].Interface(), err
}

// sent is the body that the SDK sends for the input.
func (op operation) sent(t *testing.T, in reflect.Value) (body []byte) {
	t.Helper()
	o := sdkOptions("http://capture.test")
	o.HTTPClient = smithyhttp.ClientDoFunc(func(r *http.Request) (resp *http.Response, err error) {
		assert.Equal(t, sdkTarget+op.name, r.Header.Get("X-Amz-Target"))
		body, err = io.ReadAll(r.Body)
		return response(http.StatusOK, []byte("{}")), err
	})
	_, err := op.do(t.Context(), ecr.New(o), in.Interface())
	require.NoError(t, err)
	return body
}

// received is what the SDK makes of an answer.
func (op operation) received(t *testing.T, body []byte) smithy.Serializable {
	t.Helper()
	o := sdkOptions("http://replay.test")
	o.HTTPClient = smithyhttp.ClientDoFunc(func(*http.Request) (*http.Response, error) {
		return response(http.StatusOK, body), nil
	})
	in := op.input()
	fill(in, 1) // or the SDK would not send it
	out, err := op.do(t.Context(), ecr.New(o), in.Interface())
	require.NoError(t, err)
	return out.(smithy.Serializable)
}

func response(status int, body []byte) *http.Response {
	w := httptest.NewRecorder()
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.WriteHeader(status)
	_, _ = w.Write(body) // to memory
	return w.Result()
}

// sdkJSON is what the SDK's own serialiser writes.
func sdkJSON(t *testing.T, v smithy.Serializable) []byte {
	t.Helper()
	// Any operation's schema does: the value knows its own.
	schema := smithy.NewOperationSchema(schemas.BatchGetImage, schemas.BatchGetImageRequest, schemas.BatchGetImageResponse)
	r, ok := smithyhttp.NewStackRequest().(*smithyhttp.Request)
	require.True(t, ok)
	require.NoError(t, awsjson.New11(schemas.AmazonEC2ContainerRegistry_V20150921).SerializeRequest(t.Context(), schema, v, r))
	body, err := io.ReadAll(r.GetStream())
	require.NoError(t, err)
	return body
}

// strictly decodes a body and refuses members that v does not have.
func strictly(body []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more behind the JSON")
	}
	return nil
}

// ours is how ecrapi writes v.
func ours(t *testing.T, v any) []byte {
	t.Helper()
	body, err := json.Marshal(v)
	require.NoError(t, err)
	return body
}

// The methods that are taken for operations are those that are answered: what the
// handler does not know is an exception of its own.
func TestSDKOperationsAreTheHandlers(t *testing.T) {
	t.Parallel()
	host := hostECR(t, nil)
	var answered, methods []string
	sdk := reflect.TypeFor[*ecr.Client]()
	for i := range sdk.NumMethod() {
		m := sdk.Method(i)
		if m.Type.NumIn() < 3 || !strings.HasSuffix(m.Type.In(2).String(), "Input") {
			continue
		}
		resp, body := host.post(t, sdkTarget+m.Name, "{}")
		if !strings.Contains(body, "UnknownOperationException") {
			assert.Contains(t, []int{http.StatusOK, http.StatusBadRequest}, resp.StatusCode, "%s: %s", m.Name, body)
			answered = append(answered, m.Name)
		}
	}
	for _, op := range operations() {
		methods = append(methods, op.name)
	}
	slices.Sort(answered)
	assert.Equal(t, answered, methods)
	assert.GreaterOrEqual(t, len(methods), 20)
}
