package ecrapi_test

import (
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestListImageReferrers(t *testing.T) {
	r := newRegistry(t, pullthrough.NewMemStore(), nil)
	subject := image(0)
	r.up.Push("a", "v1", subject)
	types := map[string]int{}
	for i := range 25 {
		artifactType := fmt.Sprint("application/vnd.test.", i%3)
		types[artifactType]++
		r.up.Push("a", "", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i + 1), ArtifactType: artifactType, Subject: subject}))
	}
	request := func(more string) string {
		return `{` + hubA + `,"subjectId":{"imageDigest":"` + subject.Digest.String() + `"}` + more + `}`
	}
	r.pull(t, "a", "v1")
	assert.Zero(t, r.up.Count("GET /v2/a/referrers/*"), "a pull does not bring referrers")
	count := func(more string) (n int, next string) {
		t.Helper()
		resp, body := r.send(t, target+"ListImageReferrers", request(more))
		require.Equal(t, http.StatusOK, resp.StatusCode, body)
		next, _ = parse(t, body)["nextToken"].(string)
		return len(parse(t, body)["referrers"].([]any)), next
	}
	n, next := count("")
	assert.Equal(t, 20, n)
	n, end := count(`,"nextToken":"` + next + `"`)
	assert.Equal(t, 5, n)
	assert.Empty(t, end)
	n, _ = count(`,"maxResults":50`)
	assert.Equal(t, 25, n)
	n, _ = count(`,"maxResults":50,"filter":{"artifactTypes":["application/vnd.test.0"]}`)
	assert.Equal(t, types["application/vnd.test.0"], n)
	n, _ = count(`,"maxResults":50,"filter":{"artifactTypes":["application/vnd.test.0","application/vnd.test.1"],"artifactStatus":"ANY"}`)
	assert.Equal(t, 17, n)
	n, _ = count(`,"filter":{"artifactStatus":"ARCHIVED"}`)
	assert.Zero(t, n)
	assert.Equal(t, 1, r.up.Count("GET /v2/a/referrers/*"), "a list is kept for 6 hours")
	r.wait(6 * time.Hour)
	_, _ = count("")
	assert.Equal(t, 2, r.up.Count("GET /v2/a/referrers/*"))
	r.up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/referrers/*", Status: 500})
	r.wait(6 * time.Hour)
	n, _ = count("")
	assert.Equal(t, 20, n, "referrers-stale: a known list is served")
	resp, body := r.send(t, target+"ListImageReferrers", `{`+hubA+`,"subjectId":{"imageDigest":"`+nowhere+`"}}`)
	assertException(t, resp, body, "UnableToListUpstreamImageReferrersException")
}

func TestOneReferrer(t *testing.T) {
	r := newRegistry(t, pullthrough.NewMemStore(), nil)
	subject := image(0)
	sig := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1, ArtifactType: "application/vnd.test.sig", Subject: subject})
	r.up.Push("a", "v1", subject)
	r.up.Push("a", "", sig)
	r.pull(t, "a", "v1")
	r.ok(t, "ListImageReferrers", `{`+hubA+`,"subjectId":{"imageDigest":"`+subject.Digest.String()+`"}}`,
		`{"referrers":[{"digest":"`+sig.Digest.String()+`","mediaType":"`+sig.MediaType+`","artifactType":"application/vnd.test.sig","size":`+strconv.Itoa(len(sig.Content))+`}]}`)
	r.ok(t, "ListImageReferrers", `{`+hubA+`,"subjectId":{"imageDigest":"`+nowhere+`"}}`, `{"referrers":[]}`)
	for more, why := range map[string]string{
		``:                constraint("subjectId.imageDigest", mustNotBeNull),
		`,"subjectId":{}`: constraint("subjectId.imageDigest", mustNotBeNull),
		`,"subjectId":{"imageDigest":"` + nowhere + `"},"maxResults":51`:                                      constraint("maxResults", "Member must have value less than or equal to 50"),
		`,"subjectId":{"imageDigest":"` + nowhere + `"},"maxResults":0`:                                       constraint("maxResults", "Member must have value greater than or equal to 1"),
		`,"subjectId":{"imageDigest":"` + nowhere + `"},"filter":{"artifactTypes":["1","2","3","4","5","6"]}`: constraint("filter.artifactTypes", "Member must have length less than or equal to 5"),
		`,"subjectId":{"imageDigest":"` + nowhere + `"},"filter":{"artifactStatus":"x"}`:                      constraint("filter.artifactStatus", "Member must satisfy enum value set: [ACTIVE, ARCHIVED, ACTIVATING, ANY]"),
	} {
		r.fails(t, "ListImageReferrers", `{`+hubA+more+`}`, "InvalidParameterException", why)
	}
	for _, more := range []string{`"v1"`, `"sha256:1"`, `""`} {
		resp, body := r.send(t, target+"ListImageReferrers", `{`+hubA+`,"subjectId":{"imageDigest":`+more+`}}`)
		assertException(t, resp, body, "InvalidParameterException")
	}
	resp, _ := r.send(t, target+"DeletePullThroughCacheRule", `{"ecrRepositoryPrefix":"hub"}`)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	r.ok(t, "ListImageReferrers", `{`+hubA+`,"subjectId":{"imageDigest":"`+subject.Digest.String()+`"}}`, `{"referrers":[]}`)
}
