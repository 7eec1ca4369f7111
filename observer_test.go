package pullthrough_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// logbook keeps the lines of a log.
type logbook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// lines are those so far, without their times.
func (l *logbook) lines() (lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		lines = append(lines, rest)
	}
	return lines
}

// errOops is what a host's code says, or panics with.
var errOops = errors.New("oops")

// fail returns an error, or panics.
type fail func() error

var failures = map[string]fail{"fails": func() error { return errOops }, "panics": func() error { panic(errOops) }}

// picky is a Store that wants to make repositories and to list tags, and fails to.
type picky struct {
	pullthrough.Store
	fail fail
}

func (p *picky) RepoExists(context.Context, pullthrough.Repo) (bool, error) { return false, nil }

func (p *picky) CreateRepo(context.Context, pullthrough.Repo, pullthrough.Rule, pullthrough.Request) error {
	return p.fail()
}

func (p *picky) Tags(context.Context, pullthrough.Repo) ([]string, error) { return nil, p.fail() }

// mishap is one way in which a pull goes wrong.
type mishap struct {
	fault  pullthroughtest.Fault    // of upstream's answers; without a Match to none
	auth   pullthroughtest.Auth     // that upstream wants
	tls    bool                     // upstream speaks https
	change func(*pullthrough.Proxy) // breaks the proxy
	spoil  func(*testkit.World)     // breaks the world
	path   string                   // of the request; "": of the manifest a:1
	status int                      // that the client reads; 0: 200
	cut    bool                     // the answer may break off, if it has begun
	line   []string                 // what the one line has
	asked  []string                 // upstream's requests
}

func withStore(change func(*testkit.FaultyStore)) func(*pullthrough.Proxy) {
	return func(p *pullthrough.Proxy) {
		s := &testkit.FaultyStore{Store: memstore.New()}
		change(s)
		p.Store = s
	}
}

const (
	manifestOfA = "GET /v2/a/manifests/1"
	blobOfA     = "GET /v2/a/blobs/LAYER"
)

