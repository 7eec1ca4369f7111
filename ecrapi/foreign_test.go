package ecrapi_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

// A host that has repositories of its own gets the requests for them, with their bodies.
func TestForeignRepositoriesAreNexts(t *testing.T) {
	var next []string
	r := newRegistry(t, memstore.New(), func(r *registry) {
		r.api.ToNext = []string{"GetAuthorizationToken", "DescribePullThroughCacheRules"}
		r.api.Next = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			next = append(next, string(body))
			_, _ = io.WriteString(w, `{"from":"next"}`)
		})
	})
	r.up.Push("a", "v1", image(1))
	r.pull(t, "a", "v1")
	r.up.Reset()
	for _, c := range []struct{ op, body string }{
		{"DescribeImages", `{"repositoryName":"mine/a"}`},
		{"ListImages", `{"registryId":"123456789012","repositoryName":"mine/a"}`},
		{"DescribeRepositories", `{"repositoryNames":["mine/a","mine/b"]}`},
		{"ListTagsForResource", `{"resourceArn":"arn:aws:ecr:us-east-1:123456789012:repository/mine/a"}`},
		{"DeleteRepository", `{"repositoryName":"mine/a","force":true}`},
		{"GetAuthorizationToken", `{}`},
		{"DescribePullThroughCacheRules", `{}`},
		{"PutImage", `{"repositoryName":"hub/a"}`},
	} {
		resp, body := r.send(t, target+c.op, c.body)
		assert.Equal(t, 200, resp.StatusCode, c.op)
		assert.JSONEq(t, `{"from":"next"}`, body, c.op)
		if assert.Len(t, next, 1, c.op) {
			assert.Equal(t, c.body, next[0])
		}
		next = nil
	}
	for _, c := range []struct{ op, body string }{
		{"DescribeImages", `{` + hubA + `}`},
		{"DescribeImages", `{"repositoryName":"hub/never-pulled"}`},
		{"DescribeRepositories", `{}`},
		{"DescribeRepositories", `{"repositoryNames":["hub/a","mine/a"]}`},
		{"DescribeImages", `{"repositoryName":"NO NAME"}`},
		{"DescribeImages", `{}`},
		{"DescribeImages", `{"repositoryName":`},
		{"CreateRepository", `{"repositoryName":"mine/c"}`},
		{"DescribeImages", `{"repositoryName":"mine/c"}`},
	} {
		r.send(t, target+c.op, c.body)
		assert.Empty(t, next, "%s %s", c.op, c.body)
	}
	assert.Empty(t, r.up.Log())
}

// A router that has no next handler to give asks first, and goes on with the request as it was.
func TestTryServeGivesTheBodyBack(t *testing.T) {
	next := 0
	r := newRegistry(t, memstore.New(), func(r *registry) {
		r.api.ToNext = []string{"GetAuthorizationToken"}
		r.api.Next = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { next++ })
	})
	for _, c := range []struct {
		method, op, body string
		handled          bool
	}{
		{"POST", "DescribeImages", `{"repositoryName":"mine/a"}`, false},
		{"POST", "DeleteRepository", `{"repositoryName":"mine/a","force":true}`, false},
		{"POST", "GetAuthorizationToken", `{}`, false},
		{"POST", "PutImage", `{"repositoryName":"hub/a"}`, false},
		{"POST", "InitiateLayerUpload", strings.Repeat("x", 2<<20), false},
		{"POST", "Nothing", "the body", false},
		{"PUT", "DescribeRepositories", `{}`, false},
		{"POST", "DescribeRepositories", `{}`, true},
		{"POST", "DescribeImages", `{"repositoryName":"hub/a"}`, true},
		{"POST", "DescribeImages", `{"repositoryName":`, true},
		{"POST", "CreateRepository", `{"repositoryName":"mine/c"}`, true},
		{"POST", "DescribeImages", `{"repositoryName":"mine/c"}`, true},
	} {
		rec, closed := httptest.NewRecorder(), false
		q := httptest.NewRequestWithContext(t.Context(), c.method, "/", nil)
		q.Header.Set("X-Amz-Target", target+c.op)
		q.Body = body{iotest.HalfReader(strings.NewReader(c.body)), func() { closed = true }}
		handled := r.api.TryServe(rec, q)
		assert.Equal(t, c.handled, handled, "%s %.100s", c.op, c.body)
		if handled {
			assert.NotEmpty(t, rec.Body.String())
			continue
		}
		assert.Empty(t, rec.Header(), c.op)
		got, err := io.ReadAll(q.Body)
		require.NoError(t, err)
		assert.True(t, c.body == string(got), "%s: the whole body is the host's", c.op)
		require.NoError(t, q.Body.Close())
		assert.True(t, closed, c.op)
	}
	assert.Zero(t, next, "the host goes on by itself")
	assert.Empty(t, r.up.Log())
}

// body is that of a request.
type body struct {
	io.Reader
	close func()
}

func (b body) Close() error {
	b.close()
	return nil
}

// What the host answers itself is not refused before: it may have a login of its own.
func TestIdentifyIsNotAskedForWhatIsNexts(t *testing.T) {
	r := newRegistry(t, memstore.New(), func(r *registry) {
		r.api.ToNext = []string{"GetAuthorizationToken"}
		r.api.Next = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
		r.api.Identify = func(*http.Request) (pullthrough.Identity, error) {
			return pullthrough.Identity{}, pullthrough.ErrUnauthorized
		}
	})
	resp, _ := r.send(t, target+"GetAuthorizationToken", `{}`)
	assert.Equal(t, http.StatusTeapot, resp.StatusCode)
	resp, answer := r.send(t, target+"DescribeRepositories", `{}`)
	assertException(t, resp, answer, "UnrecognizedClientException")
}
