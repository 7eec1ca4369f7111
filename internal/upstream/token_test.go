package upstream_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func testScopeOfThePullIsAdded(t *testing.T) {
	for challenged, want := range map[string][]string{
		``:                                  {"repository:a:pull"},
		`,scope=""`:                         {"repository:a:pull"},
		`,scope="aws"`:                      {"aws", "repository:a:pull"},
		`,scope="repository:a:pull"`:        {"repository:a:pull"},
		`,scope="aws repository:a:pull"`:    {"aws", "repository:a:pull"},
		`,scope="repository:a:pull,push z"`: {"z", "repository:a:pull"},
	} {
		t.Run(challenged, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			pushEach(w, "a", "1")
			challengeWith(w, "GET /v2/*", 1, challenged)
			require.NoError(t, pullTag(t, w, "a", "1"))
			forms := tokenForms(t, w.Up)
			require.Len(t, forms, 1)
			assert.Equal(t, want, forms[0]["scope"])
			assert.Equal(t, "registry.test", forms[0].Get("service"))
		})
	}
}

// journal is a log to look into.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func testWiderScopeIsNotAskedFor(t *testing.T) {
	for challenged, want := range map[string]struct{ scopes, logged string }{
		"repository:other/secret:pull,push": {"repository:a:pull", "other/secret"},
		"repository:a:pull,push,delete":     {"repository:a:pull", "push"},
		"repository:a:*":                    {"repository:a:pull", "repository:a:"},
		"repository:user/image:pull":        {"repository:a:pull", ""}, // GHCR's placeholder
		"registry:catalog:*":                {"repository:a:pull", "catalog"},
		"aws repository:a/b:pull":           {"aws repository:a:pull", "a/b"},
		"aws repository:a:pull":             {"aws repository:a:pull", ""},
		"repository:*:pull":                 {"repository:a:pull", ""},
		"repository(plugin):a:pull,push":    {"repository:a:pull", ""},

		"repository:other:pull repository:a:push,pull registry:catalog:*": {"repository:a:pull", "other"},
		"repository:other:pull\trepository:x:push":                        {"repository:a:pull", "other"},
		strings.Repeat("repository:other:pull ", 300):                     {"repository:a:pull", "other"},
	} {
		t.Run(challenged, func(t *testing.T) {
			log := new(journal)
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Logger = testkit.TextLogger(log) })
			pushEach(w, "a", "1")
			challengeWith(w, "GET /v2/*", 1, `,scope="`+challenged+`"`)
			require.NoError(t, pullTag(t, w, "a", "1"))
			forms := tokenForms(t, w.Up)
			require.Len(t, forms, 1)
			assert.Equal(t, want.scopes, strings.Join(forms[0]["scope"], " "))
			if want.logged != "" {
				assert.Contains(t, log.String(), want.logged)
			}
		})
	}
}

// The two pulls are under way when upstream begins to want tokens.
func testOrderOfScopesIsNoDifference(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	pushEach(w, "a", "0", "1", "2")
	require.NoError(t, pullTag(t, w, "a", "0"))
	gate := make(chan struct{})
	for tag, scope := range map[string]string{
		"1": "aws zone repository:a:pull,push",
		"2": "repository:a:push,pull zone aws zone",
	} {
		w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/" + tag, Times: 1, Stall: gate, Status: 401, Header: http.Header{
			"Www-Authenticate": {`Bearer realm="` + w.Up.URL + `/token",service="registry.test",scope="` + scope + `"`},
		}})
	}
	var wg sync.WaitGroup
	for _, tag := range []string{"1", "2"} {
		wg.Go(func() { assert.NoError(t, pullTag(t, w, "a", tag)) })
	}
	assert.NoError(t, w.Up.Wait(t.Context(), "GET /v2/a/manifests/*", 3))
	close(gate)
	wg.Wait()
	forms := tokenForms(t, w.Up)
	require.Len(t, forms, 1)
	assert.ElementsMatch(t, []string{"aws", "zone", "repository:a:pull"}, forms[0]["scope"])
	assert.Equal(t, 2, w.Up.Count("GET /v2/a/manifests/* 401"))
}

