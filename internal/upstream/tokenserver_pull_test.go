package upstream_test

import (
	"context"
	"fmt"
	"net/http"
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

func testPasswordByGETIdentityTokenByPOST(t *testing.T) {
	for name, tc := range map[string]struct {
		credentials func(*pullthrough.Proxy)
		unknown     string // a method that the token server does not have
		tokens      string
		ok          bool
	}{
		"a password for a token server with both":     {testkit.WithSecret(nil), "", "GET /token 200", true},
		"a password for one with GET only":            {testkit.WithSecret(nil), "POST", "GET /token 200", true},
		"a password for one with POST only":           {testkit.WithSecret(nil), "GET", "GET /token 405", false},
		"a refresh token for one with both":           {withIdentityToken(identityCanary, ""), "", "POST /token 200", true},
		"a refresh token for one with GET only":       {withIdentityToken(identityCanary, ""), "POST", "POST /token 405", false},
		"a refresh token for one with POST only":      {withIdentityToken(identityCanary, ""), "GET", "POST /token 200", true},
		"a refresh token and a password for one such": {withIdentityToken(identityCanary, testkit.Canary), "", "POST /token 200", true},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users, IdentityTokens: []string{identityCanary}, Scope: "aws"}, tc.credentials)
			pushEach(w, "a", "1")
			if tc.unknown != "" {
				w.Up.Fault(pullthroughtest.Fault{Match: tc.unknown + " /token*", Status: http.StatusMethodNotAllowed})
			}
			err := pullTag(t, w, "a", "1")
			assert.Equal(t, tc.ok, err == nil, "%v", err)
			assert.Equal(t, []string{tc.tokens}, w.Up.Log()[1:2])
			requests := tokenRequests(w.Up)
			require.Len(t, requests, 1)
			assertGrant(t, requests[0], tokenForms(t, w.Up)[0])
		})
	}
	t.Run("a wrong password", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: map[string]string{"me": "another"}}, testkit.WithSecret(nil))
		assert.ErrorIs(t, pullTag(t, w, "a", "1"), pullthrough.ErrDenied)
		assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "GET /token 401"}, w.Up.Log(), "a second guess could lock the account")
	})
	t.Run("a wrong refresh token", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, IdentityTokens: []string{"another"}}, withIdentityToken(identityCanary, ""))
		assert.ErrorIs(t, pullTag(t, w, "a", "1"), pullthrough.ErrDenied)
		assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "POST /token 401"}, w.Up.Log())
	})
}

// assertGrant: the secret is in the one place where it belongs.
func assertGrant(t *testing.T, r pullthroughtest.Request, form map[string][]string) {
	t.Helper()
	user, password, basic := (&http.Request{Header: r.Header}).BasicAuth()
	assert.Equal(t, []string{"registry.test"}, form["service"])
	if r.Method == http.MethodGet {
		require.True(t, basic)
		assert.Equal(t, "me "+testkit.Canary, user+" "+password)
		assert.Equal(t, []string{"aws", "repository:a:pull"}, form["scope"])
		assert.Empty(t, r.Body)
		assert.NotContains(t, fmt.Sprint(form, r.Header), identityCanary)
		return
	}
	assert.False(t, basic)
	assert.Empty(t, r.Header.Get("Authorization"))
	assert.Empty(t, r.Query)
	assert.Equal(t, "application/x-www-form-urlencoded", r.Header.Get("Content-Type"))
	assert.Equal(t, []string{"refresh_token"}, form["grant_type"])
	assert.Equal(t, []string{identityCanary}, form["refresh_token"])
	assert.Equal(t, []string{"aws repository:a:pull"}, form["scope"], "one, with spaces in it")
	require.Len(t, form["client_id"], 1)
	assert.NotEmpty(t, form["client_id"][0])
	assert.NotContains(t, fmt.Sprint(form, r.Header), testkit.Canary)
}

