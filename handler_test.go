package pullthrough_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// shelf is a registry of the host's own that reads URL.Path, as most do. It has
// what was put there, and knows who may have it.
type shelf struct {
	mu      sync.Mutex
	has     map[string]string // by path
	refuses func(*http.Request) int
	asked   []string
}

func newShelf(paths ...string) *shelf {
	s := &shelf{has: map[string]string{}}
	for _, p := range paths {
		s.has[p] = "next has " + p
	}
	return s
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, r.Method+" "+r.URL.Path)
	w.Header().Set("X-Next", "yes")
	if s.refuses != nil {
		if status := s.refuses(r); status != 0 {
			w.Header().Set("WWW-Authenticate", `Bearer realm="https://next.example/token",service="next"`)
			w.WriteHeader(status)
			_, _ = io.WriteString(w, "next refuses "+r.Header.Get("Authorization"))
			return
		}
	}
	content, ok := s.has[r.URL.Path]
	if !ok && r.URL.Path != "/v2/" {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, "next has nothing")
		return
	}
	_, _ = io.WriteString(w, content)
}

// take returns what was asked since the last take.
func (s *shelf) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = nil
	return asked
}

// beside is a world before a shelf.
type beside struct {
	*testkit.Face
	*shelf
	img *pullthroughtest.Image
}

func newBeside(t *testing.T, next *shelf, change func(*pullthrough.Proxy)) *beside {
	t.Helper()
	w := testkit.NewWorld(t, pullthroughtest.Config{}, change)
	b := &beside{Face: &testkit.Face{World: w, Server: testkit.Serve(t, w.Handler(next))}, shelf: next}
	b.img = pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 2 << 20})
	b.Up.Push("a", "1", b.img)
	b.Up.Reset()
	return b
}

func (b *beside) manifest() string { return testkit.ManifestPath("a", "1") }
func (b *beside) layer() string    { return testkit.BlobPath("a", b.img.Layers[0].Digest) }

// misspelled are paths of which a router may make another one.
var misspelled = []string{
	"/v2/hub%2Fsecret/manifests/1", "/v2/hub/secret/manifests/%31", "/v2/hub/s%65cret/manifests/1", "/v2/hub/secret%2Fmanifests%2F1", "/v2/%68ub/secret/manifests/1",
	"/v2/hub/secret/%6Danifests/1", "/v2/hub%252Fsecret/manifests/1", "/v2/hub/secret/manifests/1/", "/v2/hub//secret/manifests/1", "/v2//hub/secret/manifests/1",
	"/v2/./hub/secret/manifests/1", "/v2/x/../hub/secret/manifests/1", "/v2/hub/secret/x/../manifests/1", "/v2/x/%2e%2e/hub/secret/manifests/1",
	"//v2/hub/secret/manifests/1", "/x/../v2/hub/secret/manifests/1", "/%76%32/hub/secret/manifests/1", "/v2/hub/secret/manifests/./1", "/v2/x/../hub/secret/tags/list",
	"/v2/hub/secret/blobs/sha256%3a" + testkit.Hex64 + "%2e", "/v2/hub%2fsecret/blobs/sha256:" + testkit.Hex64, "/v2/hub/secret/referrers%2Fsha256:" + testkit.Hex64,
	"/v2/mine/x%2Fy/manifests/1", "/v2/mine/manifests/%31", "/v2/hub\\secret/manifests/1",
}

