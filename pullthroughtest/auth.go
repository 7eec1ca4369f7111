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

// Auth is how a registry authenticates its clients.
type Auth int

const (
	// Open requires no authentication and never answers 401.
	Open Auth = iota
	// Basic requires a user name and a password with every request.
	Basic
	// Bearer requires a token from the token endpoint that the challenge names.
	Bearer
)

// RevokeTokens revokes all tokens issued so far, before they expire. Clients are not told.
func (u *Upstream) RevokeTokens() { u.tokens.revoke() }

// IssueToken returns a new token for the given scopes, each like "repository:library/alpine:pull". The token lives for
// ttl; zero means Config.TokenTTL, and a negative ttl makes a token that has already expired. Tests use it to write
// their own token answers.
func (u *Upstream) IssueToken(ttl time.Duration, scopes ...string) string {
	if ttl == 0 {
		ttl = u.tokenTTL()
	}
	return u.issue(scopes, u.now().Add(ttl))
}

// issue issues a token. It registers the token with the [Secrets] that watch this registry before a client can see it.
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

// admit reports whether the request may access repo; "" stands for the registry itself. If not, admit has answered the
// request.
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

// authenticate returns the user who sent the request; "" means anonymous. With Bearer the user is not known, and the
// token's scopes have already decided about repo.
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

// challenge returns the WWW-Authenticate header of a 401 for repo. The challenge of /v2/ has no scope, since the request
// names no repository.
func (u *Upstream) challenge(repo string) string {
	if u.config.Auth != Bearer {
		return fmt.Sprintf("Basic realm=%q", u.service())
	}
	realm := u.config.Realm
	if realm == "" {
		realm = u.issuer().URL + "/token"
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

// serveToken is the token endpoint. It takes GET with Basic credentials or none, and POST with a refresh token or a
// password.
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

// identify returns the user who asks for a token, "" for an anonymous client, and whether a token may be issued.
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

// grants reports whether the user gets the scope. Scopes that are not granted are left out of the token, as real token
// servers do: they still answer 200.
func (u *Upstream) grants(user, scope string) bool {
	kind, rest, _ := strings.Cut(scope, ":")
	repo := rest[:max(0, strings.LastIndexByte(rest, ':'))]
	return kind != "repository" || u.allows(user, repo)
}

// tokens are the issued tokens that have not been revoked. Safe for concurrent use.
type tokens struct {
	mu       sync.Mutex
	live     map[string]grant
	watchers watchers // told of each new token
}

// grant is what a token allows, and until when.
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

// watch registers s for all future tokens and returns the current ones.
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

// covers reports whether one of the granted scopes equals want or has want's action among its own.
func covers(granted []string, want string) bool {
	resource, action := cutAction(want)
	return slices.ContainsFunc(granted, func(g string) bool {
		r, actions := cutAction(g)
		return g == want || r == resource && slices.Contains(strings.Split(actions, ","), action)
	})
}

// cutAction splits a scope at its last colon. A repository name may contain a colon itself, before a registry's port.
func cutAction(scope string) (resource, action string) {
	i := strings.LastIndexByte(scope, ':')
	if i < 0 {
		return scope, ""
	}
	return scope[:i], scope[i+1:]
}
