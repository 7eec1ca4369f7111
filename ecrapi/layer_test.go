package ecrapi_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func quoted(content []byte) string {
	b, err := json.Marshal(string(content))
	if err != nil {
		panic(err)
	}
	return string(b)
}

// The URL is good for a client that sends no Authorization, and pulls the layer.
func TestGetDownloadUrlForLayer(t *testing.T) {
	r := newRegistry(t, pullthrough.NewMemStore(), nil)
	mux := http.NewServeMux()
	mux.Handle("/v2/", r.proxy)
	front := start(t, &ecrapi.API{Next: mux})
	r.api.Images.RegistryURL = func(string, string) string { return front.url }
	img := image(1)
	r.up.Push("a", "v1", img)
	r.pull(t, "a", "v1")
	layer := img.Layers[0].Digest.String()
	want := front.url + "/v2/hub/a/blobs/" + layer
	r.ok(t, "GetDownloadUrlForLayer", `{`+hubA+`,"layerDigest":"`+layer+`"}`, `{"downloadUrl":"`+want+`","layerDigest":"`+layer+`"}`)
	assert.Zero(t, r.up.Count("GET /v2/a/blobs/*"), "the download pulls, this does not")
	resp, err := http.Get(want)
	require.NoError(t, err)
	content, err := io.ReadAll(resp.Body)
	require.NoError(t, errors.Join(err, resp.Body.Close()))
	assert.Equal(t, img.Layers[0].Digest, digest.FromBytes(content))
	assert.Equal(t, 1, r.up.Count("GET /v2/a/blobs/* 200"))
	r.ok(t, "GetDownloadUrlForLayer", `{`+hubA+`,"layerDigest":"`+layer+`"}`, `{"downloadUrl":"`+want+`","layerDigest":"`+layer+`"}`)
	assert.Equal(t, 1, r.up.Count("GET /v2/a/blobs/*"))
}

func TestTheHostSignsLayerURLs(t *testing.T) {
	var signErr error
	r := newRegistry(t, pullthrough.NewMemStore(), func(r *registry) {
		r.api.Images.LayerURL = func(_ context.Context, repo pullthrough.Repo, d digest.Digest) (string, error) {
			return "https://bucket.test/" + repo.Name + "/" + d.Encoded() + "?signed", signErr
		}
	})
	img := image(1)
	r.up.Push("a", "v1", img)
	r.pull(t, "a", "v1")
	request := `{` + hubA + `,"layerDigest":"` + img.Config.Digest.String() + `"}`
	r.ok(t, "GetDownloadUrlForLayer", request, `{"downloadUrl":"https://bucket.test/hub/a/`+img.Config.Digest.Encoded()+`?signed","layerDigest":"`+img.Config.Digest.String()+`"}`)
	signErr = errors.New("canary")
	resp, body := r.send(t, target+"GetDownloadUrlForLayer", request)
	assertException(t, resp, body, "ServerException")
	assert.NotContains(t, body, "canary")
}

func TestLayersThatAreNotThere(t *testing.T) {
	r := newRegistry(t, pullthrough.NewMemStore(), nil)
	r.up.Push("a", "v1", image(1))
	r.pull(t, "a", "v1")
	missing := "The layer with digest '" + nowhere + "' was not found in the repository with name 'hub/a'"
	resp, body := r.send(t, target+"GetDownloadUrlForLayer", `{`+hubA+`,"layerDigest":"`+nowhere+`"}`)
	assertException(t, resp, body, "LayersNotFoundException")
	r.up.Fault(pullthroughtest.Fault{Match: "* /v2/a/blobs/*", Status: 500})
	resp, body = r.send(t, target+"GetDownloadUrlForLayer", `{`+hubA+`,"layerDigest":"`+nowhere+`"}`)
	assertException(t, resp, body, "UnableToGetUpstreamLayerException")
	for request, why := range map[string]string{
		``:                            constraint("layerDigest", mustNotBeNull),
		`,"layerDigest":""`:           constraint("layerDigest", "Member must satisfy regular expression pattern: [a-zA-Z0-9-_+.]+:[a-fA-F0-9]+"),
		`,"layerDigest":"sha256"`:     constraint("layerDigest", "Member must satisfy regular expression pattern: [a-zA-Z0-9-_+.]+:[a-fA-F0-9]+"),
		`,"layerDigest":"sha256:xyz"`: constraint("layerDigest", "Member must satisfy regular expression pattern: [a-zA-Z0-9-_+.]+:[a-fA-F0-9]+"),
	} {
		r.fails(t, "GetDownloadUrlForLayer", `{`+hubA+request+`}`, "InvalidParameterException", why)
	}
	resp, body = r.send(t, target+"GetDownloadUrlForLayer", `{`+hubA+`,"layerDigest":"sha256:12"}`)
	assertException(t, resp, body, "InvalidParameterException")
	resp, _ = r.send(t, target+"DeletePullThroughCacheRule", `{"ecrRepositoryPrefix":"hub"}`)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	r.fails(t, "GetDownloadUrlForLayer", `{`+hubA+`,"layerDigest":"`+nowhere+`"}`, "LayersNotFoundException", missing)
}

