package pullthrough_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var _ http.Handler = (*pullthrough.Proxy)(nil)

// others are paths on which a registry and its neighbours may be mounted too,
// and that are no pulls of what the rule hub covers.
var others = []string{
	"/v2", "/v2/", // the version check may want a login of the host's own
	"/v2/apis", "/v2/apis/", "/v2/apis/abc/routes", "/v2/apis/abc/stages/prod", "/v2/domainnames", // API Gateway v2, AppSync Events
	"/v2/tags/arn:aws:apigateway:us-east-1::/apis/abc", "/v2/tags/arn%3Aaws%3Aapigateway%3Aus-east-1%3A%3A%2Fapis%2Fabc",
	"/v2/email/identities", "/v2/email/identities/a@b.example", "/v2/email/templates/t/render", // SES v2
	"/v2/_catalog?n=5", "/v2/hub/aa/tags/list", "/v2/mine/tags/list", "/v2/hub/aa/blobs/uploads/5f0c", "/v2//",
	"/", "/v1/hub/aa/manifests/v1", "/v2x/hub/aa/manifests/v1", "/v2-x/hub/aa/manifests/v1", "/bucket/v2/hub/aa/manifests/v1", "/hub/aa/manifests/v1",
	"/v2/hub/aa/manifests", "/v2/hub/aa",
}

// uncovered are pulls of what no rule covers, or can cover.
var uncovered = []string{
	"/v2/mine/referrers/" + someDigest.String(), "/v2/mine/manifests/v1", "/v2/mine/blobs/" + someDigest.String(), "/v2/hub/manifests/v1", "/v2/hubx/aa/manifests/v1",
	"/v2/team/hub/aa/blobs/" + someDigest.String() + "?ns=docker.io", "/v2/mine/blobs/sha256%3A" + testkit.Hex64,
	"/v2/Mine/manifests/v1", "/v2/m/manifests/v1", "/v2/mine/manifests/-v1", "/v2/mine/blobs/md5:abc", "/v2/HUB/aa/manifests/v1", "/v2/hub_/aa/blobs/x",
}

// mounted is a world behind a mount, with a host whose own handler is next.
type mounted struct {
	*testkit.Face
	next *host
	door *testkit.Door
	img  *pullthroughtest.Image
}

func newMounted(t *testing.T, change func(*pullthrough.Proxy), mount func(p *pullthrough.Proxy, next http.Handler) http.Handler) *mounted {
	t.Helper()
	m := &mounted{next: &host{}, door: &testkit.Door{}}
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Authorize = m.door.Authorize
		if change != nil {
			change(p)
		}
	})
	m.Face = &testkit.Face{World: w, Server: testkit.Serve(t, mount(w.Proxy, m.next))}
	m.img = pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 2 << 20})
	m.Up.Push("aa", "v1", m.img)
	m.Up.Reset()
	return m
}

// assertPulls pulls the image, cold and warm, by GET, HEAD and Range.
func (m *mounted) assertPulls(t *testing.T) {
	t.Helper()
	layer := m.img.Layers[0]
	paths := []string{testkit.ManifestPath("aa", "v1"), testkit.BlobPath("aa", layer.Digest)}
	for range 2 {
		testkit.AssertManifest(t, m.Get(t, paths[0]), http.MethodGet, m.img, m.img.Digest)
		r := m.Get(t, paths[1])
		testkit.AssertContent(t, r, layer.Digest, testkit.OctetStream, int(layer.Size))
		testkit.AssertSame(t, testkit.BlobContent(t, layer), r.Content)
		m.Settled(t)
	}
	testkit.AssertManifest(t, m.Ask(t, http.MethodHead, paths[0]), http.MethodHead, m.img, m.img.Digest)
	testkit.AssertContent(t, m.Ask(t, http.MethodHead, paths[1]), layer.Digest, testkit.OctetStream, int(layer.Size))
	part := testkit.RangeCase{Header: "bytes=5-9", From: 5, To: 10, Status: http.StatusPartialContent}
	testkit.AssertRange(t, m.Get(t, paths[1], "Range", part.Header), part, testkit.BlobContent(t, layer))
	assertNotModified(t, m.Get(t, paths[1], "If-None-Match", testkit.ETag(layer.Digest)), layer.Digest)
	assert.Equal(t, []string{testkit.UpstreamGet(paths[0], 200), testkit.UpstreamGet(paths[1], 200)}, m.Up.Log())
	assert.Empty(t, m.next.take(), "the host's handler was asked for a covered pull")
}

func around(p *pullthrough.Proxy, next http.Handler) http.Handler { return p.Handler(next) }