// mishaps are those that are known. A newcomer must be able to act on the line of each.
func mishaps() map[string]mishap {
	manifests, blobs := "GET /v2/a/manifests/*", "GET /v2/a/blobs/*"
	const blob = "blob"
	answers := func(status int, header ...string) pullthroughtest.Fault {
		f := testkit.Status(status, header...)
		f.Match = manifests
		return f
	}
	all := map[string]mishap{
		"upstream 401": {
			fault: answers(401), status: 403,
			line:  []string{"WARN", "upstream refuses access: check the credentials of the rule", "rule=hub", "status=401"},
			asked: []string{manifestOfA + " 401"},
		},
		"upstream 403": {
			fault: answers(403), status: 403,
			line:  []string{"WARN", "upstream refuses access: check the credentials of the rule", "rule=hub", "status=403"},
			asked: []string{manifestOfA + " 403"},
		},
		"upstream 429": {
			fault: answers(429, "Retry-After", "3600"), status: 429,
			line:  []string{"WARN", "upstream limits the rate of requests", "status=429", "retryAfter=1h0m0s"},
			asked: []string{manifestOfA + " 429"},
		},
		"upstream 500": {
			fault: answers(500), status: 502,
			line:  []string{"WARN", "upstream has failed", "status=500"},
			asked: []string{manifestOfA + " 500"},
		},
		"an HTML page": {
			fault:  pullthroughtest.Fault{Match: manifests, Body: []byte("<html></html>"), Header: http.Header{"Content-Type": {"text/html"}, "Docker-Content-Digest": {}}},
			status: 502, line: []string{"WARN", "upstream gives no usable answer: check that the rule's UpstreamURL is a registry", "text/html"},
			asked: []string{manifestOfA + " 200"},
		},
		"a web server that is no registry": {
			fault:  pullthroughtest.Fault{Match: manifests, Status: 404, Body: []byte("404 page not found\n"), Header: http.Header{"Content-Type": {"text/plain; charset=utf-8"}}},
			status: 404, line: []string{"WARN", "upstream gives no usable answer: check that the rule's UpstreamURL is a registry", "status=404", "no registry's"},
			asked: []string{manifestOfA + " 404"},
		},
		"http to a registry that speaks https": {
			fault: answers(400), status: 502,
			line:  []string{"WARN", "if it speaks https, write https:// in the rule's UpstreamURL", "status=400"},
			asked: []string{manifestOfA + " 400"},
		},
		"a certificate that is not trusted": {
			tls: true, change: func(p *pullthrough.Proxy) { p.Transport = nil }, status: 502,
			line: []string{"WARN", "a certificate that is not trusted here", "SSL_CERT_FILE", "or set Proxy.Transport", "unknown authority"},
		},
		"a connection that is refused": {
			spoil: func(w *testkit.World) { w.Up.Close() }, status: 502,
			line: []string{"WARN", "upstream gives no usable answer", "connection refused"},
		},
		"a connection that is cut": {
			fault: pullthroughtest.Fault{Match: manifests, CutAfter: new(int64(10))}, status: 502,
			line:  []string{"WARN", "upstream gives no usable answer", "unexpected EOF"},
			asked: []string{manifestOfA + " 200"},
		},
		"wrong content": {
			fault: pullthroughtest.Fault{Match: blobs, Flip: new(int64(7))}, path: blob, cut: true, status: 502,
			line:  []string{"WARN", "content with another digest", "rule=hub"},
			asked: []string{blobOfA + " 200"},
		},
		"a blob whose size is not told": {
			fault: pullthroughtest.Fault{Match: "* /v2/a/blobs/*", Status: 500}, path: "HEAD blob", status: 502,
			line:  []string{"WARN", "upstream has failed", "status=500"},
			asked: []string{blobOfA + " 500"},
		},
		"a list of referrers that upstream refuses": {
			fault: pullthroughtest.Fault{Match: "GET /v2/a/referrers/*", Status: 500}, path: "referrers", status: 502,
			line:  []string{"WARN", "upstream has failed", "status=500"},
			asked: []string{"GET /v2/a/referrers/LAYER 500"},
		},
		"a tag that could not be checked": {
			spoil: func(w *testkit.World) {
				_ = w.Mem.PutManifest(context.Background(), testkit.Repo("a"), testkit.LocalManifest("1"))
			},
			fault:  pullthroughtest.Fault{Match: "HEAD /v2/a/manifests/1", Status: 500},
			change: testkit.WithPolicy(pullthrough.Policy{TagTTL: pullthrough.EveryPull, Retries: -1}),
			line:   []string{"WARN", "upstream has failed", "status=500"},
			asked:  []string{"HEAD /v2/a/manifests/1 500"},
		},
		"a wrong password": {
			auth: pullthroughtest.Bearer, status: 403,
			change: credentials(pullthrough.Credential{Username: "me", AccessToken: "canary-wrong"}, nil),
			line:   []string{"WARN", "upstream refuses access: check the credentials of the rule", "status=401"},
			asked:  []string{manifestOfA + " 401", "GET /token 401"},
		},
		"a secret that cannot be read": {
			auth: pullthroughtest.Bearer, status: 403, change: credentials(pullthrough.Credential{}, errOops),
			line:  []string{"WARN", "the credentials of the rule could not be had", "see Proxy.Credentials", "oops"},
			asked: []string{manifestOfA + " 401"},
		},
		"a rule of a bad upstream": {
			change: rules(pullthrough.Rule{Prefix: "hub", UpstreamURL: "https://me:canary-url@registry.test"}), status: 500,
			line: []string{"ERROR", "a pull through cache rule is not valid", "credentials do not belong into it"},
		},
		"a rule that covers nothing": {
			change: rules(pullthrough.Rule{Prefix: "Hub", UpstreamURL: "registry.test"}), status: 404,
			line: []string{"WARN", "a pull through cache rule is not valid", `prefix \"Hub\"`},
		},
		"an endpoint that is no URL of a registry": {
			change: func(p *pullthrough.Proxy) {
				p.Endpoint = func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) {
					return &url.URL{Scheme: "ftp", Host: "registry.test"}, nil
				}
			}, status: 500,
			line: []string{"ERROR", "a pull through cache rule is not valid", `endpoint \"ftp://registry.test\"`},
		},
		"a spool directory that is not there": {
			change: func(p *pullthrough.Proxy) { p.SpoolDir = "/nowhere/at/all" }, path: blob, cut: true, status: 502,
			line:  []string{"WARN", "a download could not be kept: see Proxy.SpoolDir", "/nowhere/at/all"},
			asked: []string{blobOfA + " 200"},
		},
		"an upstream that is offline": {
			change: testkit.WithPolicy(pullthrough.Policy{Offline: true}), status: 502,
			line: []string{"WARN", "Policy.Offline is set", "offline: hub/a:1 is not stored"},
		},
		"no Store": {
			change: func(p *pullthrough.Proxy) { p.Store = nil }, status: 500,
			line: []string{"ERROR", "Proxy.Store is nil: set it, for example to memstore.New()"},
		},
		"no Rules": {
			change: func(p *pullthrough.Proxy) { p.Rules = nil }, status: 500,
			line: []string{"ERROR", "Proxy.Rules is nil: set it, for example to pullthrough.StaticRules"},
		},
	}
	for how, f := range failures {
		for name, c := range hostMishaps(f) {
			c.line = append(c.line, "oops")
			if how == "panics" {
				c.line = append(c.line, "panicked=")
			}
			all[name+" "+how] = c
		}
	}
	return all
}

