package upstream_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var bothAuths = map[string]pullthroughtest.Auth{"Basic": pullthroughtest.Basic, "Bearer": pullthroughtest.Bearer}

// sentBy are the values of the Authorization header in the requests of
// a repository upstream, the token server's left out.
func sentBy(u *pullthroughtest.Upstream, repo string) map[string]bool {
	all := map[string]bool{}
	for _, r := range u.Requests() {
		if v := r.Header.Get("Authorization"); v != "" && strings.HasPrefix(r.Path, "/v2/"+repo+"/") {
			all[v] = true
		}
	}
	return all
}

// usersOf are the users that asked for tokens of a repository.
func usersOf(u *pullthroughtest.Upstream, repo string) map[string]bool {
	all := map[string]bool{}
	for _, r := range u.Requests() {
		user, _, ok := (&http.Request{Header: r.Header}).BasicAuth()
		if ok && (strings.HasPrefix(r.Path, "/v2/"+repo+"/") || strings.Contains(r.Query, "repository%3A"+repo+"%3A")) {
			all[user] = true
		}
	}
	return all
}

func testTwoSecretsOfOneHost(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 2})
	for name, auth := range bothAuths {
		t.Run(name, func(t *testing.T) {
			allow := func(user, repo string) bool { return repo == "both" || user+"s" == repo }
			w := newTenants(t, pullthroughtest.Config{Auth: auth, Allow: allow}, func(_ pullthrough.Repo, rule pullthrough.Rule) string { return rule.Prefix }, nil)
			w.Rules = pullthrough.StaticRules{{Prefix: "ann", UpstreamURL: w.Up.URL}, {Prefix: "bob", UpstreamURL: w.Up.URL}}
			in := func(name string) pullthrough.Repo { return pullthrough.Repo{Name: name} }
			for _, repo := range []string{"anns", "bobs", "both"} {
				w.Up.Push(repo, "1", img)
			}
			var wg sync.WaitGroup
			for _, user := range []string{"ann", "bob"} {
				wg.Go(func() {
					_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: in(user + "/" + user + "s"), Ref: "1"})
					assert.NoError(t, err)
				})
			}
			wg.Wait()
			for _, user := range []string{"ann", "bob"} {
				w.FetchImage(t, in(user+"/"+user+"s"), "1", img)
				assert.Equal(t, map[string]bool{user: true}, usersOf(w.Up, user+"s"), "each rule is its own user")
			}
			for v := range sentBy(w.Up, "anns") {
				assert.NotContains(t, sentBy(w.Up, "bobs"), v)
			}
			assertRefused(t, w, in("bob/anns"), "", img, pullthrough.ErrDenied)
			assertRefused(t, w, in("ann/bobs"), "", img, pullthrough.ErrDenied)

			w.FetchImage(t, in("ann/both"), "1", img)
			anns := sentBy(w.Up, "both")
			w.Up.Reset()
			w.FetchImage(t, in("bob/both"), "1", img)
			assert.Equal(t, map[string]bool{"bob": true}, usersOf(w.Up, "both"))
			for v := range sentBy(w.Up, "both") {
				assert.NotContains(t, anns, v, "the same repository by another rule takes another token")
			}
		})
	}
}

// rotating is a world with a rule that changes, and a secret that does.
type rotating struct {
	*testkit.World
	mu   sync.Mutex
	rule pullthrough.Rule
	user string
}

func newRotating(t *testing.T, auth pullthroughtest.Auth) *rotating {
	r := &rotating{user: "ann"}
	r.World = newTenants(t, pullthroughtest.Config{Auth: auth}, func(pullthrough.Repo, pullthrough.Rule) string {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.user
	}, nil)
	r.rule = pullthrough.Rule{Prefix: testkit.Prefix, UpstreamURL: r.Up.URL, CreatedAt: time.Unix(1e9, 0)}
	r.Rules = pullthrough.RuleSourceFunc(func(context.Context, string, string) ([]pullthrough.Rule, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return []pullthrough.Rule{r.rule}, nil
	})
	return r
}

// rotate changes the secret and, if change is not nil, the rule.
func (r *rotating) rotate(change func(*pullthrough.Rule)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.user = "bob"
	if change != nil {
		change(&r.rule)
	}
}