func TestWhatNextCouldReadOtherwiseIsRefused(t *testing.T) {
	readings := map[string]func(http.Handler) http.Handler{
		"reads the path":  func(h http.Handler) http.Handler { return h },
		"cleans the path": cleaning,
		"ServeMux": func(h http.Handler) http.Handler {
			m := http.NewServeMux()
			m.Handle("GET /v2/{name...}", h)
			return m
		},
		"unescapes it once more": func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				u, err := r.URL.Parse(r.URL.Path)
				if err == nil {
					r.URL = u
				}
				h.ServeHTTP(w, r)
			})
		},
	}
	for name, reading := range readings {
		t.Run(name, func(t *testing.T) {
			next := newShelf("/v2/hub/secret/manifests/1", "/v2/hub/secret/tags/list", "/v2/hub/secret/blobs/sha256:"+testkit.Hex64)
			door := &testkit.Door{Refuse: map[pullthrough.Action]error{pullthrough.ActionPull: pullthrough.ErrDenied}}
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Authorize = door.Authorize })
			h := w.Handler(reading(next))
			for _, uri := range misspelled {
				for _, method := range []string{http.MethodGet, http.MethodHead} {
					for face, h := range map[string]http.Handler{"Handler": h, "ServeHTTP": w.Proxy} {
						rec := httptest.NewRecorder()
						r := httptest.NewRequest(method, "/", nil)
						var err error
						r.URL, err = url.ParseRequestURI(uri)
						require.NoError(t, err)
						h.ServeHTTP(rec, r)
						assert.Equal(t, http.StatusBadRequest, rec.Code, "%s %s %s", face, method, uri)
					}
				}
			}
			assert.Empty(t, next.take())
			assert.Empty(t, w.Up.Log())
		})
	}
}

func TestWhatBreaksTheGrammarIsRefusedWhereARuleCoversIt(t *testing.T) {
	b := newBeside(t, newShelf(), nil)
	for _, uri := range []string{
		"/v2/hub/Secret/manifests/1", "/v2/hub/a_/manifests/1", "/v2/hub/a/manifests/-1", "/v2/hub/a/manifests/" + strings.Repeat("x", 129),
		"/v2/hub/a/blobs/md5:abc", "/v2/hub/a/blobs/latest", "/v2/hub/a/referrers/latest", "/v2/hub/a/manifests/sha256:abc",
	} {
		assert.Equal(t, 400, b.Get(t, uri).StatusCode, uri)
		assert.Equal(t, 400, b.Ask(t, http.MethodHead, uri).StatusCode, uri)
	}
	assert.Empty(t, b.take())
	assert.Empty(t, b.Up.Log())
}

func strangersAreRefused(*http.Request) (pullthrough.Identity, error) {
	return pullthrough.Identity{}, pullthrough.ErrUnauthorized
}

func TestUnknownCallersPullNothingFromNext(t *testing.T) {
	const account = "123456789012"
	m := newMounted(t, func(p *pullthrough.Proxy) {
		rules := p.Rules
		p.Rules = pullthrough.RuleSourceFunc(func(ctx context.Context, a, region string) ([]pullthrough.Rule, error) {
			if a != account {
				return nil, nil
			}
			return rules.Rules(ctx, a, region)
		})
		p.Identify = func(r *http.Request) (pullthrough.Identity, error) {
			if r.Header.Get("Authorization") == "" {
				return strangersAreRefused(r)
			}
			return pullthrough.Identity{Account: account}, nil
		}
	}, around)
	pulls := append([]string{testkit.ManifestPath("aa", "v1"), testkit.BlobPath("aa", m.img.Layers[0].Digest)}, uncovered...)
	for _, uri := range pulls {
		r := sendURI(t, m.Server, http.MethodGet, uri, "")
		testkit.AssertOCI(t, r, 401, "UNAUTHORIZED")
		assert.NotEmpty(t, r.Header.Get("WWW-Authenticate"))
		assert.Equal(t, 401, sendURI(t, m.Server, http.MethodHead, uri, "").StatusCode)
	}
	assert.Empty(t, m.next.take())
	for _, uri := range others {
		m.next.assertHosts(t, sendURI(t, m.Server, http.MethodGet, uri, ""), http.MethodGet, uri, "")
	}
	assert.Empty(t, m.Up.Log())
	assert.Equal(t, 200, m.Get(t, pulls[0], "Authorization", "Basic x").StatusCode)
	assert.Equal(t, 1, m.Up.Count("*"))
}