func credentials(c pullthrough.Credential, err error) func(*pullthrough.Proxy) {
	return func(p *pullthrough.Proxy) {
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			return c, err
		}
	}
}

func rules(r pullthrough.Rule) func(*pullthrough.Proxy) {
	return func(p *pullthrough.Proxy) { p.Rules = pullthrough.StaticRules{r} }
}

// hostMishaps are those of the host's code that ends so.
func hostMishaps(f fail) map[string]mishap {
	broken := func(call string) []string { return []string{"ERROR", call + " has failed: the host must mend it"} }
	pulled := []string{manifestOfA + " 200"}
	return map[string]mishap{
		"Rules":       {change: func(p *pullthrough.Proxy) { p.Rules = rulesThat(f) }, status: 500, line: broken("Rules")},
		"Identify":    {change: func(p *pullthrough.Proxy) { p.Identify = failingIdentify(f) }, status: 500, line: broken("Identify")},
		"Endpoint":    {change: func(p *pullthrough.Proxy) { p.Endpoint = failingEndpoint(f) }, status: 500, line: broken("Endpoint")},
		"Manifest":    {change: withStore(func(s *testkit.FaultyStore) { s.OnManifest = f }), line: broken("Store.Manifest"), asked: pulled},
		"Blob":        {change: withStore(func(s *testkit.FaultyStore) { s.OnBlob = f }), path: "blob", line: broken("Store.Blob"), asked: []string{blobOfA + " 200"}},
		"PutManifest": {change: withStore(func(s *testkit.FaultyStore) { s.OnPutManifest = f }), line: broken("Store.PutManifest"), asked: pulled},
		"PutBlob": {
			change: withStore(func(s *testkit.FaultyStore) { s.OnPutBlob = func(io.ReadSeeker) error { return f() } }),
			path:   "blob", line: broken("Store.PutBlob"), asked: []string{blobOfA + " 200"},
		},
		"Manifest where no rule covers it": {
			change: withStore(func(s *testkit.FaultyStore) { s.OnManifest = f }), path: "/v2/mine/manifests/1", status: 500, line: broken("Store.Manifest"),
		},
		"Tags": {
			change: func(p *pullthrough.Proxy) { p.Store = &picky{p.Store, f} }, path: "/v2/hub/a/tags/list", status: 500, line: broken("Store.Tags"),
		},
		"CreateRepo": {
			change: func(p *pullthrough.Proxy) { p.Store = &picky{p.Store, f} }, status: 404,
			line: []string{"WARN", "the repository of an image could not be created"}, asked: pulled,
		},
		"Credentials": {
			auth: pullthroughtest.Bearer, change: func(p *pullthrough.Proxy) { p.Credentials = failingCredentials(f) }, status: 403,
			line: []string{"WARN", "the credentials of the rule could not be had", "see Proxy.Credentials"}, asked: []string{manifestOfA + " 401"},
		},
	}
}

