package upstream_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// TestUpstreamRedirectMatrix sends every kind of request on by every status to
// every kind of place, and looks at who was asked what.
func TestUpstreamRedirectMatrix(t *testing.T) {
	m := newMatrix(t)
	for _, status := range []int{301, 302, 303, 307, 308} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			for _, what := range redirectedRequests {
				t.Run(what.name, func(t *testing.T) {
					for _, to := range redirectTargets {
						t.Run(to.name, func(t *testing.T) { m.test(t, status, what, to) })
					}
				})
			}
		})
	}
}

// redirectedRequest is one that upstream redirects.
type redirectedRequest struct {
	name     string
	method   string
	path     string // at the registry; with the digest of a layer in place of *
	token    bool   // it asks for a token
	identity bool   // with an identity token in its body
}

var redirectedRequests = []redirectedRequest{
	{name: "GET-blob", method: http.MethodGet, path: "/v2/a/blobs/*"},
	{name: "GET-manifest", method: http.MethodGet, path: "/v2/a/manifests/1"},
	{name: "HEAD", method: http.MethodHead, path: "/v2/a/manifests/1"},
	{name: "GET-token", method: http.MethodGet, path: "/token", token: true},
	{name: "POST-token", method: http.MethodPost, path: "/token", token: true, identity: true},
}

// redirectTarget is where to, and what of a request for content may go there.
type redirectTarget struct {
	name     string
	origin   string
	back     bool // and from there back to the registry
	followed bool
	kept     bool // with its Authorization
}

var redirectTargets = []redirectTarget{
	{"same-origin", "https://registry.test", false, true, true},
	{"same-host-other-port", "https://registry.test:8443", false, true, false},
	{"subdomain", "https://cdn.registry.test", false, true, false},
	{"other-host", "https://other.test", false, true, false},
	{"https-to-http", "http://registry.test", false, false, false},
	{"back-to-the-first-host", "https://other.test", true, true, false},
}

// matrix is a registry and the places that it redirects to. All of them have
// the content below /cdn for everybody, so that only the policy can refuse.
type matrix struct {
	network
	img      *pullthroughtest.Image
	registry *pullthroughtest.Upstream
	places   map[string]*pullthroughtest.Upstream // by origin, the registry included
}

func newMatrix(t *testing.T) *matrix {
	m := &matrix{img: pullthroughtest.NewImage(pullthroughtest.ImageOptions{}), places: map[string]*pullthroughtest.Upstream{}}
	content := pullthroughtest.New(t, pullthroughtest.Config{})
	content.Push("a", "1", m.img)
	cdn := http.StripPrefix("/cdn", content)
	for _, to := range redirectTargets {
		if m.places[to.origin] != nil {
			continue
		}
		up := pullthroughtest.New(t, pullthroughtest.Config{
			Auth:           pullthroughtest.Bearer,
			Users:          testkit.Users,
			IdentityTokens: []string{identityCanary},
			Realm:          "https://registry.test/token",
			TLS:            strings.HasPrefix(to.origin, "https:"),
			Handler: func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasPrefix(r.URL.Path, "/cdn/") {
					return false
				}
				cdn.ServeHTTP(w, r)
				return true
			},
		})
		up.Push("a", "1", m.img)
		m.places[to.origin] = up
		m.put(t, to.origin, up)
	}
	m.registry = m.places["https://registry.test"]
	return m
}

// world is a proxy that has not seen the registry yet.
func (m *matrix) world(t *testing.T, what redirectedRequest) *testkit.World {
	for _, up := range m.places {
		up.Heal()
		up.Reset()
	}
	m.forget()
	w := &testkit.World{Up: m.registry, Mem: memstore.New()}
	w.Proxy = &pullthrough.Proxy{
		Store:     w.Mem,
		Rules:     pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: "https://registry.test"}},
		SpoolDir:  t.TempDir(),
		Transport: m.transport(t),
	}
	testkit.EveryPull(w.Proxy)
	testkit.WithSecret(nil)(w.Proxy)
	if what.identity {
		withIdentityToken(identityCanary, "")(w.Proxy)
	}
	t.Cleanup(func() { assert.NoError(t, w.Shutdown(context.Background())) })
	return w
}

// send causes the request.
func (m *matrix) send(t *testing.T, w *testkit.World, what redirectedRequest) (*pullthrough.Manifest, error) {
	if what.name == "GET-blob" {
		return nil, w.Whole(t.Context(), m.img.Layers[0].Digest)
	}
	return w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
}

func (m *matrix) test(t *testing.T, status int, what redirectedRequest, to redirectTarget) {
	w := m.world(t, what)
	if what.method == http.MethodHead { // by which a stored tag is checked
		_, err := m.send(t, w, what)
		require.NoError(t, err)
		w.Settled(t)
		m.registry.Reset()
	}
	path := strings.ReplaceAll(what.path, "*", m.img.Layers[0].Digest.String())
	m.redirect(status, what, to, path)
	got, err := m.send(t, w, what)

	followed := to.followed && (!what.token || to.kept && !what.identity)
	m.assertOutcome(t, what, followed, got, err)
	m.assertFirst(t, what, to, status, path, followed)
	m.assertTarget(t, what, to, status, path, followed)
	m.assertSecrets(t, what)
}