func TestPassUnidentified(t *testing.T) {
	failure := pullthrough.ErrUnauthorized
	m := newMounted(t, func(p *pullthrough.Proxy) {
		p.PassUnidentified = true
		p.Identify = func(*http.Request) (pullthrough.Identity, error) { return pullthrough.Identity{}, failure }
	}, around)
	for _, uri := range uncovered {
		m.next.assertHosts(t, sendURI(t, m.Server, http.MethodGet, uri, ""), http.MethodGet, uri, "")
	}
	testkit.AssertOCI(t, m.Get(t, testkit.ManifestPath("aa", "v1")), 401, "UNAUTHORIZED")
	failure = errors.New("the directory is down")
	for _, uri := range uncovered {
		assert.Equal(t, 500, sendURI(t, m.Server, http.MethodGet, uri, "").StatusCode, "that is no unknown caller")
	}
	requests, _ := m.door.Requests()
	assert.Empty(t, requests)
	assert.Empty(t, m.next.take())
	assert.Empty(t, m.Up.Log())
}

// A client leaves out of a push what seems to be there.
func TestHeadOfABlobIsNextsUnlessItIsStored(t *testing.T) {
	b := newBeside(t, newShelf(), nil)
	require.Equal(t, 200, b.Get(t, b.manifest()).StatusCode)
	b.Settled(t)
	b.Up.Reset()
	for range 2 {
		r := b.Ask(t, http.MethodHead, b.layer())
		assert.Equal(t, 404, r.StatusCode)
		assert.Equal(t, "yes", r.Header.Get("X-Next"))
	}
	assert.Empty(t, b.Up.Log())
	assert.Equal(t, []string{"HEAD " + b.layer(), "HEAD " + b.layer()}, b.take())

	layer := b.img.Layers[0]
	testkit.AssertContent(t, b.Get(t, b.layer()), layer.Digest, testkit.OctetStream, int(layer.Size))
	b.Settled(t)
	testkit.AssertContent(t, b.Ask(t, http.MethodHead, b.layer()), layer.Digest, testkit.OctetStream, int(layer.Size))
	testkit.AssertManifest(t, b.Ask(t, http.MethodHead, testkit.ManifestPath("a", b.img.Digest.String())), http.MethodHead, b.img, b.img.Digest)
	assert.Empty(t, b.take())
	assert.Equal(t, 1, b.Up.Count("*"))
}

func TestHeadOfAStoredBlobIsStillAuthorized(t *testing.T) {
	door := &testkit.Door{}
	b := newBeside(t, newShelf(), func(p *pullthrough.Proxy) { p.Authorize = door.Authorize })
	door.Set(map[pullthrough.Action]error{pullthrough.ActionPull: pullthrough.ErrDenied})
	for range 2 {
		assert.Equal(t, 403, b.Ask(t, http.MethodHead, b.layer()).StatusCode)
		door.Set(nil)
		require.Equal(t, 200, b.Get(t, b.layer()).StatusCode)
		b.Settled(t)
		door.Set(map[pullthrough.Action]error{pullthrough.ActionPull: pullthrough.ErrDenied})
	}
	assert.Empty(t, b.take())
	assert.Equal(t, 1, b.Up.Count("*"))
}

