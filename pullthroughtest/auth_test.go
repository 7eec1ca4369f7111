package pullthroughtest_test

import (
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const (
	manifestPath = "/v2/a/b/manifests/latest"
	pullScope    = "repository:a/b:pull"
)

type tokenAnswer struct {
	Token       string    `json:"token"`
	AccessToken string    `json:"access_token"`
	ExpiresIn   int       `json:"expires_in"`
	IssuedAt    time.Time `json:"issued_at"`
}

func tokenURL(scope ...string) string {
	return "/token?" + url.Values{"service": {"registry.test"}, "scope": scope}.Encode()
}

func fetchToken(t *testing.T, up *pullthroughtest.Upstream, scope ...string) tokenAnswer {
	t.Helper()
	resp := get(t, up, tokenURL(scope...))
	require.Equal(t, 200, resp.StatusCode)
	return decode[tokenAnswer](t, resp)
}

func TestBearerPull(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	resp := get(t, up, manifestPath)
	assert.Equal(t, 401, resp.StatusCode)
	assert.Equal(t, `Bearer realm="`+up.URL+`/token",service="registry.test",scope="repository:a/b:pull"`,
		resp.Header.Get("WWW-Authenticate"))
	assert.Equal(t, "UNAUTHORIZED", decode[errorBody](t, resp).Errors[0].Code)

	token := fetchToken(t, up, pullScope)
	assert.Equal(t, token.Token, token.AccessToken)
	assert.Equal(t, 300, token.ExpiresIn)
	assert.WithinDuration(t, time.Now(), token.IssuedAt, time.Minute)
	assert.Equal(t, 200, get(t, up, manifestPath, "Authorization", "Bearer "+token.Token).StatusCode)
	assert.Equal(t, 200, get(t, up, layerPath, "Authorization", "bearer "+token.Token).StatusCode)
	assert.Equal(t, []string{
		"GET " + manifestPath + " 401",
		"GET /token 200",
		"GET " + manifestPath + " 200",
		"GET " + layerPath + " 200",
	}, up.Log())
}

func TestTokensCoverTheirScopeOnly(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	for _, c := range []struct {
		name   string
		scope  []string
		status int
	}{
		{"exact", []string{pullScope}, 200},
		{"more actions", []string{"repository:a/b:push,pull"}, 200},
		{"several scopes", []string{"repository:x:pull", pullScope}, 200},
		{"several scopes in one parameter", []string{"repository:x:pull " + pullScope}, 200},
		{"another repository", []string{"repository:a/bb:pull"}, 401},
		{"another action", []string{"repository:a/b:push"}, 401},
		{"none", nil, 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			authorization := "Bearer " + fetchToken(t, up, c.scope...).Token
			assert.Equal(t, c.status, get(t, up, manifestPath, "Authorization", authorization).StatusCode)
			assert.Equal(t, 200, get(t, up, "/v2/", "Authorization", authorization).StatusCode)
		})
	}
	assert.Equal(t, 401, get(t, up, manifestPath, "Authorization", "Bearer made-up").StatusCode)
	assert.Equal(t, 401, get(t, up, manifestPath, "Authorization", "Basic made-up").StatusCode)
}

func TestPingChallengeHasNoScope(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{
		Auth:    pullthroughtest.Bearer,
		Realm:   "https://elsewhere.test/t",
		Service: "s",
	})
	resp := get(t, up, "/v2/")
	assert.Equal(t, 401, resp.StatusCode)
	assert.Equal(t, `Bearer realm="https://elsewhere.test/t",service="s"`, resp.Header.Get("WWW-Authenticate"))
}

func TestOpaqueScope(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Scope: "aws"})
	assert.Contains(t, get(t, up, manifestPath).Header.Get("WWW-Authenticate"), `,scope="aws"`)
	assert.Equal(t, 200, get(t, up, manifestPath, "Authorization", "Bearer "+fetchToken(t, up, "aws").Token).StatusCode)
	assert.Equal(t, 401, get(t, up, manifestPath, "Authorization", "Bearer "+fetchToken(t, up, pullScope).Token).StatusCode)
}

func TestTokensEnd(t *testing.T) {
	var clock atomic.Int64
	up := newUpstream(t, pullthroughtest.Config{
		Auth:     pullthroughtest.Bearer,
		TokenTTL: 90 * time.Second,
		Now:      func() time.Time { return time.Unix(clock.Load(), 0) },
	})
	status := func(token string) int {
		return get(t, up, manifestPath, "Authorization", "Bearer "+token).StatusCode
	}
	token := fetchToken(t, up, pullScope)
	assert.Equal(t, 90, token.ExpiresIn)
	assert.Equal(t, int64(0), token.IssuedAt.Unix())
	clock.Store(89)
	assert.Equal(t, 200, status(token.Token))
	clock.Store(90)
	assert.Equal(t, 401, status(token.Token))

	revoked := fetchToken(t, up, pullScope).Token
	up.RevokeTokens()
	assert.Equal(t, 401, status(revoked))
	assert.Equal(t, 200, status(fetchToken(t, up, pullScope).Token))
	assert.Equal(t, 200, status(up.IssueToken(0, pullScope)))
	assert.Equal(t, 401, status(up.IssueToken(-1, pullScope)))
}