func testRotatedSecret(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	two := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, Layers: 3})
	for name, auth := range bothAuths {
		for what, change := range map[string]func(*pullthrough.Rule){
			"the rule was updated":         func(r *pullthrough.Rule) { r.UpdatedAt = time.Unix(2e9, 0) },
			"the rule names another":       func(r *pullthrough.Rule) { r.CredentialARN = "arn:aws:secretsmanager:us-east-1:1:secret:two" },
			"the rule has another role":    func(r *pullthrough.Rule) { r.CustomRoleARN = "arn:aws:iam::1:role/two" },
			"the rule was made anew":       func(r *pullthrough.Rule) { r.CreatedAt = time.Unix(2e9, 0) },
			"the old one is refused (401)": nil,
		} {
			t.Run(name+", "+what, func(t *testing.T) {
				w := newRotating(t, auth)
				w.Up.Push("a", "1", img)
				w.FetchImage(t, of("1", "a"), "1", img)
				old := sentBy(w.Up, "a")
				require.NotEmpty(t, old)
				w.rotate(change)
				w.Up.Push("a", "2", two)
				w.Up.Reset()
				if change == nil { // nobody has told the proxy, but upstream does
					w.Up.RevokeTokens()
					w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/*", Times: 1, Status: 401})
				}
				w.FetchImage(t, of("1", "a"), "2", two)
				fresh := w.Up.Requests()
				if change == nil {
					assert.Equal(t, 401, fresh[0].Status)
					fresh = fresh[1:]
				}
				assert.Len(t, fresh, 1+len(two.Blobs())+map[bool]int{true: 1}[auth == pullthroughtest.Bearer]+map[bool]int{true: 1}[change != nil])
				for _, r := range fresh {
					assert.False(t, old[r.Header.Get("Authorization")], "the old authorization is sent again: %s", r)
				}
				assert.NotContains(t, usersOf(w.Up, "none"), "ann")
				if change != nil {
					assert.False(t, w.Up.Saw(annsCanary))
				}
			})
		}
	}
	t.Run("while a token is on its way", testRotatedSecretMeetsALateToken)
}

// testRotatedSecretMeetsALateToken: a token that the old secret brings is no token of the new one's.
func testRotatedSecretMeetsALateToken(t *testing.T) {
	w := newRotating(t, pullthroughtest.Bearer)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	g := testkit.NewGate(t)
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /token*", Times: 1, Stall: g.C})
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = w.Manifest(t.Context(), pullthrough.Request{Repo: of("1", "a"), Ref: "1"}) })
	require.NoError(t, w.Up.Wait(t.Context(), "GET /token*", 1))
	w.rotate(func(r *pullthrough.Rule) { r.UpdatedAt = time.Unix(2e9, 0) })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	m, err := w.Manifest(ctx, pullthrough.Request{Repo: of("1", "a"), Ref: "1"})
	require.NoError(t, err, "it does not wait for the old one's")
	assert.Equal(t, img.Digest, m.Descriptor.Digest)
	g.Open()
	wg.Wait()
	w.Settled(t)
	w.Up.Reset()
	w.FetchImage(t, of("1", "a"), "1", img)
	assert.False(t, w.Up.Saw(annsCanary))
	assert.Zero(t, w.Up.Count("GET /token*"), "bob's token is still good")
}

func testWithdrawnAccess(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		for name, tc := range map[string]struct {
			fault pullthroughtest.Fault
			kind  error // nil: what is stored is served by any rule
		}{
			"401": {pullthroughtest.Fault{Status: 401}, pullthrough.ErrDenied}, "403": {pullthroughtest.Fault{Status: 403}, pullthrough.ErrDenied},
			"404": {pullthroughtest.Fault{Status: 404}, pullthrough.ErrNotFound}, "a redirect away": {pullthroughtest.Fault{Redirect: "ftp://other.test/"}, pullthrough.ErrUnavailable},
			"500": {pullthroughtest.Fault{Status: 500}, nil}, "429": {pullthroughtest.Fault{Status: 429}, nil}, "a cut": {pullthroughtest.Fault{CutAfter: new(int64(-1))}, nil},
		} {
			t.Run(fmt.Sprint(name, ", refuse ", refuse), func(t *testing.T) {
				testkit.Baseline(t)
				up, enter := testkit.Piped(t, pullthroughtest.Config{})
				synctest.Test(t, func(t *testing.T) {
					w := enter(t)
					var heard testkit.Events
					w.OnEvent = heard.On
					w.Policy = policyOf(pullthrough.Policy{TagTTL: time.Hour, RefuseStale: refuse})
					withdrawn(t, w, up, tc.fault, refuse, tc.kind)
					assertTold(t, &heard, !refuse || tc.kind == nil)
				})
			})
		}
	}
	t.Run("late", testWithdrawnAccessMeetsALateCheck)
}

// testWithdrawnAccessMeetsALateCheck: a refusal that comes after the pull has been served counts for the
// next one.
func testWithdrawnAccessMeetsALateCheck(t *testing.T) {
	for _, status := range []int{401, 403, 404} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			up, enter := testkit.Piped(t, pullthroughtest.Config{})
			synctest.Test(t, func(t *testing.T) {
				w := enter(t)
				w.Policy = policyOf(pullthrough.Policy{TagTTL: time.Hour, RefuseStale: true})
				img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
				up.Push("a", "1", img)
				w.Pull(t, "a", "1", img)
				<-time.After(time.Hour)
				over := make(chan struct{})
				up.Fault(pullthroughtest.Fault{Match: "* /v2/a/manifests/*", Status: status, Stall: over})
				pull := func() error {
					_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
					return err
				}
				assert.Equal(t, 2*time.Second, elapsed(func() { assert.NoError(t, pull(), "nobody has said anything yet") }))
				close(over)
				w.Settled(t)
				for range 3 {
					assert.True(t, isOneOf(pull(), pullthrough.ErrDenied, pullthrough.ErrNotFound), "upstream has said no, and what is stored is served")
					<-time.After(time.Second)
				}
				assert.Positive(t, up.Count("HEAD *"))
			})
		})
	}
}

// withdrawn pulls a stored tag time and again while its check goes wrong.
func withdrawn(t *testing.T, w *testkit.World, up *pullthroughtest.Upstream, fault pullthroughtest.Fault, refuse bool, kind error) {
	t.Helper()
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	up.Push("a", "1", img)
	w.Pull(t, "a", "1", img)
	up.Reset()
	fault.Match = "* /v2/a/manifests/*"
	heal := up.Fault(fault)
	<-time.After(time.Hour)
	for range 5 { // also while checks are paused, and afterwards
		m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
		if refuse && kind != nil {
			assert.ErrorIs(t, err, kind)
			assert.True(t, m == nil, "what is stored is not served")
		} else if assert.NoError(t, err) {
			assert.Equal(t, pullthrough.SourceStale, m.Source)
			assert.Equal(t, img.Digest, m.Descriptor.Digest)
		}
		<-time.After(4 * time.Second)
	}
	w.Settled(t)
	assert.Positive(t, up.Count(fault.Match))
	heal()
	<-time.After(10 * time.Minute)
	m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
	require.NoError(t, err)
	assert.Equal(t, pullthrough.SourceRevalidated, m.Source)
}

// assertTold checks that the host heard of a failed check and, if served, of
// answers that were not checked.
func assertTold(t *testing.T, e *testkit.Events, served bool) {
	t.Helper()
	failed, stale := 0, 0
	for _, event := range e.Of(pullthrough.EventFetch) {
		if event.Err != nil {
			failed++
		}
	}
	for _, source := range e.Sources() {
		if source == pullthrough.SourceStale {
			stale++
		}
	}
	assert.Positive(t, failed)
	assert.Equal(t, served, stale == 5, "%d answers were stale", stale)
	assert.True(t, served || stale == 0)
}

func policyOf(pol pullthrough.Policy) func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
	return func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy { return pol }
}

func testRuleDeletedAndMadeAgain(t *testing.T) {
	for name, auth := range bothAuths {
		for _, what := range []string{"manifest", "blob"} {
			t.Run(name+", "+what, func(t *testing.T) {
				w := newRotating(t, auth)
				img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 3 << 20})
				w.Up.Push("a", "1", img)
				g := testkit.NewGate(t)
				match := "GET /v2/a/" + what + "s/* 200"
				w.Up.Fault(pullthroughtest.Fault{Match: match, Times: 1, Stall: g.C, StallAfter: new(int64(100))})
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				get := func() error {
					if what == "blob" {
						b, err := w.Blob(ctx, pullthrough.Request{Repo: of("1", "a"), Ref: img.Layers[0].Digest.String()})
						if err == nil {
							testkit.AssertBody(t, img.Layers[0].Digest, b)
						}
						return err
					}
					_, err := w.Manifest(ctx, pullthrough.Request{Repo: of("1", "a"), Ref: "1"})
					return err
				}
				var wg sync.WaitGroup
				wg.Go(func() { assert.NoError(t, get(), "what the old rule has asked for is served") })
				require.NoError(t, w.Up.Wait(t.Context(), match, 1))
				w.rotate(func(r *pullthrough.Rule) { r.CreatedAt = time.Unix(2e9, 0) })
				anns := sentBy(w.Up, "a")
				w.Up.Reset()
				require.NoError(t, get(), "the new rule does not wait for the old one's answer")
				assert.Equal(t, 1, w.Up.Count(match))
				for v := range sentBy(w.Up, "a") {
					assert.NotContains(t, anns, v)
				}
				assert.False(t, w.Up.Saw(annsCanary))
				g.Open()
				wg.Wait()
				w.Settled(t)
			})
		}
	}
}