// Where nothing comes from upstream next may have what was pushed to it.
func TestWhenNothingComesFromUpstreamNextIsAsked(t *testing.T) {
	offline := func(p *pullthrough.Proxy) {
		p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{Offline: true}
		}
	}
	noRetry := func(p *pullthrough.Proxy) {
		p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{Retries: -1}
		}
	}
	for name, c := range map[string]struct {
		change func(*pullthrough.Proxy)
		fault  pullthroughtest.Fault
		status int
		retry  string
	}{
		"offline":               {change: offline, status: 502},
		"upstream fails":        {change: noRetry, fault: pullthroughtest.Fault{Status: 500}, status: 502},
		"upstream limits rates": {change: noRetry, fault: pullthroughtest.Fault{Status: 429, Header: http.Header{"Retry-After": {"70"}}}, status: 429, retry: "70"},
		"upstream refuses us":   {fault: pullthroughtest.Fault{Status: 403}, status: 403},
		"upstream has it not":   {fault: pullthroughtest.Fault{Status: 404}, status: 404},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBeside(t, newShelf(testkit.ManifestPath("a", "pushed")), c.change)
			b.has[testkit.BlobPath("a", someDigest)] = "layer"
			if c.fault.Status != 0 {
				b.Up.Fault(c.fault)
			}
			for _, uri := range []string{testkit.ManifestPath("a", "pushed"), testkit.BlobPath("a", someDigest)} {
				r := b.Get(t, uri)
				assert.Equal(t, 200, r.StatusCode, uri)
				assert.Equal(t, b.has[uri], string(r.Content))
				assert.Equal(t, "yes", r.Header.Get("X-Next"))
				assert.Equal(t, 200, b.Ask(t, http.MethodHead, uri).StatusCode)
			}
			for _, uri := range []string{b.manifest(), b.layer(), testkit.ManifestPath("a", b.img.Digest.String())} {
				r := b.Get(t, uri)
				assert.Equal(t, c.status, r.StatusCode, "%s: our own error, %s", uri, r.Content)
				code, _ := testkit.OCIError(t, r)
				assert.NotEmpty(t, code)
				assert.Equal(t, c.retry, r.Header.Get("Retry-After"))
				assert.Empty(t, r.Header.Get("X-Next"), "nothing of next's answer is left")
				h := b.Ask(t, http.MethodHead, uri)
				assert.Equal(t, 404, h.StatusCode, "next's answer")
				assert.Equal(t, "yes", h.Header.Get("X-Next"))
			}
			b.refuses = func(*http.Request) int { return 401 }
			r := b.Get(t, b.manifest())
			assert.Equal(t, 401, r.StatusCode)
			assert.Contains(t, r.Header.Get("WWW-Authenticate"), "next.example")
			assert.Contains(t, string(r.Content), "next refuses")
			assert.Equal(t, c.fault.Status == 0, len(b.Up.Log()) == 0)
		})
	}
}

func TestAfterShutdownNextIsAsked(t *testing.T) {
	b := newBeside(t, newShelf(testkit.ManifestPath("a", "pushed")), nil)
	require.NoError(t, b.Shutdown(t.Context()))
	assert.Equal(t, 200, b.Get(t, testkit.ManifestPath("a", "pushed")).StatusCode)
	assert.Equal(t, 404, b.Ask(t, http.MethodHead, b.manifest()).StatusCode)
	testkit.AssertOCI(t, b.Get(t, b.manifest()), 503, "UNAVAILABLE")
	assert.Empty(t, b.Up.Log())
}

func TestARefusalNeverReachesNext(t *testing.T) {
	door := &testkit.Door{}
	b := newBeside(t, newShelf(testkit.ManifestPath("a", "1")), func(p *pullthrough.Proxy) {
		p.Authorize = door.Authorize
		p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{TagTTL: pullthrough.EveryPull, RefuseStale: true}
		}
	})
	for refusal, err := range map[string]error{
		"a word": errors.New("no"), "like upstream's": &pullthrough.Error{Kind: pullthrough.ErrUnavailable},
		"like a miss":         &pullthrough.Error{Kind: pullthrough.ErrNotFound, Status: 404},
		"like what is next's": pullthrough.ErrNoRule, "like what is next's, in full": &pullthrough.Error{Kind: pullthrough.ErrNoRule},
	} {
		for _, action := range []pullthrough.Action{pullthrough.ActionPull, pullthrough.ActionImport} {
			door.Set(map[pullthrough.Action]error{action: err})
			assert.GreaterOrEqual(t, b.Get(t, b.manifest()).StatusCode, 400, "%s %s", refusal, action)
			assert.GreaterOrEqual(t, b.Ask(t, http.MethodHead, b.manifest()).StatusCode, 400)
			assert.GreaterOrEqual(t, b.Get(t, b.layer()).StatusCode, 400)
		}
	}
	assert.Empty(t, b.Up.Log())
	door.Set(nil)
	require.Equal(t, 200, b.Get(t, b.manifest()).StatusCode)
	b.Settled(t)
	b.Up.Fault(pullthroughtest.Fault{Status: 403})
	assert.Equal(t, 403, b.Get(t, b.manifest()).StatusCode, "RefuseStale: something is stored")
	assert.Equal(t, 403, b.Ask(t, http.MethodHead, b.manifest()).StatusCode)
	assert.Empty(t, b.take())
}