func testTokensBelongToOneRuleAndSecret(t *testing.T) {
	t.Run("two rules", testTokensOfTwoRules)
	t.Run("another secret", testTokensAfterRotation)
	t.Run("another registry", testTokensOfAnotherRegistry)
	t.Run("another service or realm", testTokensOfAnotherDemand)
}

func testTokensOfTwoRules(t *testing.T) {
	two := map[string]string{"hub": "one", "hub2": "two"}
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: map[string]string{"one": testkit.Canary + "-one", "two": testkit.Canary + "-two"}}, func(p *pullthrough.Proxy) {
		p.Credentials = func(_ context.Context, _ pullthrough.Repo, rule pullthrough.Rule) (pullthrough.Credential, error) {
			user := two[rule.Prefix]
			return pullthrough.Credential{Username: user, AccessToken: testkit.Canary + "-" + user}, nil
		}
	})
	w.Rules = pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: w.Up.URL}, {Prefix: "hub2", UpstreamURL: w.Up.URL}}
	pushEach(w, "a", "1", "2")
	for _, ref := range []string{"1", "2"} {
		for _, rule := range []string{"hub", "hub2"} {
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: pullthrough.Repo{Name: rule + "/a"}, Ref: ref})
			require.NoError(t, err)
		}
	}
	var users []string
	for _, r := range tokenRequests(w.Up) {
		user, _, _ := (&http.Request{Header: r.Header}).BasicAuth()
		users = append(users, user)
	}
	assert.Equal(t, []string{"one", "two"}, users)
	sent := slices.DeleteFunc(authorizations(w.Up, "GET /v2/a/"), func(h string) bool { return h == "" })
	require.Len(t, sent, 4)
	assert.Equal(t, []string{sent[0], sent[1], sent[0], sent[1]}, sent)
	assert.NotEqual(t, sent[0], sent[1])
}

// testTokensAfterRotation: the host is asked again for one of two repositories,
// and then the other's token, which is fresh, is not sent any more either.
func testTokensAfterRotation(t *testing.T) {
	for name, again := range map[string]func(w *testkit.World, now *testkit.HandClock){
		"seen when the rule is updated": func(w *testkit.World, _ *testkit.HandClock) {
			w.Rules.(pullthrough.StaticRules)[0].UpdatedAt = time.Unix(1, 0)
		},
		"seen when a token is due":     func(_ *testkit.World, now *testkit.HandClock) { now.Pass(90 * time.Second) },
		"seen when a token is refused": func(w *testkit.World, _ *testkit.HandClock) { challengeWith(w, "GET /v2/a/*", 1, "") },
	} {
		t.Run(name, func(t *testing.T) {
			now := new(testkit.HandClock)
			secret := pullthrough.Credential{Username: "me", AccessToken: testkit.Canary}
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: map[string]string{"me": testkit.Canary, "new": testkit.Canary + "-2"}}, func(p *pullthrough.Proxy) {
				p.Now = now.Now
				p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
					return secret, nil
				}
			})
			pushEach(w, "a", "1", "2")
			pushEach(w, "b", "1", "2")
			require.NoError(t, pullTag(t, w, "a", "1"))
			now.Pass(200 * time.Second)
			require.NoError(t, pullTag(t, w, "b", "1"))
			old := authorizations(w.Up, "GET /v2/b/")
			require.Len(t, old, 1)
			w.Settled(t) // the rule is asked for once more before anything is stored
			secret = pullthrough.Credential{Username: "new", AccessToken: testkit.Canary + "-2"}
			again(w, now)
			w.Up.Reset()
			require.NoError(t, pullTag(t, w, "a", "2"))
			require.NoError(t, pullTag(t, w, "b", "2"))
			assert.NotContains(t, authorizations(w.Up, "GET /v2/b/"), old[0])
			assert.Equal(t, 1, w.Up.Count("GET /v2/b/manifests/2 200"))
			for _, r := range tokenRequests(w.Up) {
				user, _, _ := (&http.Request{Header: r.Header}).BasicAuth()
				assert.Equal(t, "new", user)
			}
			assert.Len(t, tokenRequests(w.Up), 2)
		})
	}
}