func rulesThat(f fail) pullthrough.RuleSource {
	return pullthrough.RuleSourceFunc(func(context.Context, string, string) ([]pullthrough.Rule, error) { return nil, f() })
}

func failingIdentify(f fail) func(*http.Request) (pullthrough.Identity, error) {
	return func(*http.Request) (pullthrough.Identity, error) { return pullthrough.Identity{}, f() }
}

func failingEndpoint(f fail) func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) {
	return func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) { return nil, f() }
}

func failingCredentials(f fail) func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
	return func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
		return pullthrough.Credential{}, f()
	}
}

// callsThatOnlyPanic return no error, or one that is an answer.
func callsThatOnlyPanic() map[string]mishap {
	broken := func(call string) []string {
		return []string{"ERROR", call + " has failed: the host must mend it", "oops", "panicked=", "/observer_test.go:"}
	}
	return map[string]mishap{
		"Policy panics": {change: func(p *pullthrough.Proxy) {
			p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy { panic(errOops) }
		}, status: 500, line: broken("Policy")},
		"Authorize panics": {change: func(p *pullthrough.Proxy) {
			p.Authorize = func(context.Context, pullthrough.Action, pullthrough.Request) error { panic(errOops) }
		}, status: 500, line: broken("Authorize")},
		"OnEvent panics": {change: func(p *pullthrough.Proxy) {
			p.OnEvent = func(context.Context, pullthrough.Event) { panic(errOops) }
		}, line: broken("OnEvent"), asked: []string{manifestOfA + " 200"}},
	}
}

// TestEachMishapLeavesOneLine: a newcomer reads one line, which says what is wrong and where.
func TestEachMishapLeavesOneLine(t *testing.T) {
	all := mishaps()
	maps.Copy(all, callsThatOnlyPanic())
	for name, c := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			book, clock := new(logbook), new(testkit.HandClock)
			config := pullthroughtest.Config{Auth: c.auth, TLS: c.tls, Users: testkit.Users}
			w := testkit.NewWorld(t, config, func(p *pullthrough.Proxy) {
				testkit.OneTry(p)
				p.Now, p.Logger = clock.Now, testkit.TextLogger(book)
				if c.change != nil {
					c.change(p)
				}
			})
			layer := w.Layer(1_500_000).Digest
			w.Up.Reset()
			if c.fault.Match != "" {
				w.Up.Fault(c.fault)
			}
			if c.spoil != nil {
				c.spoil(w)
			}
			c.ask(t, w, layer.String())
			w.Settled(t)
			lines := book.lines()
			require.Len(t, lines, 1, "%s", strings.Join(lines, "\n"))
			for _, want := range c.line {
				assert.Contains(t, lines[0], want)
			}
			var asked []string
			for _, line := range w.Up.Log() {
				asked = append(asked, strings.ReplaceAll(line, layer.String(), "LAYER"))
			}
			assert.Equal(t, c.asked, asked)

			c.ask(t, w, layer.String())
			w.Settled(t)
			assert.Len(t, book.lines(), 1, "it is not said again at once")
			_, _ = w.Secrets.Writer().Write([]byte(strings.Join(book.lines(), "\n")))
		})
	}
}