func TestARuleSourceThatFailsRefusesPullsAlone(t *testing.T) {
	var log bytes.Buffer
	var failing error
	b := newBeside(t, newShelf("/v2/mine/manifests/1", "/v2/mine/tags/list"), func(p *pullthrough.Proxy) {
		rules := p.Rules
		p.Logger = slog.New(slog.NewTextHandler(&log, nil))
		p.Rules = pullthrough.RuleSourceFunc(func(ctx context.Context, account, region string) ([]pullthrough.Rule, error) {
			if failing != nil {
				return nil, failing
			}
			return rules.Rules(ctx, account, region)
		})
	})
	require.Equal(t, 200, b.Get(t, b.manifest()).StatusCode)
	require.Equal(t, 200, b.Get(t, b.layer()).StatusCode)
	b.Settled(t)
	b.Up.Reset()
	failing = fmt.Errorf("the table is locked: %w", pullthrough.ErrNoRule) // it says so, and nobody knows
	config := testkit.BlobPath("a", b.img.Config.Digest)
	for _, uri := range []string{testkit.ManifestPath("a", "2"), config, "/v2/mine/manifests/1"} {
		testkit.AssertOCI(t, b.Get(t, uri), 500, "UNKNOWN")
		assert.Equal(t, 500, b.Ask(t, http.MethodHead, uri).StatusCode, uri)
	}
	assert.Contains(t, log.String(), "the table is locked")
	assert.Empty(t, b.take())
	assert.Equal(t, 200, b.Get(t, testkit.ManifestPath("a", b.img.Digest.String())).StatusCode, "what is stored is served")
	assert.Equal(t, 200, b.Get(t, b.layer()).StatusCode)
	assert.Equal(t, 200, b.Ask(t, http.MethodHead, b.layer()).StatusCode)
	assert.Empty(t, b.take())
	lines := strings.Count(log.String(), "\n")
	assert.Equal(t, 200, b.Get(t, "/v2/mine/tags/list").StatusCode)
	assert.Equal(t, 404, testkit.Send(t, b.Server, http.MethodPost, "/v2/hub/a/blobs/uploads/", "").StatusCode)
	assert.Equal(t, []string{"GET /v2/mine/tags/list", "POST /v2/hub/a/blobs/uploads/"}, b.take(), "what is not ours goes on")
	assert.Equal(t, lines, strings.Count(log.String(), "\n"))
	assert.Empty(t, b.Up.Log())
}

func TestAskNext(t *testing.T) {
	for name, login := range map[string]bool{"for the object": false, "for a login": true} {
		t.Run(name, func(t *testing.T) {
			b := newBeside(t, newShelf(), func(p *pullthrough.Proxy) { p.AskNext, p.LoginSuffices = true, login })
			status := map[string]int{"": 401, "Bearer eve": 403, "Bearer down": 503, "Bearer ann": 0}
			b.refuses = func(r *http.Request) int { return status[r.Header.Get("Authorization")] }
			uris := []string{b.manifest(), b.layer(), "/v2/hub/a/referrers/" + b.img.Digest.String()}
			for range 2 { // cold and warm: nothing that next said of ann is remembered for others
				for auth, status := range status {
					for _, uri := range uris {
						r := b.Get(t, uri, "Authorization", auth, "If-None-Match", "x")
						h := b.Ask(t, http.MethodHead, uri, "Authorization", auth)
						if status == 0 {
							assert.Equal(t, 200, r.StatusCode)
							assert.Empty(t, r.Header.Get("X-Next"))
							continue
						}
						for _, r := range []testkit.Reply{r, h} {
							assert.Equal(t, status, r.StatusCode, "%s %s", auth, uri)
							assert.Equal(t, `Bearer realm="https://next.example/token",service="next"`, r.Header.Get("WWW-Authenticate"), "next's own words")
							assert.NoError(t, r.Err)
						}
						assert.Equal(t, "next refuses "+auth, string(r.Content))
						assert.Empty(t, h.Content)
					}
				}
				b.Settled(t)
			}
			asked := b.take()
			if login {
				assert.Contains(t, asked, "GET /v2/")
				assert.NotContains(t, asked, "GET "+b.manifest())
			} else {
				assert.Contains(t, asked, "HEAD "+b.manifest())
				assert.Contains(t, asked, "HEAD "+testkit.ManifestPath("a", b.img.Digest.String()), "the subject of the list")
			}
			assert.Equal(t, 3, b.Up.Count("*"), "one of each: %s", b.Up.Log())
		})
	}
}

