package pullthroughtest

import (
	"crypto/rand"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Auth is how a registry wants to know its clients.
type Auth int

const (
	// Open lets everybody in and never answers 401.
	Open Auth = iota
	// Basic wants a user name and password with every request.
	Basic
	// Bearer wants a token, to be had from the token endpoint that its challenge names.
	Bearer
)

// RevokeTokens makes every token given out so far worthless, before its time and without telling anybody.
func (u *Upstream) RevokeTokens() { u.tokens.revoke() }

// IssueToken makes a token that is good for scopes, each like "repository:library/alpine:pull", and lives for ttl;
// zero: Config.TokenTTL, negative: it has expired already. It lets a test write token answers of its own.
func (u *Upstream) IssueToken(ttl time.Duration, scopes ...string) string {
	if ttl == 0 {
		ttl = u.tokenTTL()
	}
	return u.issue(scopes, u.now().Add(ttl))
}

// issue lets the ledgers of secrets know before the client does.
func (u *Upstream) issue(scopes []string, expires time.Time) string {
	token := u.tokens.issue(scopes, expires)
	for _, s := range u.tokens.watchers.list() {
		s.learnToken(token, u)
	}
	return token
}

func (u *Upstream) tokenTTL() time.Duration {
	if u.config.TokenTTL == 0 {
		return 300 * time.Second
	}
	return u.config.TokenTTL
}

func (u *Upstream) now() time.Time {
	if u.config.Now == nil {
		return time.Now()
	}
	return u.config.Now()
}

func (u *Upstream) service() string {
	if u.config.Service == "" {
		return "registry.test"
	}
	return u.config.Service
}

func (u *Upstream) issuer() *Upstream {
	if u.config.Issuer == nil {
		return u
	}
	return u.config.Issuer
}

// admit reports whether the request may go on to repo, "" for the registry itself. If not it has been answered.
func (u *Upstream) admit(w http.ResponseWriter, r *http.Request, repo string) bool {
	user, ok := u.authenticate(r, repo)
	if !ok {
		w.Header().Set("Www-Authenticate", u.challenge(repo))
		writeError(w, http.StatusUnauthorized, "authentication required")
		return false
	}
	if repo != "" && u.config.Auth != Bearer && !u.allows(user, repo) {
		writeError(w, http.StatusForbidden, "requested access to the resource is denied")
		return false
	}
	return true
}

// authenticate says who asks, "" when anonymous. With Bearer nobody knows, and the token has said all about repo.
func (u *Upstream) authenticate(r *http.Request, repo string) (user string, ok bool) {
	switch u.config.Auth {
	case Basic:
		user, password, _ := r.BasicAuth()
		return user, u.knows(user, password)
	case Bearer:
		issuer := u.issuer()
		scopes, ok := issuer.tokens.scopes(bearerToken(r), issuer.now())
		return "", ok && (repo == "" || covers(scopes, u.scope(repo)))
	}
	return "", true
}

func (u *Upstream) knows(user, password string) bool {
	want, ok := u.config.Users[user]
	return ok && want == password
}

func (u *Upstream) allows(user, repo string) bool {
	return u.config.Allow == nil || u.config.Allow(user, repo)
}

// challenge is what a 401 for repo says. The /v2/ challenge has no scope, since no repository was asked for.
func (u *Upstream) challenge(repo string) string {
	if u.config.Auth != Bearer {
		return fmt.Sprintf("Basic realm=%q", u.service())
	}
	realm := u.config.Realm
	if realm == "" {
		realm = u.issuer().url + "/token"
	}
	challenge := fmt.Sprintf(`Bearer realm="%s",service="%s"`, realm, u.service())
	if repo != "" || u.config.Scope != "" {
		challenge += fmt.Sprintf(`,scope="%s"`, u.scope(repo))
	}
	return challenge
}

func (u *Upstream) scope(repo string) string {
	if u.config.Scope != "" {
		return u.config.Scope
	}
	return "repository:" + repo + ":pull"
}

func bearerToken(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return token
}

// serveToken is the token endpoint: GET with Basic credentials or none, POST with a refresh token or a password.
func (u *Upstream) serveToken(w http.ResponseWriter, r *http.Request) {
	user, ok := u.identify(r)
	if !ok {
		writeError(w, http.StatusUnauthorized, "incorrect username or password")
		return
	}
	var scopes []string
	for _, scope := range r.Form["scope"] {
		for _, s := range strings.Fields(scope) {
			if u.grants(user, s) {
				scopes = append(scopes, s)
			}
		}
	}
	now, ttl := u.now(), u.tokenTTL()
	token := u.issue(scopes, now.Add(ttl))
	writeJSON(w, http.StatusOK, map[string]any{
		"token":        token,
		"access_token": token,
		"expires_in":   int64(ttl / time.Second),
		"issued_at":    now.UTC().Format(time.RFC3339),
	})
}

// identify says who asks for a token, "" when anonymous, and whether there will be one.
func (u *Upstream) identify(r *http.Request) (user string, ok bool) {
	if err := r.ParseForm(); err != nil {
		return "", false
	}
	if r.Method == http.MethodPost {
		return u.identifyPost(r)
	}
	user, password, ok := r.BasicAuth()
	if !ok {
		return "", r.Header.Get("Authorization") == "" && (u.config.Users == nil || u.config.Anonymous)
	}
	return user, u.knows(user, password)
}

func (u *Upstream) identifyPost(r *http.Request) (user string, ok bool) {
	switch r.PostForm.Get("grant_type") {
	case "refresh_token":
		token := r.PostForm.Get("refresh_token")
		return token, slices.Contains(u.config.IdentityTokens, token)
	case "password":
		user = r.PostForm.Get("username")
		return user, u.knows(user, r.PostForm.Get("password"))
	}
	return "", false
}

// grants drops what the user may not pull, as real token servers do: they answer 200 with less.
func (u *Upstream) grants(user, scope string) bool {
	kind, rest, _ := strings.Cut(scope, ":")
	repo := rest[:max(0, strings.LastIndexByte(rest, ':'))]
	return kind != "repository" || u.allows(user, repo)
}

// tokens are those given out and not revoked. Safe for concurrent use.
type tokens struct {
	mu       sync.Mutex
	live     map[string]grant
	watchers watchers // of those to come
}

// grant is what a token is good for.
type grant struct {
	scopes  []string
	expires time.Time
}

func (t *tokens) issue(scopes []string, expires time.Time) string {
	token := rand.Text()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		t.live = map[string]grant{}
	}
	t.live[token] = grant{scopes: slices.Clone(scopes), expires: expires}
	return token
}

// watch has s told of the tokens to come, and returns those that are there.
func (t *tokens) watch(s *Secrets) []string {
	t.watchers.add(s)
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.live))
}

func (t *tokens) scopes(token string, now time.Time) (scopes []string, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g, ok := t.live[token]
	return g.scopes, ok && now.Before(g.expires)
}

func (t *tokens) revoke() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.live = nil
}

// covers reports whether one of the granted scopes is want or allows, among others, the one action of want.
func covers(granted []string, want string) bool {
	resource, action := cutAction(want)
	return slices.ContainsFunc(granted, func(g string) bool {
		r, actions := cutAction(g)
		return g == want || r == resource && slices.Contains(strings.Split(actions, ","), action)
	})
}

// cutAction cuts a scope at its last colon: names may hold a registry's port.
func cutAction(scope string) (resource, action string) {
	i := strings.LastIndexByte(scope, ':')
	if i < 0 {
		return scope, ""
	}
	return scope[:i], scope[i+1:]
}