func TestHandlerTakesCoveredPullsOnly(t *testing.T) {
	m := newMounted(t, nil, around)
	m.assertPulls(t)
	m.Up.Reset()
	m.door.Set(nil)
	for _, uri := range append(uncovered, others...) {
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodOptions} {
			body := ""
			if method == http.MethodPost {
				body = `{"name":"abc"}`
			}
			m.next.assertHosts(t, sendURI(t, m.Server, method, uri, body), method, uri, body)
		}
	}
	requests, _ := m.door.Requests()
	assert.Empty(t, requests, "nobody is authorized by us for what is not ours")
	assert.Empty(t, m.Up.Log())
}

// sendURI is send for a URI that must arrive with its escapes as they are.
func sendURI(t *testing.T, srv *httptest.Server, method, uri, body string) testkit.Reply {
	t.Helper()
	u, err := url.Parse(srv.URL + uri)
	require.NoError(t, err)
	assert.Equal(t, uri, u.RequestURI(), "the client would clean it")
	return testkit.Send(t, srv, method, uri, body)
}

func TestHandlerWithoutNext(t *testing.T) {
	m := newMounted(t, nil, func(p *pullthrough.Proxy, _ http.Handler) http.Handler { return p.Handler(nil) })
	m.assertPulls(t)
	m.Up.Reset()
	for _, uri := range append(uncovered, others...) {
		assert.Equal(t, 404, m.Get(t, uri).StatusCode, uri)
	}
	assert.Equal(t, 404, testkit.Send(t, m.Server, http.MethodPut, testkit.ManifestPath("aa", "v1"), "{}").StatusCode)
	assert.Empty(t, m.Up.Log())
}

// mux mounts h as hosts do: at "/v2", which a path that was cleaned has, and
// at "/v2/".
func mux(h, next http.Handler) *http.ServeMux {
	m := http.NewServeMux()
	m.Handle("/v2", h)
	m.Handle("/v2/", h)
	m.Handle("/", next)
	return m
}

// cleaning is a router that runs path.Clean first, so that /v2/ arrives as /v2.
func cleaning(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Path, r.URL.RawPath = path.Clean(r.URL.Path), ""
		h.ServeHTTP(w, r)
	})
}

// bareWriter is a ResponseWriter with none of the optional methods.
type bareWriter struct{ w http.ResponseWriter }

func (b bareWriter) Header() http.Header { return b.w.Header() }

func (b bareWriter) Write(p []byte) (int, error) { return b.w.Write(p) }

func (b bareWriter) WriteHeader(status int) { b.w.WriteHeader(status) }

func bare(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(bareWriter{w}, r) })
}

func TestMounts(t *testing.T) {
	for name, mount := range map[string]func(p *pullthrough.Proxy, next http.Handler) http.Handler{
		"the proxy":                     func(p *pullthrough.Proxy, _ http.Handler) http.Handler { return p },
		"ServeMux":                      func(p *pullthrough.Proxy, next http.Handler) http.Handler { return mux(p, next) },
		"ServeMux behind path.Clean":    func(p *pullthrough.Proxy, next http.Handler) http.Handler { return cleaning(mux(p, next)) },
		"bare writer":                   func(p *pullthrough.Proxy, _ http.Handler) http.Handler { return bare(p) },
		"Handler behind path.Clean":     func(p *pullthrough.Proxy, next http.Handler) http.Handler { return cleaning(p.Handler(next)) },
		"Handler in ServeMux":           func(p *pullthrough.Proxy, next http.Handler) http.Handler { return mux(p.Handler(next), next) },
		"Handler, bare writer":          func(p *pullthrough.Proxy, next http.Handler) http.Handler { return bare(p.Handler(next)) },
		"Handler around the proxy":      func(p *pullthrough.Proxy, _ http.Handler) http.Handler { return p.Handler(p) },
		"methods and wildcard patterns": patterns,
		"IsRegistryRequest":             sorting,
	} {
		t.Run(name, func(t *testing.T) { newMounted(t, nil, mount).assertPulls(t) })
	}
}

func patterns(p *pullthrough.Proxy, next http.Handler) http.Handler {
	m := http.NewServeMux()
	m.Handle("GET /v2/{rest...}", p)
	m.Handle("POST /v2/{rest...}", next)
	return m
}