// A question for a part or a version of the object would be another question.
func TestAskNextAsksForNoPart(t *testing.T) {
	for name, login := range map[string]bool{"for the object": false, "for a login": true} {
		t.Run(name, func(t *testing.T) {
			var asked http.Header
			next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked = r.Header.Clone()
				http.ServeContent(w, r, "", time.Unix(1e9, 0), strings.NewReader("{}"))
			})
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.AskNext, p.LoginSuffices = true, login })
			srv := testkit.Serve(t, w.Handler(next))
			img := testkit.Image(1)
			w.Up.Push("a", "1", img)
			path := testkit.BlobPath("a", img.Layers[0].Digest)
			require.Equal(t, 200, testkit.Send(t, srv, http.MethodGet, path, "").StatusCode)
			w.Settled(t)
			for header, value := range map[string]string{
				"Range": "bytes=4-5", "If-Match": testkit.ETag(img.Layers[0].Digest), "If-Unmodified-Since": "Mon, 02 Jan 1995 15:04:05 GMT",
			} {
				r := testkit.Send(t, srv, http.MethodGet, path, "", header, value, "Authorization", "Basic x")
				assert.Less(t, r.StatusCode, 300, "%s: %s", header, r.Content)
				assert.Empty(t, asked.Get(header))
				assert.Equal(t, "Basic x", asked.Get("Authorization"))
			}
			assert.Equal(t, 1, w.Up.Count("*"))
		})
	}
}

// A router that knows no /v2/ must not open the door.
func TestOnlyASuccessIsALogin(t *testing.T) {
	b := newBeside(t, newShelf(), func(p *pullthrough.Proxy) { p.AskNext, p.LoginSuffices = true, true })
	for _, status := range []int{301, 302, 307, 401, 403, 404, 405, 500} {
		b.refuses = func(*http.Request) int { return status }
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			r := b.Ask(t, method, b.manifest())
			assert.Equal(t, status, r.StatusCode)
			assert.Equal(t, "yes", r.Header.Get("X-Next"))
		}
	}
	assert.Empty(t, b.Up.Log())
	b.refuses = nil
	assert.Equal(t, 200, b.Get(t, b.manifest()).StatusCode)
	assert.Equal(t, 1, b.Up.Count("*"))
}

// The repositories of next may have names that no upstream has.
func TestUnderROOTNamesOutsideTheGrammarAreNexts(t *testing.T) {
	paths := []string{"/v2/a/manifests/1", "/v2/Mine/manifests/1", "/v2/a/blobs/" + someDigest.String(), "/v2/" + strings.Repeat("a", 300) + "/manifests/1"}
	b := newBeside(t, newShelf(paths...), func(p *pullthrough.Proxy) {
		rule := p.Rules.(pullthrough.StaticRules)[0]
		root := rule
		root.Prefix, root.UpstreamPrefix = "ROOT", ""
		p.Rules = pullthrough.StaticRules{rule, root}
	})
	for _, path := range paths {
		assert.Equal(t, b.has[path], string(b.Get(t, path).Content))
		assert.Equal(t, 200, b.Ask(t, http.MethodHead, path).StatusCode)
	}
	b.take()
	for _, path := range []string{"/v2/hub/Mine/manifests/1", "/v2/mine/manifests/-1", "/v2/mine/blobs/md5:1"} {
		assert.Equal(t, 400, b.Get(t, path).StatusCode, path)
	}
	assert.Empty(t, b.take())
	assert.Empty(t, b.Up.Log())
}