// TestABlobThatIsCutLeavesOneLine: it is asked for again and again before that.
func TestABlobThatIsCutLeavesOneLine(t *testing.T) {
	book := new(logbook)
	inTime(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Logger = testkit.TextLogger(book) }, func(t *testing.T, p *pipeworks) {
		layer := p.Layer(300_000)
		p.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/*", CutAfter: new(int64(1000))})
		require.Error(t, p.Whole(t.Context(), layer.Digest))
		p.Settled(t)
		require.Len(t, book.lines(), 1)
		for _, want := range []string{"level=WARN", "upstream gives no usable answer", "rule=hub", "unexpected EOF"} {
			assert.Contains(t, book.lines()[0], want)
		}
		assert.Equal(t, 1, p.Up.Count("GET /v2/a/blobs/* 200"))
		assert.Equal(t, len(p.Up.Log())-1, p.Up.Count("GET /v2/a/blobs/* 206"), "it was resumed")
	})
}

// ask sends the request, and looks at the status.
func (c mishap) ask(t *testing.T, w *testkit.World, layer string) {
	t.Helper()
	method, path := http.MethodGet, c.path
	switch path {
	case "":
		path = testkit.ManifestPath("a", "1")
	case "HEAD blob":
		method = http.MethodHead
		fallthrough
	case "blob":
		path = "/v2/hub/a/blobs/" + layer
	case "referrers":
		path = "/v2/hub/a/referrers/" + layer
	}
	rec := httptest.NewRecorder()
	defer func() {
		if cut := recover(); cut != nil {
			assert.Equal(t, http.ErrAbortHandler, cut)
			assert.True(t, c.cut)
			return
		}
		assert.Equal(t, cmp.Or(c.status, http.StatusOK), rec.Code)
	}()
	w.ServeHTTP(rec, httptest.NewRequest(method, path, nil))
}

// TestWhatIsNobodysFaultIsNotLogged: what goes well leaves no line, nor does what is nobody's fault.
func TestWhatIsNobodysFaultIsNotLogged(t *testing.T) {
	book := new(logbook)
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, func(p *pullthrough.Proxy) {
		testkit.WithSecret(nil)(p)
		p.Logger = slog.New(slog.NewTextHandler(book, &slog.HandlerOptions{Level: slog.LevelInfo}))
		p.Authorize = func(_ context.Context, _ pullthrough.Action, r pullthrough.Request) error {
			if r.Ref == "forbidden" {
				return errOops
			}
			return nil
		}
		p.Identify = func(r *http.Request) (pullthrough.Identity, error) {
			if r.Header.Get("Authorization") == "wrong" {
				return pullthrough.Identity{}, fmt.Errorf("who is that: %w", pullthrough.ErrUnauthorized)
			}
			return pullthrough.Identity{}, nil
		}
	})
	layer := w.Layer(1000)
	status := func(path string, header ...string) int {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		rec := httptest.NewRecorder()
		w.ServeHTTP(rec, r)
		w.Settled(t)
		return rec.Code
	}
	for range 2 {
		assert.Equal(t, 200, status(testkit.ManifestPath("a", "1")), "a fill, and then a hit")
		assert.Equal(t, 200, status(testkit.BlobPath("a", layer.Digest)))
	}
	assert.Equal(t, 404, status(testkit.ManifestPath("a", "2")), "upstream does not have it")
	assert.Equal(t, 404, status(testkit.BlobPath("a", digest.FromString("nothing"))))
	assert.Equal(t, 404, status("/v2/mine/manifests/1"), "no rule covers it")
	assert.Equal(t, 400, status("/v2/hub/A/manifests/1"), "it is no name")
	assert.Equal(t, 403, status(testkit.ManifestPath("a", "forbidden")))
	assert.Equal(t, 401, status(testkit.ManifestPath("a", "1"), "Authorization", "wrong"))

	stall := make(chan struct{})
	defer close(stall)
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/slow", Stall: stall})
	ctx, leave := context.WithTimeout(t.Context(), time.Millisecond)
	defer leave()
	_, err := w.Resolve(ctx, "slow")
	assert.ErrorIs(t, err, context.DeadlineExceeded, "the client has left")
	assert.Empty(t, book.lines())
}

func TestRepeatsAreLoggedOnceAMinuteWithTheirNumber(t *testing.T) {
	book, clock := new(logbook), new(testkit.HandClock)
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		testkit.OneTry(p)
		p.Now, p.Logger = clock.Now, testkit.TextLogger(book)
	})
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/*", Status: 500})
	pull := func(name string) {
		_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo(name), Ref: "1"})
		assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
	}
	for i := range 5 {
		pull(fmt.Sprint("a", i))
	}
	require.Len(t, book.lines(), 1)
	assert.NotContains(t, book.lines()[0], "repeats")
	clock.Pass(time.Minute)
	pull("b")
	pull("c")
	require.Len(t, book.lines(), 2)
	assert.Contains(t, book.lines()[1], "repository=hub/b")
	assert.Contains(t, book.lines()[1], "repeats=4")
	assert.Len(t, w.Up.Log(), 7, "each was asked for")
}

// TestManyNamesMakeNoManyLines: clients choose names, and must not fill the log.
func TestManyNamesMakeNoManyLines(t *testing.T) {
	book := new(logbook)
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Logger = testkit.TextLogger(book)
		p.Rules = rulesThat(func() error { return errOops })
	})
	for i := range 100 {
		rec := httptest.NewRecorder()
		w.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, fmt.Sprintf("/v2/a%d/b/manifests/%d", i, i), nil))
		assert.Equal(t, 500, rec.Code)
	}
	assert.Len(t, book.lines(), 1)
	assert.Empty(t, w.Up.Log())
}

func TestWithoutALoggerTheDefaultOneIsTold(t *testing.T) {
	book, before := new(logbook), slog.Default()
	slog.SetDefault(testkit.TextLogger(book))
	defer slog.SetDefault(before)
	p := &pullthrough.Proxy{Store: memstore.New(), Rules: rulesThat(func() error { return errOops })}
	p.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/v2/hub/a/manifests/1", nil))
	require.Len(t, book.lines(), 1)
	assert.Contains(t, book.lines()[0], "Rules has failed")
}

// TestBesideAnotherRegistryEachMishapLeavesOneLine: what fails is asked for more than once
// there.
func TestBesideAnotherRegistryEachMishapLeavesOneLine(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*pullthrough.Proxy)
		line   string
	}{
		"no Store":       {func(p *pullthrough.Proxy) { p.Store = nil }, "Proxy.Store is nil: set it"},
		"no Rules":       {func(p *pullthrough.Proxy) { p.Rules = nil }, "Proxy.Rules is nil: set it"},
		"Rules fails":    {func(p *pullthrough.Proxy) { p.Rules = rulesThat(func() error { return errOops }) }, "Rules has failed"},
		"Identify fails": {func(p *pullthrough.Proxy) { p.Identify = failingIdentify(func() error { return errOops }) }, "Identify has failed"},
	} {
		for _, uri := range []string{testkit.ManifestPath("a", "1"), testkit.BlobPath("a", digest.FromString("x")), "/v2/hub/a/referrers/" + digest.FromString("x").String()} {
			t.Run(name+uri[:strings.LastIndex(uri, "/")], func(t *testing.T) {
				book := new(logbook)
				w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
					p.Logger = testkit.TextLogger(book)
					c.change(p)
				})
				rec := httptest.NewRecorder()
				w.Handler(nil).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, uri, nil))
				assert.Equal(t, 500, rec.Code)
				require.Len(t, book.lines(), 1)
				assert.Contains(t, book.lines()[0], "level=ERROR")
				assert.Contains(t, book.lines()[0], c.line)
				assert.Empty(t, w.Up.Log())
			})
		}
	}
}
