package pullthrough_test

import (
	"io"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var someDigest = digest.FromString("some")

// pushes are the requests of a push, with mount and delete.
var pushes = [][2]string{
	{http.MethodPut, "/v2/hub/a/manifests/v1"},
	{http.MethodPost, "/v2/hub/a/manifests/v1"},
	{http.MethodPatch, "/v2/hub/a/manifests/v1"},
	{http.MethodDelete, "/v2/hub/a/manifests/v1"},
	{http.MethodPut, "/v2/hub/a/manifests/" + someDigest.String()},
	{http.MethodDelete, "/v2/hub/a/manifests/" + someDigest.String()},
	{http.MethodPut, "/v2/hub/a/blobs/" + someDigest.String()},
	{http.MethodDelete, "/v2/hub/a/blobs/" + someDigest.String()},
	{http.MethodPost, "/v2/hub/a/blobs/uploads/"},
	{http.MethodPost, "/v2/hub/a/blobs/uploads"},
	{http.MethodPost, "/v2/hub/a/blobs/uploads/?digest=" + someDigest.String()},
	{http.MethodPost, "/v2/hub/a/blobs/uploads/?mount=" + someDigest.String() + "&from=hub/b"},
	{http.MethodPatch, "/v2/hub/a/blobs/uploads/5f0c-11"},
	{http.MethodPut, "/v2/hub/a/blobs/uploads/5f0c-11?digest=" + someDigest.String()},
	{http.MethodDelete, "/v2/hub/a/blobs/uploads/5f0c-11"},
	{http.MethodPut, "/v2/mine/manifests/v1"},
	{http.MethodPost, "/v2/mine/blobs/uploads/?mount=" + someDigest.String() + "&from=hub/a"},
	{http.MethodDelete, "/v2/mine/blobs/" + someDigest.String()},
}

// C20: nothing is pushed through a read-only registry.
func TestPushesAreRefused(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
	for _, p := range pushes {
		t.Run(p[0]+" "+p[1], func(t *testing.T) {
			r := testkit.Send(t, f.Server, p[0], p[1], `{"schemaVersion":2}`, "Content-Type", "application/vnd.oci.image.manifest.v1+json")
			testkit.AssertOCI(t, r, 405, "UNSUPPORTED")
			allow, ok := r.Header["Allow"]
			assert.True(t, ok, "RFC 9110, section 15.5.6: Allow is a must")
			if !strings.Contains(p[1], "/uploads") {
				assert.Contains(t, strings.Join(allow, ", "), "GET")
				assert.Contains(t, strings.Join(allow, ", "), "HEAD")
			}
			for _, method := range []string{"PUT", "POST", "PATCH", "DELETE"} {
				assert.NotContains(t, strings.Join(allow, ", "), method)
			}
		})
	}
	assert.Empty(t, f.Up.Log())
	_, err := f.Stored(t, "v1")
	assert.ErrorIs(t, err, fs.ErrNotExist, "nothing changes")
}

func TestAPushChangesNothingOfWhatIsStored(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	f.Up.Push("a", "v1", img)
	testkit.AssertManifest(t, f.Get(t, testkit.ManifestPath("a", "v1")), http.MethodGet, img, img.Digest)
	f.Settled(t)
	f.Up.Reset()
	for _, method := range []string{http.MethodPut, http.MethodDelete} {
		for _, ref := range []string{"v1", img.Digest.String()} {
			testkit.AssertOCI(t, testkit.Send(t, f.Server, method, testkit.ManifestPath("a", ref), "{}"), 405, "UNSUPPORTED")
		}
	}
	testkit.AssertManifest(t, f.Get(t, testkit.ManifestPath("a", "v1")), http.MethodGet, img, img.Digest)
	assert.Empty(t, f.Up.Log())
}

// seen is what a handler was asked.
type seen struct{ method, path, rawPath, uri, query, header, body string }

// host is the next handler: a registry, or another service, of its own.
type host struct {
	mu   sync.Mutex
	seen []seen
}

func (h *host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	h.mu.Lock()
	h.seen = append(h.seen, seen{r.Method, r.URL.Path, r.URL.RawPath, r.RequestURI, r.URL.RawQuery, r.Header.Get("X-Mark"), string(body)})
	h.mu.Unlock()
	w.Header().Set("X-Host", "own")
	w.WriteHeader(http.StatusTeapot)
	_, _ = io.WriteString(w, "own answer")
}

// take returns what came since the last take.
func (h *host) take() []seen {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.seen
	h.seen = nil
	return s
}

// assertHosts checks that the host's own handler was asked, once, for just
// what was sent, and that its answer arrived.
func (h *host) assertHosts(t *testing.T, r testkit.Reply, method, uri, body string) {
	t.Helper()
	assert.Equal(t, http.StatusTeapot, r.StatusCode, "%s %s: %s", method, uri, r.Content)
	assert.Equal(t, "own", r.Header.Get("X-Host"))
	assert.Empty(t, r.Header.Values("Docker-Distribution-Api-Version"), "not a header of ours")
	if method != http.MethodHead {
		assert.Equal(t, "own answer", string(r.Content))
	}
	all := h.take()
	if !assert.Len(t, all, 1, "%s %s", method, uri) {
		return
	}
	want, err := http.NewRequest(method, "http://x"+uri, nil)
	assert.NoError(t, err)
	assert.Equal(t, seen{method, want.URL.Path, want.URL.RawPath, uri, want.URL.RawQuery, all[0].header, body}, all[0])
}

func TestPushesReachTheHost(t *testing.T) {
	next := &host{}
	asked := &testkit.Door{}
	asked.Set(map[pullthrough.Action]error{pullthrough.ActionPull: pullthrough.ErrDenied})
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Authorize = asked.Authorize
		p.Identify = func(*http.Request) (pullthrough.Identity, error) {
			return pullthrough.Identity{}, pullthrough.ErrUnauthorized
		}
	})
	srv := testkit.Serve(t, w.Handler(next))
	for _, p := range pushes {
		body := strings.Repeat("layer", 100_000)
		r := testkit.Send(t, srv, p[0], p[1], body, "X-Mark", "mine")
		next.assertHosts(t, r, p[0], p[1], body)
	}
	r := testkit.Send(t, srv, http.MethodPut, "/v2/hub/a%2Fb/manifests/v%31", "{}", "X-Mark", "mine")
	next.assertHosts(t, r, http.MethodPut, "/v2/hub/a%2Fb/manifests/v%31", "{}")
	requests, _ := asked.Requests()
	assert.Empty(t, requests)
	assert.Empty(t, w.Up.Log())
}
