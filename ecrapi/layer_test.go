package ecrapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
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
	r := newRegistry(t, memstore.New(), nil)
	mux := http.NewServeMux()
	mux.Handle("/v2/", r.proxy)
	front := start(t, &ecrapi.API{Next: mux})
	r.api.Images.RegistryURL = func(*http.Request, string, string) string { return front.url }
	img := image(1)
	r.up.Push("a", "v1", img)
	r.pull(t, "a", "v1")
	layer := img.Layers[0].Digest.String()
	want := front.url + "/v2/hub/a/blobs/" + layer
	r.ok(t, "GetDownloadUrlForLayer", `{`+hubA+`,"layerDigest":"`+layer+`"}`, `{"downloadUrl":"`+want+`","layerDigest":"`+layer+`"}`)
	assert.Equal(t, 1, r.up.Count("GET /v2/a/blobs/* 206"), "whether it is there")
	assert.Equal(t, 1, r.up.Count("GET /v2/a/blobs/*"), "the download pulls, this does not")
	resp, err := http.Get(want)
	require.NoError(t, err)
	content, err := io.ReadAll(resp.Body)
	require.NoError(t, errors.Join(err, resp.Body.Close()))
	assert.Equal(t, img.Layers[0].Digest, digest.FromBytes(content))
	assert.Equal(t, 1, r.up.Count("GET /v2/a/blobs/* 200"))
	r.ok(t, "GetDownloadUrlForLayer", `{`+hubA+`,"layerDigest":"`+layer+`"}`, `{"downloadUrl":"`+want+`","layerDigest":"`+layer+`"}`)
	assert.Equal(t, 2, r.up.Count("GET /v2/a/blobs/*"))
}

// A layer is no way into a repository that no image has made, also where /v2/ is one.
func TestLayersOfARepositoryThatWasNeverMade(t *testing.T) {
	for _, blobsFirst := range []bool{false, true} {
		var refused error
		r := newRegistry(t, memstore.New(), func(r *registry) {
			r.proxy.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
				return pullthrough.Policy{Retries: -1, NotFoundTTL: -1, BlobsFirst: blobsFirst}
			}
			r.proxy.Authorize = func(context.Context, pullthrough.Action, pullthrough.Request) error { return refused }
		})
		img := image(1)
		r.up.Push("a", "v1", img)
		for _, d := range []string{img.Layers[0].Digest.String(), nowhere} {
			resp, body := r.send(t, target+"GetDownloadUrlForLayer", `{`+hubA+`,"layerDigest":"`+d+`"}`)
			assertException(t, resp, body, "RepositoryNotFoundException")
			if !blobsFirst {
				w := httptest.NewRecorder()
				r.proxy.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v2/hub/a/blobs/"+d, nil))
				assert.Equal(t, http.StatusNotFound, w.Code)
				assert.Contains(t, w.Body.String(), "NAME_UNKNOWN")
			}
		}
		assert.Empty(t, r.up.Log())
		refused = errors.New("you may not")
		resp, body := r.send(t, target+"GetDownloadUrlForLayer", `{`+hubA+`,"layerDigest":"`+nowhere+`"}`)
		assertException(t, resp, body, "AccessDeniedException")
	}
}

func TestTheHostSignsLayerURLs(t *testing.T) {
	var signErr error
	r := newRegistry(t, memstore.New(), func(r *registry) {
		r.api.Images.LayerURL = func(_ context.Context, _ string, repo pullthrough.Repo, d digest.Digest) (string, error) {
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
	r := newRegistry(t, memstore.New(), nil)
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
	r := newRegistry(t, memstore.New(), nil)
	img := image(1)
	r.up.Push("a", "v1", img)
	r.pull(t, "a", "v1")
	stored, other := img.Config, img.Layers[0]
	require.NoError(t, r.proxy.Store.PutBlob(t.Context(), repo("a"), stored.Descriptor(), stored.Open()))
	before := len(r.up.Log())
	r.ok(t, "BatchCheckLayerAvailability", `{`+hubA+`,"layerDigests":["`+stored.Digest.String()+`","`+other.Digest.String()+`","","sha256:12"]}`,
		`{"layers":[{"layerDigest":"`+stored.Digest.String()+`","layerAvailability":"AVAILABLE","layerSize":`+strconv.FormatInt(stored.Size, 10)+`,"mediaType":"application/vnd.oci.image.config.v1+json"},{"layerDigest":"`+other.Digest.String()+`","layerAvailability":"UNAVAILABLE"}],
		"failures":[{"failureCode":"MissingLayerDigest","failureReason":"Invalid request parameters: layer digest cannot be empty"},
		{"layerDigest":"sha256:12","failureCode":"InvalidLayerDigest","failureReason":"Invalid request parameters: layer digest should satisfy the regex '[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+'"}]}`)
	assert.Len(t, r.up.Log(), before, "upstream is not asked")
	r.fails(t, "BatchCheckLayerAvailability", `{`+hubA+`}`, "InvalidParameterException", constraint("layerDigests", mustNotBeNull))
	r.fails(t, "BatchCheckLayerAvailability", `{`+hubA+`,"layerDigests":[]}`, "InvalidParameterException", constraint("layerDigests", "Member must have length greater than or equal to 1"))
	many := strings.TrimSuffix(strings.Repeat(`"x",`, 101), ",")
	r.fails(t, "BatchCheckLayerAvailability", `{`+hubA+`,"layerDigests":[`+many+`]}`, "InvalidParameterException", constraint("layerDigests", "Member must have length less than or equal to 100"))
}
