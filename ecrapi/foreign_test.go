package ecrapi_test

import (
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"

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