func sorting(p *pullthrough.Proxy, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if pullthrough.IsRegistryRequest(r) {
			p.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func TestTheVersionCheckIsNotRedirected(t *testing.T) {
	for name, mount := range map[string]func(p *pullthrough.Proxy, next http.Handler) http.Handler{
		"ServeMux":                   func(p *pullthrough.Proxy, next http.Handler) http.Handler { return mux(p, next) },
		"ServeMux behind path.Clean": func(p *pullthrough.Proxy, next http.Handler) http.Handler { return cleaning(mux(p, next)) },
		"path.Clean alone":           func(p *pullthrough.Proxy, _ http.Handler) http.Handler { return cleaning(p) },
		"IsRegistryRequest":          sorting,
		"bare writer":                func(p *pullthrough.Proxy, _ http.Handler) http.Handler { return bare(p) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMounted(t, nil, mount)
			for _, uri := range []string{"/v2", "/v2/"} {
				r := m.Get(t, uri)
				assert.Equal(t, 200, r.StatusCode, uri)
				assert.Equal(t, "registry/2.0", r.Header.Get("Docker-Distribution-Api-Version"))
			}
			assert.Empty(t, m.next.take())
			assert.Empty(t, m.Up.Log())
		})
	}
}

func TestABareWriterIsCutShortToo(t *testing.T) {
	m := newMounted(t, nil, func(p *pullthrough.Proxy, _ http.Handler) http.Handler { return bare(p) })
	m.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/aa/blobs/*", Flip: new(int64(7))})
	layer := m.img.Layers[0]
	testkit.AssertBroken(t, testkit.Fetch(t, m.Server, testkit.BlobPath("aa", layer.Digest)), testkit.BlobContent(t, layer))
	m.Settled(t)
	assert.NotZero(t, m.Up.Count(testkit.UpstreamGet(testkit.BlobPath("aa", layer.Digest), 200)))
}

func TestIsRegistryRequest(t *testing.T) {
	d := someDigest.String()
	for uri, want := range map[string]bool{
		"/v2":                                   true,
		"/v2/":                                  true,
		"/v2/_catalog":                          true,
		"/v2/aa/manifests/v1":                   true,
		"/v2/aa/manifests/" + d:                 true,
		"/v2/aa/blobs/" + d:                     true,
		"/v2/aa/blobs/uploads/":                 true,
		"/v2/aa/blobs/uploads/5f0c?digest=" + d: true,
		"/v2/aa/tags/list?n=5":                  true,
		"/v2/aa/referrers/" + d:                 true,
		"/v2/aa/b/c/manifests/v1":               true,
		"/v2/apis":                              false,
		"/v2/apis/abc":                          false,
		"/v2/apis/abc/routes/def":               false,
		"/v2/tags/arn:aws:apigateway:us-east-1::/apis/abc":               false,
		"/v2/tags/arn%3Aaws%3Aapigateway%3Aus-east-1%3A%3A%2Fapis%2Fabc": false,
		"/v2/tags/list":                       false,
		"/v2/email/identities":                false,
		"/v2/email/outbound-emails":           false,
		"/v2/email/configuration-sets/x/tags": false,
		"/v2/vpclinks/abc":                    false,
		"/v2x":                                false,
		"/v2-x/aa/manifests/v1":               false,
		"/v2.0/aa/manifests/v1":               false,
		"/v1/aa/manifests/v1":                 false,
		"/bucket/v2/aa/manifests/v1":          false,
		"/":                                   false,
		"/aa/manifests/v1":                    false,
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost} {
			r := httptest.NewRequest(method, "http://"+testkit.RegistryHost+uri, nil)
			assert.Equal(t, want, pullthrough.IsRegistryRequest(r), "%s %s", method, uri)
		}
	}
}

func TestHostIdentity(t *testing.T) {
	ours := pullthrough.Identity{Account: testkit.RegistryAccount, Region: "eu-west-1"}
	for host, want := range map[string]pullthrough.Identity{
		testkit.RegistryHost:                                     ours,
		testkit.RegistryHost + ":443":                            ours,
		"123456789012.dkr.ecr.eu-west-1.localhost:5000":          ours,
		"123456789012.dkr.ecr.eu-west-1.amazonaws.com.cn":        ours,
		"000000000000.dkr.ecr.us-gov-west-1.localhost.emu.cloud": {Account: "000000000000", Region: "us-gov-west-1"},
		"123456789012.dkr.ecr-fips.eu-west-1.amazonaws.com":      ours,
		"123456789012.dkr-ecr.eu-west-1.on.aws":                  ours,
		"123456789012.dkr-ecr-fips.eu-west-1.on.aws":             ours,
		"123456789012.dkr-ecr.eu-west-1.emulator.test:4566":      ours,
		"123456789012.dkrecr.eu-west-1.on.aws":                   {},
		"123456789012.dkr-ecrs.eu-west-1.on.aws":                 {},
		"123456789012.dkr":                                       {},
		"123456789012.dkr.":                                      {},
		"localhost:5000":                                         {},
		"127.0.0.1:5000":                                         {},
		"[::1]:5000":                                             {},
		"::1":                                                    {},
		"":                                                       {},
		":5000":                                                  {},
		"dkr.ecr.eu-west-1.amazonaws.com":                        {},
		"123456789012.dkr.ecr":                                   {},
		"123456789012.dkr.ecr.":                                  {},
		"x.123456789012.dkr.ecr.eu-west-1.amazonaws.com":         {},
		"123456789012.dkr.s3.eu-west-1.amazonaws.com":            {},
		"123456789012.ecr.dkr.eu-west-1.amazonaws.com":           {},
		".dkr.ecr.eu-west-1.amazonaws.com":                       {},
		"public.ecr.aws":                                         {},
	} {
		got, err := pullthrough.HostIdentity(&http.Request{Host: host, URL: &url.URL{Path: "/v2/"}})
		assert.NoError(t, err)
		assert.Equal(t, want, got, host)
	}
}

// An account in a Region is a world of its own: its rules, and what it stored.
func TestRulesPerAccountAndRegion(t *testing.T) {
	hosts := map[string]string{ // to the name upstream
		"111111111111.dkr.ecr.eu-west-1.amazonaws.com":      "first",
		"111111111111.dkr.ecr.us-east-1.amazonaws.com:8443": "second",
		"222222222222.dkr.ecr.eu-west-1.emulator.localhost": "third",
	}
	f := testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		rules, ok := p.Rules.(pullthrough.StaticRules)
		require.True(t, ok)
		p.Identify = pullthrough.HostIdentity
		p.Rules = pullthrough.RuleSourceFunc(func(_ context.Context, account, region string) ([]pullthrough.Rule, error) {
			rule := rules[0]
			switch account + " " + region {
			case "111111111111 eu-west-1":
				rule.UpstreamPrefix = "first"
			case "111111111111 us-east-1":
				rule.UpstreamPrefix = "second"
			case "222222222222 eu-west-1":
				rule.UpstreamPrefix = "third"
			default:
				return nil, nil
			}
			return []pullthrough.Rule{rule}, nil
		})
	})
	images := map[string]*pullthroughtest.Image{}
	for i, name := range []string{"first", "second", "third"} {
		images[name] = pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i)})
		f.Up.Push(name+"/a", "v1", images[name])
	}
	f.Up.Reset()
	for range 2 { // cold, warm
		for host, name := range hosts {
			img := images[name]
			testkit.AssertManifest(t, f.Get(t, testkit.ManifestPath("a", "v1"), "Host", host), http.MethodGet, img, img.Digest)
			r := f.Get(t, testkit.BlobPath("a", img.Layers[0].Digest), "Host", host)
			testkit.AssertContent(t, r, img.Layers[0].Digest, testkit.OctetStream, int(img.Layers[0].Size))
			f.Settled(t)
		}
	}
	assert.Len(t, f.Up.Log(), 2*len(hosts), "upstream: %s", f.Up.Log())
	for _, name := range hosts {
		assert.Equal(t, 1, f.Up.Count("GET /v2/"+name+"/a/manifests/v1 200"))
	}

	f.Up.Reset()
	first := images["first"]
	for _, object := range []string{testkit.ManifestPath("a", "v1"), testkit.ManifestPath("a", first.Digest.String()), testkit.BlobPath("a", first.Layers[0].Digest)} {
		stranger := f.Get(t, object, "Host", "333333333333.dkr.ecr.eu-west-1.amazonaws.com")
		assert.Equal(t, testkit.SayNoRepository("hub/a", "333333333333"), testkit.AssertOCI(t, stranger, 404, "NAME_UNKNOWN"))
	}
	assert.Empty(t, f.Up.Log(), "no rule, no upstream")
	for _, host := range []string{"222222222222.dkr.ecr.eu-west-1.emulator.localhost", "111111111111.dkr.ecr.us-east-1.amazonaws.com"} {
		assert.Equal(t, 404, f.Get(t, testkit.ManifestPath("a", first.Digest.String()), "Host", host).StatusCode, "what another account stored is not seen")
		assert.Equal(t, 404, f.Get(t, testkit.BlobPath("a", first.Layers[0].Digest), "Host", host).StatusCode)
	}
	assert.Equal(t, 4, f.Up.Count("GET * 404"), "upstream: %s", f.Up.Log())
}