func TestWhatNextIsAskedWithoutARule(t *testing.T) {
	b := newBeside(t, newShelf("/v2/mine/manifests/1"), func(p *pullthrough.Proxy) { p.AskNext = true })
	assert.Equal(t, 200, b.Get(t, "/v2/mine/manifests/1").StatusCode)
	assert.Equal(t, []string{"GET /v2/mine/manifests/1"}, b.take(), "it is asked once, for what is its own")
	assert.Empty(t, b.Up.Log())
}

// trickle writes half of its answer, and goes on when it is told to.
type trickle struct {
	status int
	goOn   chan struct{}
	err    error
}

func (h *trickle) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("X-Next", "yes")
	w.WriteHeader(http.StatusEarlyHints)
	w.WriteHeader(h.status)
	_, _ = io.WriteString(w, "one")
	c := http.NewResponseController(w)
	h.err = errors.Join(c.Flush(), c.SetWriteDeadline(time.Now().Add(time.Minute)))
	<-h.goOn
	_, _ = io.Copy(w, strings.NewReader("two"))
}

func TestNextsAnswerIsStreamed(t *testing.T) {
	next := &trickle{status: 200, goOn: make(chan struct{})}
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	srv := testkit.Serve(t, w.Handler(next))
	resp, err := http.Get(srv.URL + testkit.ManifestPath("a", "nowhere"))
	require.NoError(t, err)
	assert.Equal(t, "one", string(testkit.RequireRead(t, resp.Body, 3)))
	close(next.goOn)
	r := testkit.ReadReply(t, resp)
	assert.Equal(t, "two", string(r.Content))
	assert.NoError(t, next.err)

	next.status = 404
	r = testkit.Send(t, srv, http.MethodGet, testkit.ManifestPath("a", "nowhere"), "")
	testkit.AssertOCI(t, r, 404, "MANIFEST_UNKNOWN")
	assert.Empty(t, r.Header.Get("X-Next"))
	assert.NoError(t, next.err)
	assert.Equal(t, 1, w.Up.Count("*"))
}

// With Policy.UpstreamTags a list of tags has what next lists and what upstream has.
func TestHandlerMergesTags(t *testing.T) {
	var policy pullthrough.Policy
	next := &pagedTags{}
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy { return policy }
	})
	b := &testkit.Face{World: w, Server: testkit.Serve(t, w.Handler(next))}
	img := testkit.Image(1)
	for _, tag := range []string{"1", "2"} {
		b.Up.Push("a", tag, img)
	}
	b.Up.Reset()
	list := func() string { return string(b.Get(t, "/v2/hub/a/tags/list").Content) }
	assert.JSONEq(t, `{"tags":["2"]}`, list(), "next's own page")
	assert.Empty(t, b.Up.Log())

	policy.UpstreamTags = true
	assert.JSONEq(t, `{"name":"hub/a","tags":["1","2","mine"]}`, list())
	r := b.Get(t, "/v2/hub/a/tags/list?n=1&last=1")
	assert.JSONEq(t, `{"name":"hub/a","tags":["2"]}`, string(r.Content))
	assert.Contains(t, r.Header.Get("Link"), "/v2/hub/a/tags/list?last=.Mg&n=1")
	assert.Equal(t, []string{"GET /v2/a/tags/list 200"}, b.Up.Log())
	assert.JSONEq(t, `{"tags":["2"]}`, string(b.Get(t, "/v2/other/tags/list").Content), "no rule covers it")

	for status, want := range map[int]int{401: 401, 403: 403, 500: 500, 404: 200} {
		next.status = status
		assert.Equal(t, want, b.Get(t, "/v2/hub/a/tags/list").StatusCode)
	}
	next.status = 404
	b.Up.Push("b", "1", img)
	assert.JSONEq(t, `{"name":"hub/b","tags":["1"]}`, string(b.Get(t, "/v2/hub/b/tags/list").Content), "next has no such repository")
	testkit.AssertOCI(t, b.Get(t, "/v2/hub/none/tags/list"), 404, "NAME_UNKNOWN")
}