func testPasswordWhereTheIdentityTokenIsNotTaken(t *testing.T) {
	for status, again := range map[int]bool{400: true, 401: true, 404: true, 405: true, 403: false, 500: false} {
		for _, password := range []string{testkit.Canary, "", "wrong"} {
			t.Run(fmt.Sprintf("%d with the password %q", status, password), func(t *testing.T) {
				w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users, IdentityTokens: []string{identityCanary}}, withIdentityToken(identityCanary, password))
				w.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
					return pullthrough.Policy{Retries: -1}
				}
				pushEach(w, "a", "1")
				w.Up.Fault(pullthroughtest.Fault{Match: "POST /token*", Status: status})
				err := pullTag(t, w, "a", "1")
				assert.Equal(t, again && password == testkit.Canary, err == nil, "%v", err)
				assert.Equal(t, 1, w.Up.Count("POST /token*"))
				want := 0
				if again && password != "" {
					want = 1
				}
				assert.Equal(t, want, w.Up.Count("GET /token*"))
				for _, r := range tokenRequests(w.Up) {
					carried := fmt.Sprint(r.Query, r.Header, string(r.Body))
					assert.Equal(t, r.Method == http.MethodPost, strings.Contains(carried, identityCanary))
					assert.Equal(t, r.Method == http.MethodGet, r.Header.Get("Authorization") != "")
				}
			})
		}
	}
}

// exchanging is a token server whose refresh tokens are good for one token.
type exchanging struct {
	up *pullthroughtest.Upstream

	mu    sync.Mutex
	taken int
}

func refreshToken(i int) string { return fmt.Sprint(identityCanary, "-", i) }

func (e *exchanging) answer(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path != "/token" {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if r.PostFormValue("refresh_token") != refreshToken(e.taken) {
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	e.taken++
	w.Header().Set("Content-Type", "application/json")
	_, err := fmt.Fprintf(w, `{"access_token":%q,"refresh_token":%q,"expires_in":300}`, e.up.IssueToken(time.Hour, r.PostFormValue("scope")), refreshToken(e.taken))
	return err == nil
}

// rotation is a host with the secret of one rule.
type rotation struct {
	mu     sync.Mutex
	secret string
	told   []string
}

func (r *rotation) credentials(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return pullthrough.Credential{IdentityToken: r.secret}, nil
}

func (r *rotation) rotated(_ context.Context, rp pullthrough.Repo, rule pullthrough.Rule, token string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secret = token
	r.told = append(r.told, rp.Name+" "+rule.Prefix+" "+token)
}

// newExchange returns a world with a token server that changes the secret each
// time, and the host that had the first one.
func newExchange(t *testing.T, change func(*pullthrough.Proxy)) (*testkit.World, *rotation) {
	t.Helper()
	e, r := new(exchanging), &rotation{secret: refreshToken(0)}
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Handler: e.answer}, change)
	w.Credentials = r.credentials
	e.up = w.Up
	for _, name := range []string{"a", "b", "c", "d"} {
		pushEach(w, name, "1", "2")
	}
	return w, r
}

func refreshTokens(t *testing.T, w *testkit.World) (sent []string) {
	t.Helper()
	for _, form := range tokenForms(t, w.Up) {
		sent = append(sent, form.Get("refresh_token"))
	}
	return sent
}

func testRotatedIdentityTokenIsUsedAndHandedOver(t *testing.T) {
	t.Run("the host keeps it", testRotationTold)
	t.Run("nobody is told", testRotationKept)
	t.Run("several at once", func(t *testing.T) {
		w, _ := newExchange(t, nil)
		var wg sync.WaitGroup
		for _, name := range []string{"a", "b", "c", "d"} {
			wg.Go(func() { assert.NoError(t, pullTag(t, w, name, "1")) })
		}
		wg.Wait()
		sent := refreshTokens(t, w)
		assert.Equal(t, refreshToken(3), sent[len(sent)-1], "each was worth one token")
		assert.Equal(t, 4, w.Up.Count("POST /token 200"))
		assert.LessOrEqual(t, len(sent), 7)
	})
	t.Run("a host that panics", func(t *testing.T) {
		w, _ := newExchange(t, func(p *pullthrough.Proxy) {
			p.Rotated = func(context.Context, pullthrough.Repo, pullthrough.Rule, string) { panic("oops") }
		})
		assert.NoError(t, pullTag(t, w, "a", "1"))
		assert.Equal(t, 1, w.Up.Count("POST /token 200"))
	})
}