func TestTokenCredentials(t *testing.T) {
	users := map[string]string{"ann": "secret"}
	for _, c := range []struct {
		name           string
		config         pullthroughtest.Config
		user, password string
		status         int
	}{
		{"right", pullthroughtest.Config{Users: users}, "ann", "secret", 200},
		{"wrong", pullthroughtest.Config{Users: users, Anonymous: true}, "ann", "guess", 401},
		{"nobody has a password", pullthroughtest.Config{}, "ann", "", 401},
		{"anonymous", pullthroughtest.Config{}, "", "", 200},
		{"anonymous refused", pullthroughtest.Config{Users: users}, "", "", 401},
		{"anonymous besides users", pullthroughtest.Config{Users: users, Anonymous: true}, "", "", 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.config.Auth = pullthroughtest.Bearer
			up := newUpstream(t, c.config)
			r := request(t, http.MethodGet, up.URL+tokenURL(pullScope))
			if c.user != "" {
				r.SetBasicAuth(c.user, c.password)
			}
			assert.Equal(t, c.status, do(t, up, r).StatusCode)
		})
	}
}

func TestTokenPost(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{
		Auth:           pullthroughtest.Bearer,
		Users:          map[string]string{"ann": "secret"},
		IdentityTokens: []string{"identity-1"},
	})
	for _, c := range []struct {
		name   string
		form   url.Values
		status int
	}{
		{"listed", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"identity-1"}}, 200},
		{"not listed", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"identity-2"}}, 401},
		{"password", url.Values{"grant_type": {"password"}, "username": {"ann"}, "password": {"secret"}}, 200},
		{"wrong password", url.Values{"grant_type": {"password"}, "username": {"ann"}, "password": {"guess"}}, 401},
		{"no grant", nil, 401},
		{"no form", url.Values{"%zz": nil}, 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			form := url.Values{"service": {"registry.test"}, "scope": {pullScope}}
			for name, values := range c.form {
				form[name] = values
			}
			encoded := strings.NewReader(form.Encode())
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, up.URL+"/token", encoded)
			require.NoError(t, err)
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			resp := do(t, up, r)
			require.Equal(t, c.status, resp.StatusCode)
			if c.status == 200 {
				token := decode[tokenAnswer](t, resp).AccessToken
				assert.Equal(t, 200, get(t, up, manifestPath, "Authorization", "Bearer "+token).StatusCode)
			}
		})
	}
}

func TestBasic(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{
		Auth:  pullthroughtest.Basic,
		Users: map[string]string{"AWS": "secret"},
		Allow: func(user, repo string) bool { return user == "AWS" && repo == "a/b" },
	})
	status := func(path, user, password string) int {
		r := request(t, http.MethodGet, up.URL+path)
		r.SetBasicAuth(user, password)
		return do(t, up, r).StatusCode
	}
	resp := get(t, up, manifestPath)
	assert.Equal(t, 401, resp.StatusCode)
	assert.Equal(t, `Basic realm="registry.test"`, resp.Header.Get("WWW-Authenticate"))
	assert.Equal(t, 200, status(manifestPath, "AWS", "secret"))
	assert.Equal(t, 200, status("/v2/", "AWS", "secret"))
	assert.Equal(t, 401, status(manifestPath, "AWS", "guess"))
	assert.Equal(t, 401, status(manifestPath, "", ""))
	assert.Equal(t, 403, status("/v2/private/manifests/latest", "AWS", "secret"))
	nobody := newUpstream(t, pullthroughtest.Config{Auth: pullthroughtest.Basic})
	assert.Equal(t, 401, get(t, nobody, "/v2/", "Authorization", "Basic Og==").StatusCode)
}

func TestAllowNarrowsTokens(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{
		Auth:  pullthroughtest.Bearer,
		Allow: func(_, repo string) bool { return repo != "private" },
	})
	up.Push("private", "latest", small)
	token := fetchToken(t, up, "repository:private:pull", pullScope).Token
	assert.Equal(t, 401, get(t, up, "/v2/private/manifests/latest", "Authorization", "Bearer "+token).StatusCode)
	assert.Equal(t, 200, get(t, up, manifestPath, "Authorization", "Bearer "+token).StatusCode)
	open := newUpstream(t, pullthroughtest.Config{Allow: func(string, string) bool { return false }})
	assert.Equal(t, 403, get(t, open, manifestPath).StatusCode)
}

func TestIssuerOnAnotherOrigin(t *testing.T) {
	issuer := pullthroughtest.New(t, pullthroughtest.Config{Users: map[string]string{"ann": "secret"}})
	up := newUpstream(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Issuer: issuer})
	assert.Contains(t, get(t, up, manifestPath).Header.Get("WWW-Authenticate"), `realm="`+issuer.URL+`/token"`)
	r := request(t, http.MethodGet, issuer.URL+tokenURL(pullScope))
	r.SetBasicAuth("ann", "secret")
	token := decode[tokenAnswer](t, do(t, issuer, r)).Token
	assert.Equal(t, 200, get(t, up, manifestPath, "Authorization", "Bearer "+token).StatusCode)
	issuer.RevokeTokens()
	assert.Equal(t, 401, get(t, up, manifestPath, "Authorization", "Bearer "+token).StatusCode)
	assert.Equal(t, []string{"GET /token 200"}, issuer.Log())
	assert.True(t, issuer.Saw("secret"))
	assert.False(t, up.Saw("secret"))
}