// testTokensOfAnotherRegistry: both have one token server.
func testTokensOfAnotherRegistry(t *testing.T) {
	issuer := pullthroughtest.New(t, pullthroughtest.Config{Users: testkit.Users})
	c := pullthroughtest.Config{Auth: pullthroughtest.Bearer, Issuer: issuer}
	other := pullthroughtest.New(t, c)
	w := testkit.NewWorld(t, c, testkit.WithSecret(nil))
	pushEach(w, "a", "1")
	other.Push("a", "2", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))
	endpoint := w.Up.URL
	w.Endpoint = func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) {
		return url.Parse(endpoint)
	}
	require.NoError(t, pullTag(t, w, "a", "1"))
	w.Settled(t) // the endpoint is asked for once more before anything is stored
	endpoint = other.URL
	require.NoError(t, pullTag(t, w, "a", "2"))
	assert.Equal(t, 2, issuer.Count("GET /token 200"))
	old := authorizations(w.Up, "GET /v2/a/manifests/1 200")
	require.Len(t, old, 1)
	assert.Equal(t, 1, other.Count("GET /v2/a/manifests/2 200"))
	assert.NotContains(t, authorizations(other, "GET /v2/"), old[0])
}

func testTokensOfAnotherDemand(t *testing.T) {
	other := pullthroughtest.New(t, pullthroughtest.Config{})
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	pushEach(w, "a", "1", "2", "3")
	for i, demand := range []struct {
		realm   *pullthroughtest.Upstream
		service string
	}{{w.Up, "one"}, {w.Up, "two"}, {other, "two"}} {
		w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/*", Times: 1, Status: 401, Header: http.Header{
			"Www-Authenticate": {fmt.Sprintf(`Bearer realm="%s/token",service="%s"`, demand.realm.URL, demand.service)},
		}})
		require.NoError(t, pullTag(t, w, "a", fmt.Sprint(i+1)))
	}
	var services []string
	for _, form := range slices.Concat(tokenForms(t, w.Up), tokenForms(t, other)) {
		services = append(services, form.Get("service"))
	}
	assert.Equal(t, []string{"one", "two", "two"}, services)
	assert.Equal(t, 1, other.Count("GET /token 200"))
	sent := authorizations(w.Up, "GET /v2/a/manifests/")
	require.Len(t, sent, 6)
	assert.Len(t, slices.Compact(slices.Sorted(slices.Values(sent))), 4, "none, and three tokens")
}

func testWaitingForATokenOutlivesItsFirstCaller(t *testing.T) {
	t.Run("the first leaves", func(t *testing.T) {
		up, enter := testkit.Piped(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
		synctest.Test(t, func(t *testing.T) {
			w, gate := enter(t), make(chan struct{})
			up.Fault(pullthroughtest.Fault{Match: "GET /token*", Stall: gate})
			first, leave := context.WithCancel(t.Context())
			pull := func(ctx context.Context, tag int, errs chan<- error) {
				_, err := w.Manifest(ctx, pullthrough.Request{Repo: testkit.Repo("a"), Ref: fmt.Sprint(tag)})
				errs <- err
			}
			left, served := make(chan error, 1), make(chan error, 49)
			for i := range 50 {
				pushEach(w, "a", fmt.Sprint(i))
				if i == 0 {
					go pull(first, i, left)
				} else {
					go pull(t.Context(), i, served)
				}
				synctest.Wait()
			}
			leave()
			assert.ErrorIs(t, <-left, context.Canceled)
			synctest.Wait()
			assert.Empty(t, served, "they wait on")
			close(gate)
			for range 49 {
				assert.NoError(t, <-served)
			}
			assert.Equal(t, 1, up.Count("GET /token*"))
		})
	})
	t.Run("it never comes", testTokenThatNeverComes)
}

func testTokenThatNeverComes(t *testing.T) {
	up, enter := testkit.Piped(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		up.Fault(pullthroughtest.Fault{Match: "GET /token*", Stall: make(chan struct{})})
		start := time.Now()
		done := make(chan error, 1)
		go func() { done <- pullTag(t, w, "a", "1") }()
		synctest.Wait()
		hurried, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := w.Manifest(hurried, pullthrough.Request{Repo: testkit.Repo("a"), Ref: "2"})
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, time.Second, time.Since(start), "who has waited enough leaves")
		assert.ErrorIs(t, <-done, pullthrough.ErrUnavailable)
		assert.LessOrEqual(t, time.Since(start), time.Minute, "and the fetch has a deadline of its own")
		assert.Equal(t, 1, up.Count("GET /token*"))
	})
}

func testRefusedTokenIsRefusedToAllThatWait(t *testing.T) {
	up, enter := testkit.Piped(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	synctest.Test(t, func(t *testing.T) {
		w, gate := enter(t), make(chan struct{})
		up.Fault(pullthroughtest.Fault{Match: "GET /token*", Times: 1, Status: 403, Stall: gate})
		up.Fault(pullthroughtest.Fault{Match: "GET /token*", Times: 1, Status: 403})
		pushEach(w, "a", "0", "1")
		errs := make(chan error, 20)
		for i := range 20 {
			go func() { errs <- pullTag(t, w, "a", fmt.Sprint(i)) }()
			synctest.Wait()
		}
		close(gate)
		for range 20 {
			assert.ErrorIs(t, <-errs, pullthrough.ErrDenied)
		}
		assert.Equal(t, 1, up.Count("GET /token*"), "one refusal is enough for all who wait")
		assert.ErrorIs(t, pullTag(t, w, "a", "0"), pullthrough.ErrDenied)
		assert.NoError(t, pullTag(t, w, "a", "0"))
		assert.NoError(t, pullTag(t, w, "a", "1"))
		assert.Equal(t, 3, up.Count("GET /token*"))
	})
}

// testMemoryForTokensIsBounded asks for what is not there: nothing but tokens could be kept.
func testMemoryForTokensIsBounded(t *testing.T) {
	const names, enough = 10_000, 4_000
	// Not newWorld: that remembers every token, as a secret.
	w := &testkit.World{Up: pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})}
	w.Proxy = &pullthrough.Proxy{
		Store: memstore.New(),
		Rules: pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: w.Up.URL}},
		Policy: func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{NotFoundTTL: -1}
		},
		Transport: testkit.RoundTripper(func(r *http.Request) (*http.Response, error) {
			rec := httptest.NewRecorder()
			w.Up.ServeHTTP(rec, r)
			return rec.Result(), nil
		}),
	}
	t.Cleanup(func() { assert.NoError(t, w.Shutdown(context.Background())) })
	ask := func(i int) { assert.ErrorIs(t, pullTag(t, w, fmt.Sprint("r", i), "1"), pullthrough.ErrNotFound) }
	var heap [2]runtime.MemStats
	for i := range names {
		if i%1000 == 0 { // upstream itself remembers everything
			w.Up.Reset()
			w.Up.RevokeTokens()
		}
		if i == enough {
			runtime.GC()
			runtime.ReadMemStats(&heap[0])
		}
		ask(i)
	}
	w.Up.Reset()
	runtime.GC()
	runtime.ReadMemStats(&heap[1])
	assert.Less(t, int64(heap[1].HeapAlloc)-int64(heap[0].HeapAlloc), int64(3<<19))
	ask(names - 1)
	assert.Equal(t, []string{fmt.Sprintf("GET /v2/r%d/manifests/1 404", names-1)}, w.Up.Log(), "the newest is kept")
	w.Up.Reset()
	ask(0)
	assert.Equal(t, []string{"GET /token 200", "GET /v2/r0/manifests/1 404"}, w.Up.Log(), "the oldest is not")
}

func testUnansweredTokenHoldsUpOneRepository(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
	pushEach(w, "a", "1")
	pushEach(w, "b", "1")
	gate := testkit.NewGate(t)
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /token*", Times: 1, Stall: gate.C})
	done := make(chan error, 1)
	go func() { done <- pullTag(t, w, "a", "1") }()
	require.NoError(t, w.Up.Wait(t.Context(), "GET /token*", 1))
	assert.NoError(t, pullTag(t, w, "b", "1"))
	assert.Equal(t, 1, w.Up.Count("GET /v2/b/manifests/1 200"))
	select {
	case err := <-done:
		assert.Fail(t, "a was not to be served yet", "%v", err)
	default:
	}
	gate.Open()
	assert.NoError(t, <-done)
	assert.Equal(t, 2, w.Up.Count("GET /token 200"))
}
