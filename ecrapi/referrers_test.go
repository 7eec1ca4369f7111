package ecrapi_test

import (
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestListImageReferrers(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
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
	assert.Equal(t, 1, r.up.Count("GET /v2/a/referrers/*"), "all of them are of one list")
}

// signed is a registry with an image that was pulled, and what upstream has signed it with.
func signed(t *testing.T) (r *registry, subject string, want string) {
	t.Helper()
	r = newRegistry(t, memstore.New(), nil)
	img := image(0)
	sig := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1, ArtifactType: "application/vnd.test.sig", Subject: img})
	r.up.Push("a", "v1", img)
	r.up.Push("a", "", sig)
	r.pull(t, "a", "v1")
	return r, `{` + hubA + `,"subjectId":{"imageDigest":"` + img.Digest.String() + `"}}`,
		`{"referrers":[{"digest":"` + sig.Digest.String() + `","mediaType":"` + sig.MediaType + `","artifactType":"application/vnd.test.sig","size":` + strconv.Itoa(len(sig.Content)) + `}]}`
}

// referrers-window
func TestAListOfReferrersIsKeptFor6Hours(t *testing.T) {
	r, request, want := signed(t)
	r.ok(t, "ListImageReferrers", request, want)
	r.wait(6*time.Hour - time.Second)
	r.ok(t, "ListImageReferrers", request, want)
	assert.Equal(t, 1, r.up.Count("GET /v2/a/referrers/*"))
	r.wait(time.Second)
	r.ok(t, "ListImageReferrers", request, want)
	assert.Equal(t, 2, r.up.Count("GET /v2/a/referrers/*"))
}

// referrers-stale: a known list is served.
func TestAListOfReferrersWhenUpstreamFails(t *testing.T) {
	r, request, want := signed(t)
	r.ok(t, "ListImageReferrers", request, want)
	r.up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/referrers/*", Status: 500})
	r.wait(6 * time.Hour)
	r.ok(t, "ListImageReferrers", request, want)
	resp, body := r.send(t, target+"ListImageReferrers", `{`+hubA+`,"subjectId":{"imageDigest":"`+nowhere+`"}}`)
	assertException(t, resp, body, "UnableToListUpstreamImageReferrersException")
	assert.NotContains(t, body, r.up.Host())
}

func TestOneReferrer(t *testing.T) {
	r, request, want := signed(t)
	r.ok(t, "ListImageReferrers", request, want)
	assert.Equal(t, []string{"GET /v2/a/manifests/v1 200", "GET /v2/a/referrers/" + image(0).Digest.String() + " 200"}, r.up.Log())
}

func TestSubjectsThatNothingRefersTo(t *testing.T) {
	r, request, _ := signed(t)
	r.ok(t, "ListImageReferrers", `{`+hubA+`,"subjectId":{"imageDigest":"`+nowhere+`"}}`, `{"referrers":[]}`)
	resp, _ := r.send(t, target+"DeletePullThroughCacheRule", `{"ecrRepositoryPrefix":"hub"}`)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	r.ok(t, "ListImageReferrers", request, `{"referrers":[]}`)
	assert.Equal(t, 1, r.up.Count("GET /v2/a/referrers/*"))
}

func TestListImageReferrersRequests(t *testing.T) {
	r, _, _ := signed(t)
	for more, why := range map[string]string{
		``:                constraint("subjectId.imageDigest", mustNotBeNull),
		`,"subjectId":{}`: constraint("subjectId.imageDigest", mustNotBeNull),
		`,"subjectId":{"imageDigest":"` + nowhere + `"},"maxResults":51`:                                      constraint("maxResults", "Member must have value less than or equal to 50"),
		`,"subjectId":{"imageDigest":"` + nowhere + `"},"maxResults":0`:                                       constraint("maxResults", "Member must have value greater than or equal to 1"),
		`,"subjectId":{"imageDigest":"` + nowhere + `"},"filter":{"artifactTypes":["1","2","3","4","5","6"]}`: constraint("filter.artifactTypes", "Member must have length less than or equal to 5"),
		`,"subjectId":{"imageDigest":"` + nowhere + `"},"filter":{"artifactTypes":[""]}`:                      constraint("filter.artifactTypes", "Member must satisfy constraint: [Member must have length greater than or equal to 1]"),
		`,"subjectId":{"imageDigest":"` + nowhere + `"},"filter":{"artifactStatus":"x"}`:                      constraint("filter.artifactStatus", "Member must satisfy enum value set: [ACTIVE, ARCHIVED, ACTIVATING, ANY]"),
	} {
		r.fails(t, "ListImageReferrers", `{`+hubA+more+`}`, "InvalidParameterException", why)
	}
	for _, more := range []string{`"v1"`, `"sha256:1"`, `""`} {
		resp, body := r.send(t, target+"ListImageReferrers", `{`+hubA+`,"subjectId":{"imageDigest":`+more+`}}`)
		assertException(t, resp, body, "InvalidParameterException")
	}
}