func testRotationTold(t *testing.T) {
	log, all := new(journal), new(testkit.Events)
	w, r := newExchange(t, func(p *pullthrough.Proxy) { p.Logger, p.OnEvent = testkit.TextLogger(log), all.On })
	w.Rotated = r.rotated
	require.NoError(t, pullTag(t, w, "a", "1"))
	require.NoError(t, pullTag(t, w, "b", "1"))
	require.NoError(t, pullTag(t, w, "b", "2"))
	assert.Equal(t, []string{refreshToken(0), refreshToken(1)}, refreshTokens(t, w), "the rule's secret has changed, whatever repository was pulled")
	assert.Equal(t, []string{"hub/a hub " + refreshToken(1), "hub/b hub " + refreshToken(2)}, r.told)

	r.secret = refreshToken(77)
	err := pullTag(t, w, "c", "1")
	require.ErrorIs(t, err, pullthrough.ErrDenied)
	assert.Equal(t, refreshToken(77), refreshTokens(t, w)[2], "the host has the last word")
	w.Settled(t)
	assert.NotContains(t, fmt.Sprintf("%v %s %+v", err, log, all.All()), identityCanary)
}

func testRotationKept(t *testing.T) {
	now := new(testkit.HandClock)
	w, r := newExchange(t, func(p *pullthrough.Proxy) { p.Now = now.Now })
	require.NoError(t, pullTag(t, w, "a", "1"))
	require.NoError(t, pullTag(t, w, "b", "1"))
	now.Pass(5 * time.Minute)
	require.NoError(t, pullTag(t, w, "a", "2"))
	assert.Equal(t, []string{refreshToken(0), refreshToken(1), refreshToken(2)}, refreshTokens(t, w))
	r.secret = refreshToken(3)
	require.NoError(t, pullTag(t, w, "c", "1"))
	r.secret = refreshToken(77)
	require.ErrorIs(t, pullTag(t, w, "d", "1"), pullthrough.ErrDenied)
	assert.Equal(t, refreshToken(77), refreshTokens(t, w)[4], "the host has the last word")
}

func testNoIdentityTokenIsAskedFor(t *testing.T) {
	for name, credentials := range map[string]func(*pullthrough.Proxy){
		"anonymous":       nil,
		"a password":      testkit.WithSecret(nil),
		"a refresh token": withIdentityToken(identityCanary, ""),
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users, Anonymous: true, IdentityTokens: []string{identityCanary}}, credentials)
			pushEach(w, "a", "1")
			require.NoError(t, pullTag(t, w, "a", "1"))
			forms := tokenForms(t, w.Up)
			require.Len(t, forms, 1)
			assert.NotContains(t, forms[0], "offline_token")
			assert.NotContains(t, forms[0], "access_type")
		})
	}
}

func testAnonymousToken(t *testing.T) {
	for name, credentials := range map[string]func(*pullthrough.Proxy){
		"nobody to ask": nil,
		"no secret": func(p *pullthrough.Proxy) {
			p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
				return pullthrough.Credential{}, nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			ghcr := func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != "/token" || r.URL.Query().Get("scope") != "" {
					return false
				}
				w.WriteHeader(http.StatusForbidden)
				return true
			}
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Handler: ghcr}, credentials)
			pushEach(w, "a", "1")
			challengeWith(w, "GET /v2/*", 1, "")
			require.NoError(t, pullTag(t, w, "a", "1"))
			requests := tokenRequests(w.Up)
			require.Len(t, requests, 1)
			assert.Equal(t, "GET", requests[0].Method)
			assert.Empty(t, requests[0].Header["Authorization"])
			assert.Equal(t, []string{"repository:a:pull"}, tokenForms(t, w.Up)[0]["scope"])
		})
	}
}