func TestBatchCheckLayerAvailability(t *testing.T) {
	r := newRegistry(t, pullthrough.NewMemStore(), nil)
	img := image(1)
	r.up.Push("a", "v1", img)
	r.pull(t, "a", "v1")
	stored, other := img.Config, img.Layers[0]
	require.NoError(t, r.proxy.Store.PutBlob(t.Context(), repo("a"), stored.Descriptor(), stored.Open()))
	before := len(r.up.Log())
	r.ok(t, "BatchCheckLayerAvailability", `{`+hubA+`,"layerDigests":["`+stored.Digest.String()+`","`+other.Digest.String()+`","","sha256:12"]}`,
		`{"layers":[{"layerDigest":"`+stored.Digest.String()+`","layerAvailability":"AVAILABLE","layerSize":`+strconv.FormatInt(stored.Size, 10)+`},{"layerDigest":"`+other.Digest.String()+`","layerAvailability":"UNAVAILABLE"}],
		"failures":[{"failureCode":"MissingLayerDigest","failureReason":"Invalid request parameters: layer digest cannot be empty"},
		{"layerDigest":"sha256:12","failureCode":"InvalidLayerDigest","failureReason":"Invalid request parameters: layer digest should satisfy the regex '[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+'"}]}`)
	assert.Len(t, r.up.Log(), before, "upstream is not asked")
	r.fails(t, "BatchCheckLayerAvailability", `{`+hubA+`}`, "InvalidParameterException", constraint("layerDigests", mustNotBeNull))
	r.fails(t, "BatchCheckLayerAvailability", `{`+hubA+`,"layerDigests":[]}`, "InvalidParameterException", constraint("layerDigests", "Member must have length greater than or equal to 1"))
	many := strings.TrimSuffix(strings.Repeat(`"x",`, 101), ",")
	r.fails(t, "BatchCheckLayerAvailability", `{`+hubA+`,"layerDigests":[`+many+`]}`, "InvalidParameterException", constraint("layerDigests", "Member must have length less than or equal to 100"))
}

func TestGetAuthorizationToken(t *testing.T) {
	r := newRegistry(t, pullthrough.NewMemStore(), func(r *registry) {
		r.api.Images.Password = func(_ context.Context, id pullthrough.Identity) (string, error) {
			if id.Account == "000000000000" {
				return "", pullthrough.ErrUnauthorized
			}
			return "for " + id.Account, nil
		}
		r.api.Identify = byHeader
	})
	of := func(password, account, region string) string {
		return `{"authorizationToken":"` + base64.StdEncoding.EncodeToString([]byte("AWS:"+password)) + `","expiresAt":946728000,"proxyEndpoint":"https://` + account + `.dkr.ecr.` + region + `.amazonaws.com"}`
	}
	r.ok(t, "GetAuthorizationToken", `{}`, `{"authorizationData":[`+of("for ", "123456789012", "us-east-1")+`]}`)
	r.ok(t, "GetAuthorizationToken", ``, `{"authorizationData":[`+of("for 111111111111", "111111111111", "eu-west-1")+`]}`, "X-Account", "111111111111", "X-Region", "eu-west-1")
	r.ok(t, "GetAuthorizationToken", `{"registryIds":["222222222222","333333333333"]}`, `{"authorizationData":[`+of("for ", "222222222222", "us-east-1")+`,`+of("for ", "333333333333", "us-east-1")+`]}`)
	r.fails(t, "GetAuthorizationToken", `{"registryIds":[]}`, "InvalidParameterException", constraint("registryIds", "Member must have length greater than or equal to 1"))
	resp, body := r.send(t, target+"GetAuthorizationToken", `{"registryIds":["1"]}`)
	assertException(t, resp, body, "InvalidParameterException")
	resp, body = r.send(t, target+"GetAuthorizationToken", `{}`, "X-Account", "000000000000")
	assertException(t, resp, body, "UnrecognizedClientException")
}

func TestPasswordsAreRandom(t *testing.T) {
	r := newRegistry(t, pullthrough.NewMemStore(), nil)
	seen := map[string]bool{}
	for range 10 {
		out, err := r.api.GetAuthorizationToken(t.Context(), pullthrough.Identity{}, ecrapi.GetAuthorizationTokenInput{})
		require.NoError(t, err)
		token, err := base64.StdEncoding.DecodeString(out.AuthorizationData[0].AuthorizationToken)
		require.NoError(t, err)
		password, ok := strings.CutPrefix(string(token), "AWS:")
		assert.True(t, ok)
		assert.GreaterOrEqual(t, len(password), 20)
		seen[password] = true
	}
	assert.Len(t, seen, 10)
}

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