// redirect makes the registry send the request on, and the target back if need be.
func (m *matrix) redirect(status int, what redirectedRequest, to redirectTarget, path string) {
	f := pullthroughtest.Fault{Match: what.method + " " + path + " 200", Status: status, Times: 1, Redirect: to.origin + "/cdn" + path}
	if what.token {
		f.Redirect = to.origin + "/token?service=registry.test&scope=repository:a:pull"
	}
	m.registry.Fault(f)
	if to.back {
		f.Match, f.Redirect = "", "https://registry.test/cdn"+path+"?back"
		m.places[to.origin].Fault(f)
	}
}

func (m *matrix) assertOutcome(t *testing.T, what redirectedRequest, followed bool, got *pullthrough.Manifest, err error) {
	t.Helper()
	switch {
	case what.method == http.MethodHead:
		require.NoError(t, err)
		want := pullthrough.SourceStale
		if followed {
			want = pullthrough.SourceRevalidated
		}
		assert.Equal(t, want, got.Source)
	case followed:
		assert.NoError(t, err)
	default:
		assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
		status, _, _ := pullthrough.OCI(err)
		assert.Equal(t, http.StatusBadGateway, status)
	}
}

// assertFirst: the registry was asked what it had to be, and nothing twice.
func (m *matrix) assertFirst(t *testing.T, what redirectedRequest, to redirectTarget, status int, path string, followed bool) {
	t.Helper()
	manifest := redirectedRequests[1].path
	want := []string{fmt.Sprintf("%s %s %d", what.method, path, status)}
	switch {
	case what.method == http.MethodHead:
	case what.token:
		want = append([]string{"GET " + manifest + " 401"}, want...)
	default:
		want = append([]string{"GET " + path + " 401", "GET /token 200"}, want...)
	}
	switch {
	case !followed:
	case what.token:
		want = append(want, what.method+" /token 200", "GET "+manifest+" 200")
	case to.kept || to.back:
		want = append(want, what.method+" /cdn"+path+" 200")
	}
	assert.Equal(t, want, m.registry.Log())
}

// assertTarget: another place was asked once, in the same way, or not called.
func (m *matrix) assertTarget(t *testing.T, what redirectedRequest, to redirectTarget, status int, path string, followed bool) {
	t.Helper()
	calls := map[string]int{"registry.test:443": 1}
	for origin, up := range m.places {
		switch {
		case up == m.registry:
		case !followed || origin != to.origin:
			assert.Empty(t, up.Log(), origin)
		default:
			if !to.back {
				status = http.StatusOK
			}
			calls[origin] = 1
			assert.Equal(t, []string{fmt.Sprintf("%s /cdn%s %d", what.method, path, status)}, up.Log())
		}
	}
	assert.Len(t, m.calls(), len(calls), "%v", m.calls())
}

// assertSecrets: each is where it belongs, and nowhere else.
func (m *matrix) assertSecrets(t *testing.T, what redirectedRequest) {
	t.Helper()
	for origin, up := range m.places {
		first := up == m.registry
		for _, r := range up.Requests() {
			want := ""
			switch {
			case !first || r.Query == "back" || r.Status == http.StatusUnauthorized || r.Method == http.MethodPost:
			case r.Path == "/token":
				want = "Basic"
			default:
				want = "Bearer"
			}
			scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
			assert.Equal(t, want, scheme, "%s to %s", r, origin)
			assert.Equal(t, first && r.Method == http.MethodPost, len(r.Body) > 0, "%s to %s", r, origin)
			for _, name := range []string{"Cookie", "Proxy-Authorization", "Referer"} {
				assert.Empty(t, r.Header[name])
			}
		}
		assert.Equal(t, first && what.identity, up.Saw(identityCanary), origin)
		assert.Equal(t, first && !what.identity && what.method != http.MethodHead, up.Saw(testkit.Canary), origin)
	}
}

func basicAuth(r pullthroughtest.Request) (user, password string, ok bool) {
	return (&http.Request{Header: r.Header}).BasicAuth()
}

// mostCircles is how many requests a redirect loop may cost in all.
const mostCircles = 10

func circlesInABlob(t *testing.T, w *testkit.World) {
	layer := w.Layer(3 << 20)
	w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Times: 1, CutAfter: new(int64(2 << 20))})
	w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Redirect: "{path}"})
	_ = failsBlob(t, w, layer, pullthrough.ErrUnavailable)
	assert.Equal(t, 1, w.Up.Count(testkit.Blobs+" 200"))
	assert.Positive(t, w.Up.Count(testkit.Blobs+" 307"))
	assert.LessOrEqual(t, w.Up.Count(""), mostCircles)
}

func circlesInACheck(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, testkit.EveryPull)
	images := pushTags(w.Up, 1)
	w.Pull(t, "a", "0", images[0])
	w.Up.Reset()
	w.Up.Fault(pullthroughtest.Fault{Redirect: "{path}"})
	m, err := w.Tagged(t, "0")
	require.NoError(t, err)
	assert.Equal(t, pullthrough.SourceStale, m.Source)
	assert.Positive(t, w.Up.Count("HEAD * 307"))
	assert.LessOrEqual(t, w.Up.Count(""), mostCircles)
}