// pagedTags is a registry that lists two tags on two pages, or answers with a status.
type pagedTags struct{ status int }

func (p *pagedTags) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case p.status != 0:
		w.WriteHeader(p.status)
	case r.URL.Query().Get("last") == "":
		w.Header().Set("Link", "<"+r.URL.Path+`?last=2>; rel="next"`)
		_, _ = io.WriteString(w, `{"tags":["2"]}`)
	default:
		_, _ = io.WriteString(w, `{"tags":["mine"]}`)
	}
}

// A router that has no next handler to give asks first, and goes on where the answer is not the proxy's.
func TestTryServeAnswersWhatARuleCovers(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	w.Pull(t, "a", "1", img)
	cold := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	w.Up.Push("b", "1", cold)
	for _, c := range []struct {
		method, path string
		status       int // 0: it is the host's
	}{
		{"GET", testkit.ManifestPath("a", "1"), 200},
		{"HEAD", testkit.ManifestPath("a", "1"), 200},
		{"HEAD", testkit.ManifestPath("b", "1"), 200},
		{"GET", testkit.ManifestPath("a", "none"), 404},
		{"HEAD", testkit.ManifestPath("a", "none"), 0},
		{"GET", testkit.BlobPath("a", img.Config.Digest), 200},
		{"HEAD", testkit.BlobPath("a", img.Config.Digest), 200},
		{"HEAD", testkit.BlobPath("b", cold.Config.Digest), 0},
		{"GET", testkit.BlobPath("b", cold.Config.Digest), 200},
		{"GET", "/v2/hub/a/referrers/" + img.Digest.String(), 200},
		{"GET", "/v2/hub%2Fa/manifests/1", 400},
		{"GET", "/v2/mine/app/manifests/1", 0},
		{"GET", "/v2/hub/a/tags/list", 0},
		{"GET", "/v2/_catalog", 0},
		{"GET", "/v2/", 0},
		{"GET", "/v2/apis", 0},
		{"GET", "/", 0},
		{"PUT", testkit.ManifestPath("a", "1"), 0},
		{"POST", "/v2/hub/a/blobs/uploads/", 0},
		{"DELETE", testkit.ManifestPath("a", "1"), 0},
	} {
		rec := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), c.method, c.path, strings.NewReader("the body"))
		handled := w.TryServe(rec, r)
		assert.Equal(t, c.status != 0, handled, "%s %s", c.method, c.path)
		if handled {
			assert.Equal(t, c.status, rec.Code, "%s %s", c.method, c.path)
			continue
		}
		assert.Empty(t, rec.Header(), "%s %s", c.method, c.path)
		body, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		assert.Equal(t, "the body", string(body), "%s %s: it is the host's to read", c.method, c.path)
		assert.Equal(t, c.path, r.URL.EscapedPath())
	}
	w.Settled(t)
	assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/1 200"))
	assert.Equal(t, 1, w.Up.Count("GET /v2/b/blobs/*"))
}

// Where nobody can be asked for the login, nobody pulls, and the log says what to do.
func TestTryServeHasNoNextHandlerToAsk(t *testing.T) {
	var log bytes.Buffer
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.AskNext, p.Logger = true, slog.New(slog.NewTextHandler(&log, nil))
	})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	w.Pull(t, "a", "1", img)
	w.Up.Reset()
	for _, path := range []string{testkit.ManifestPath("a", "1"), testkit.BlobPath("a", img.Config.Digest), "/v2/hub/a/referrers/" + img.Digest.String()} {
		rec := httptest.NewRecorder()
		assert.True(t, w.TryServe(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)))
		assert.Equal(t, 500, rec.Code)
		assert.NotContains(t, rec.Body.String(), img.Digest.Encoded())
	}
	assert.Contains(t, log.String(), "use Proxy.Handler")
	assert.Empty(t, w.Up.Log())
}
