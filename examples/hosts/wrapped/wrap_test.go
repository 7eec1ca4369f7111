package wrapped_test

import (
	"context"
	"go/parser"
	"go/token"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/examples/hosts/wrapped"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// host is the registry, and what is served in its place with the rule hub = up.
type host struct {
	*registry
	up     *pullthroughtest.Upstream
	server *httptest.Server
	proxy  *pullthrough.Proxy
}

func start(t *testing.T) *host {
	t.Helper()
	h := &host{registry: &registry{objects: map[string]object{}}, up: pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})}
	handler, proxy := wrapped.Wrap(h.registry, pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: h.up.URL}})
	h.proxy, h.server = proxy, httptest.NewServer(handler)
	t.Cleanup(func() { h.end(t) })
	return h
}

// end ends the server first; the proxy waits for what is being stored.
func (h *host) end(t *testing.T) {
	h.server.Close()
	assert.NoError(t, h.proxy.Shutdown(context.Background()))
}

// whole waits until all of hub/a:1 is here: nobody who pulls waits for that.
func (h *host) whole(t *testing.T) {
	t.Helper()
	_, err := h.proxy.Import(t.Context(), pullthrough.Request{Repo: pullthrough.Repo{Name: "hub/a"}, Ref: "1"}, pullthrough.ImportOptions{})
	require.NoError(t, err)
}

func (h *host) get(t *testing.T, path string) (status int, body string) {
	t.Helper()
	resp, err := http.Get(h.server.URL + path)
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(b)
}

func TestWhatARuleCoversEndsUpInTheRegistry(t *testing.T) {
	h := start(t)
	index := pullthroughtest.NewIndex(
		pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}),
		pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, Platform: ocispec.Platform{OS: "linux", Architecture: "arm64"}}),
	)
	h.up.Push("a", "1", index)
	status, body := h.get(t, "/v2/hub/a/manifests/1")
	assert.Equal(t, 200, status)
	assert.Equal(t, string(index.Content), body)
	h.whole(t)
	h.end(t)
	assert.Equal(t, 1, h.up.Count("GET /v2/a/manifests/1 200"))
	assert.Equal(t, 2, h.up.Count("GET /v2/a/manifests/sha256:* 200"))
	assert.Equal(t, 4, h.up.Count("GET /v2/a/blobs/* 200"))
	h.up.Close()

	want := []string{"hub/a manifests 1", "hub/a manifests " + index.Digest.String()}
	for _, child := range index.Children {
		want = append(want, "hub/a manifests "+child.Digest.String())
		for _, b := range child.Blobs() {
			want = append(want, "hub/a blobs "+b.Digest.String())
		}
	}
	assert.ElementsMatch(t, want, h.keys())
}

func TestTheSecondPullAsksNobody(t *testing.T) {
	h := start(t)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	h.up.Push("a", "1", img)
	h.whole(t)
	h.up.Reset()
	_, body := h.get(t, "/v2/hub/a/manifests/1")
	assert.Equal(t, string(img.Content), body)
	for _, b := range img.Blobs() {
		_, body := h.get(t, "/v2/hub/a/blobs/"+b.Digest.String())
		assert.Equal(t, b.Digest, digest.FromString(body))
	}
	assert.Empty(t, h.up.Log())
}

func TestTheRestIsTheRegistrysOwn(t *testing.T) {
	h := start(t)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: -1})
	r := httptest.NewRequest(http.MethodPut, "/v2/team/app/blobs/uploads/1?digest="+img.Config.Digest.String(), img.Config.Open())
	h.server.Config.Handler.ServeHTTP(httptest.NewRecorder(), r)
	_, body := h.get(t, "/v2/team/app/blobs/"+img.Config.Digest.String())
	assert.Equal(t, img.Config.Digest, digest.FromString(body), "pushes reach it")

	status, body := h.get(t, "/v2/team/app/manifests/none")
	assert.Equal(t, 404, status)
	assert.Contains(t, body, `{"errors":[{"code":"NAME_UNKNOWN"}]}`, "its own words")
	status, _ = h.get(t, "/v2/apis")
	assert.Equal(t, http.StatusTeapot, status)
	assert.Empty(t, h.up.Log())

	status, body = h.get(t, "/v2/hub/a/manifests/none")
	assert.Equal(t, 404, status)
	assert.Contains(t, body, "Requested image not found", "the proxy's")
}

// A client that pushes asks what is there: what only upstream has is not.
func TestAPushUploadsWhatTheRegistryLacks(t *testing.T) {
	h := start(t)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	h.up.Push("a", "1", img)
	h.up.Reset()
	for _, b := range img.Blobs() {
		resp, err := http.Head(h.server.URL + "/v2/hub/a/blobs/" + b.Digest.String())
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		assert.Equal(t, 404, resp.StatusCode)
	}
	assert.Empty(t, h.up.Log())
	h.whole(t)
	for _, b := range img.Blobs() {
		resp, err := http.Head(h.server.URL + "/v2/hub/a/blobs/" + b.Digest.String())
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		assert.Equal(t, 200, resp.StatusCode)
	}
	assert.Equal(t, len(img.Blobs()), h.up.Count("GET /v2/a/blobs/* 200"))
}

func TestItTakes10Lines(t *testing.T) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "wrap.go", nil, parser.SkipObjectResolution)
	require.NoError(t, err)
	wrap := file.Decls[1]
	assert.LessOrEqual(t, fset.Position(wrap.End()).Line-fset.Position(wrap.Pos()).Line+1, 10)
}
