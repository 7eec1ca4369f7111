package conformance_test

import (
	"context"
	"math/rand"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/regclient/regclient"
	"github.com/regclient/regclient/config"
	"github.com/regclient/regclient/scheme/reg"
	regref "github.com/regclient/regclient/types/ref"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"oras.land/oras-go/v2"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/handlerstore"
)

// pushers copy an image from one registry to another.
var pushers = map[string]func(t *testing.T, from, to ref){
	"crane": func(t *testing.T, from, to ref) {
		t.Helper()
		require.NoError(t, crane.Copy(from.String(), to.String(), craneOptions(t)...))
	},
	"oras": func(t *testing.T, from, to ref) {
		t.Helper()
		_, err := oras.Copy(t.Context(), orasRepository(t, from), from.tag, orasRepository(t, to), to.tag, oras.DefaultCopyOptions)
		require.NoError(t, err)
	},
	"skopeo": func(t *testing.T, from, to ref) {
		t.Helper()
		requireSkopeo(t)
		skopeo(t, "copy", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false", "docker://"+from.String(), "docker://"+to.String())
	},
	"regclient": func(t *testing.T, from, to ref) {
		t.Helper()
		var hosts []config.Host
		for _, r := range []ref{from, to} {
			host := config.HostNewName(r.host)
			host.TLS = config.TLSDisabled
			hosts = append(hosts, *host)
		}
		rc := regclient.New(regclient.WithConfigHost(hosts...), regclient.WithRegOpts(reg.WithTransport(newTransport(t))))
		src, err := regref.New(from.String())
		require.NoError(t, err)
		dst, err := regref.New(to.String())
		require.NoError(t, err)
		require.NoError(t, rc.ImageCopy(t.Context(), src, dst))
	},
}

var fills = map[string]pullthrough.FillMode{
	"lazy": pullthrough.FillLazy, "background": pullthrough.FillBackground, "eager": pullthrough.FillEager,
}

// pushWorld is a registry behind a proxy, its upstream, and where pushed images come from.
type pushWorld struct {
	proxy                *pullthrough.Proxy
	host, inner, up, src *httptest.Server
	base, derived        v1.Image
}

// newPushWorld has the image app:base upstream, and app:mine, which is built on it, elsewhere.
func newPushWorld(t *testing.T, inner http.Handler, prefix string, fill pullthrough.FillMode, pol pullthrough.Policy) *pushWorld {
	t.Helper()
	w := &pushWorld{inner: httptest.NewServer(inner), up: httptest.NewServer(newGGCR()), src: httptest.NewServer(newGGCR())}
	w.proxy = &pullthrough.Proxy{
		Store:    &handlerstore.Store{Handler: inner},
		Rules:    pullthrough.StaticRules{{Prefix: prefix, UpstreamURL: w.up.URL}},
		Fill:     fill,
		SpoolDir: t.TempDir(),
		Policy:   func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy { return pol },
	}
	w.host = httptest.NewServer(w.proxy.Handler(inner))
	t.Cleanup(func() {
		for _, s := range []*httptest.Server{w.host, w.inner, w.src, w.up} {
			s.Close()
		}
		assert.NoError(t, w.proxy.Shutdown(context.Background()))
	})
	source := random.WithSource(rand.NewSource(7))
	var err error
	w.base, err = random.Image(20_000, 3, source)
	require.NoError(t, err)
	extra, err := random.Layer(500, types.DockerLayer, source)
	require.NoError(t, err)
	w.derived, err = mutate.AppendLayers(w.base, extra)
	require.NoError(t, err)
	pushImage(t, at(w.up, "app", "base"), w.base)
	pushImage(t, at(w.src, "app", "mine"), w.derived)
	return w
}

func at(s *httptest.Server, repo, tag string) ref {
	return ref{host: strings.TrimPrefix(s.URL, "http://"), repo: repo, tag: tag}
}

// assertWhole pulls the pushed image through the proxy and from the registry alone.
func (w *pushWorld) assertWhole(t *testing.T, repo string, want v1.Image) {
	t.Helper()
	digest, err := want.Digest()
	require.NoError(t, err)
	for name, server := range map[string]*httptest.Server{"through the proxy": w.host, "from the registry": w.inner} {
		got := cranePull(t, at(server, repo, "mine"), docker)
		assert.Equal(t, digest.String(), got.Root.String(), name)
		assert.Len(t, got.Blobs, 5, name)
	}
}

// coveredNames are repositories, by the prefix of the rule that covers them.
var coveredNames = map[string]string{"hub": "hub/app", "ROOT": "app"}

// A client asks what of an image is there before it pushes the rest. What only upstream
// has is not there.
func TestAPushIsWholeWithoutUpstream(t *testing.T) {
	for inner, open := range innerRegistries {
		for client, push := range pushers {
			for mode, fill := range fills {
				for prefix, repo := range coveredNames {
					for before, pulled := range map[string]bool{"": false, ", its base was pulled": true} {
						t.Run(strings.Join([]string{client, inner, mode, prefix + before}, "/"), func(t *testing.T) {
							t.Parallel()
							w := newPushWorld(t, open(t), prefix, fill, pullthrough.Policy{})
							if pulled {
								cranePull(t, at(w.host, repo, "base"), docker)
							}
							push(t, at(w.src, "app", "mine"), at(w.host, repo, "mine"))
							w.up.Close()
							w.assertWhole(t, repo, w.derived)
						})
					}
				}
			}
		}
	}
}

// An image that upstream has under another tag is there, as far as a client can see: what
// is pushed then is a tag, and Fill says what the registry gets.
func TestAPushOfWhatUpstreamHasIsWholeWhereFillIsEager(t *testing.T) {
	for client, push := range pushers {
		for prefix, repo := range coveredNames {
			t.Run(client+"/"+prefix, func(t *testing.T) {
				t.Parallel()
				w := newPushWorld(t, innerRegistries["distribution"](t), prefix, pullthrough.FillEager, pullthrough.Policy{})
				pushImage(t, at(w.src, "app", "mine"), w.base)
				cranePull(t, at(w.host, repo, "base"), docker)
				require.NoError(t, w.proxy.Idle(t.Context()))
				push(t, at(w.src, "app", "mine"), at(w.host, repo, "mine"))
				w.up.Close()
				digest, err := w.base.Digest()
				require.NoError(t, err)
				for _, server := range []*httptest.Server{w.host, w.inner} {
					got := cranePull(t, at(server, repo, "mine"), docker)
					assert.Equal(t, digest.String(), got.Root.String())
				}
			})
		}
	}
}

func TestAPushNeedsNoUpstream(t *testing.T) {
	for client, push := range pushers {
		for prefix, repo := range coveredNames {
			for state, pol := range map[string]pullthrough.Policy{"away": {Retries: -1}, "offline": {Offline: true}} {
				t.Run(client+"/"+prefix+"/"+state, func(t *testing.T) {
					t.Parallel()
					w := newPushWorld(t, innerRegistries["distribution"](t), prefix, pullthrough.FillEager, pol)
					if !pol.Offline {
						w.up.Close()
					}
					push(t, at(w.src, "app", "mine"), at(w.host, repo, "mine"))
					w.assertWhole(t, repo, w.derived)
				})
			}
		}
	}
}

// A signature that was pushed is found through the proxy, as it is in the registry itself,
// beside those that upstream lists.
func TestReferrersOfAPushedImage(t *testing.T) {
	inner, up := newGGCR(ggcr.WithReferrersSupport(true)), httptest.NewServer(newGGCR(ggcr.WithReferrersSupport(true)))
	proxy := &pullthrough.Proxy{
		Store: &handlerstore.Store{Handler: inner}, Fill: pullthrough.FillEager,
		Rules: pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: up.URL}},
	}
	host, bare := httptest.NewServer(proxy.Handler(inner)), httptest.NewServer(inner)
	t.Cleanup(func() {
		host.Close()
		bare.Close()
		up.Close()
		assert.NoError(t, proxy.Shutdown(context.Background()))
	})
	base, err := random.Image(2000, 1, random.WithSource(rand.NewSource(1)))
	require.NoError(t, err)
	subject, err := partial.Descriptor(base)
	require.NoError(t, err)
	push := func(img v1.Image, srv *httptest.Server, to string) string {
		require.NoError(t, crane.Push(img, strings.TrimPrefix(srv.URL, "http://")+"/"+to, craneOptions(t)...))
		d, err := img.Digest()
		require.NoError(t, err)
		return d.String()
	}
	sign := func(seed int64) v1.Image {
		small, err := random.Image(100, 1, random.WithSource(rand.NewSource(seed)))
		require.NoError(t, err)
		return mutate.Subject(small, *subject).(v1.Image)
	}
	list := func(srv *httptest.Server, repo string) (digests []string) {
		at, err := name.NewDigest(strings.TrimPrefix(srv.URL, "http://") + "/" + repo + "@" + subject.Digest.String())
		require.NoError(t, err)
		index, err := remote.Referrers(at, remote.WithTransport(newTransport(t)), remote.WithContext(t.Context()))
		require.NoError(t, err)
		m, err := index.IndexManifest()
		require.NoError(t, err)
		for _, d := range m.Manifests {
			digests = append(digests, d.Digest.String())
		}
		return digests
	}
	push(base, host, "hub/app:mine")
	mine := push(sign(2), host, "hub/app:sig")
	assert.Equal(t, []string{mine}, list(bare, "hub/app"))
	assert.Equal(t, []string{mine}, list(host, "hub/app"))

	push(base, up, "signed:1")
	theirs := push(sign(3), up, "signed:sig")
	assert.Equal(t, []string{theirs}, list(host, "hub/signed"))
	ours := push(sign(4), host, "hub/signed:mine")
	assert.Equal(t, []string{ours, theirs}, list(host, "hub/signed"))
}
