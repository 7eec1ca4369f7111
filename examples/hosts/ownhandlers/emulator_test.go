package ownhandlers_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/examples/hosts/ownhandlers"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const account, region = "111122223333", "us-east-1"

// start is an emulator with the rule hub = up.
func start(t *testing.T) (up *pullthroughtest.Upstream, url string, e *ownhandlers.Emulator) {
	t.Helper()
	up = pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	e = ownhandlers.New(account, region, pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: up.URL}})
	s := httptest.NewServer(e)
	t.Cleanup(func() {
		s.Close()
		assert.NoError(t, e.Shutdown(context.Background()))
	})
	return up, s.URL, e
}

// answer is what a client got.
type answer struct {
	status int
	header http.Header
	body   string
}

func ask(t *testing.T, method, url, body string, header ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return answer{resp.StatusCode, resp.Header, string(b)}
}

func TestAPullOfWhatARuleCovers(t *testing.T) {
	up, url, e := start(t)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	up.Push("a", "1", img)
	for range 2 {
		got := ask(t, http.MethodGet, url+"/v2/hub/a/manifests/1", "")
		assert.Equal(t, 200, got.status)
		assert.Equal(t, string(img.Content), got.body)
		for _, b := range img.Blobs() {
			got := ask(t, http.MethodGet, url+"/v2/hub/a/blobs/"+b.Digest.String(), "")
			assert.Equal(t, b.Digest, digest.FromString(got.body))
		}
		require.NoError(t, e.Idle(t.Context()))
	}
	assert.Equal(t, []string{
		"GET /v2/a/manifests/1 401", "GET /token 200", "GET /v2/a/manifests/1 200",
		"GET /v2/a/blobs/" + img.Config.Digest.String() + " 200",
		"GET /v2/a/blobs/" + img.Layers[0].Digest.String() + " 200",
	}, up.Log(), "each once, and the second pull nothing")

	list := ask(t, http.MethodPost, url, `{"repositoryName":"hub/a"}`, "X-Amz-Target", "AmazonEC2ContainerRegistry_V20150921.ListImages")
	assert.JSONEq(t, `{"imageIds":[{"imageDigest":"`+img.Digest.String()+`","imageTag":"1"}]}`, list.body, "the emulator's API knows it")
}

func TestErrorsAreECRs(t *testing.T) {
	up, url, _ := start(t)
	got := ask(t, http.MethodGet, url+"/v2/hub/a/manifests/none", "")
	assert.Equal(t, 404, got.status)
	assert.JSONEq(t, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"Requested image not found"}]}`, got.body)
	assert.Equal(t, 1, up.Count("GET /v2/a/manifests/none 404"))

	up.Fault(pullthroughtest.Fault{Match: "* /v2/a/manifests/busy", Status: 429, Header: http.Header{"Retry-After": {"77"}}})
	got = ask(t, http.MethodGet, url+"/v2/hub/a/manifests/busy", "")
	assert.Equal(t, 429, got.status)
	assert.Equal(t, "77", got.header.Get("Retry-After"))
}

func TestWhatNoRuleCoversIsTheEmulatorsOwn(t *testing.T) {
	up, url, _ := start(t)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	layer, err := io.ReadAll(img.Layers[0].Open())
	require.NoError(t, err)
	uploads := url + "/v2/team/blobs/manifests/app/blobs/uploads/?digest=" + img.Layers[0].Digest.String()
	assert.Equal(t, 201, ask(t, http.MethodPost, uploads, string(layer)).status)
	manifest := url + "/v2/team/blobs/manifests/app/manifests/v1"
	assert.Equal(t, 201, ask(t, http.MethodPut, manifest, string(img.Content), "Content-Type", img.MediaType).status)

	got := ask(t, http.MethodGet, manifest, "")
	assert.Equal(t, string(img.Content), got.body)
	assert.Equal(t, img.MediaType, got.header.Get("Content-Type"))
	got = ask(t, http.MethodGet, url+"/v2/team/blobs/manifests/app/blobs/"+img.Layers[0].Digest.String(), "")
	assert.Equal(t, string(layer), got.body)

	for _, path := range []string{"/v2/team/app/manifests/none", "/v2/none/manifests/1", "/v2/none/blobs/" + img.Digest.String(), "/elsewhere"} {
		got := ask(t, http.MethodGet, url+path, "")
		assert.Equal(t, 404, got.status, path)
		assert.Equal(t, "own", got.header.Get("X-Emulator"), path)
	}
	assert.Equal(t, "{}", ask(t, http.MethodGet, url+"/v2/", "").body)
	assert.Empty(t, up.Log())
}

func TestAPushIntoACoveredRepositoryIsCheckedAtTheNextPull(t *testing.T) {
	up, url, _ := start(t)
	pushed := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1})
	manifest := url + "/v2/hub/a/manifests/mine"
	assert.Equal(t, 201, ask(t, http.MethodPut, manifest, string(pushed.Content), "Content-Type", pushed.MediaType).status)
	assert.Equal(t, string(pushed.Content), ask(t, http.MethodGet, manifest, "").body, "upstream does not have it")
	assert.Equal(t, []string{
		"HEAD /v2/a/manifests/mine 401", "GET /token 200", "HEAD /v2/a/manifests/mine 404", "GET /v2/a/manifests/mine 404",
	}, up.Log())
}

// TestItTakes120Lines: of code, those that are new in emulator.go included.
func TestItTakes120Lines(t *testing.T) {
	isNew := func(line string) bool { return strings.Contains(line, "// new") }
	lines := testkit.CodeLines(t, "pullthrough.go", nil) + testkit.CodeLines(t, "emulator.go", isNew)
	assert.Greater(t, lines, 80, "this counts something else")
	assert.LessOrEqual(t, lines, 120)
}
