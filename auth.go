package pullthrough

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/challenge"
	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

// Credential is what an upstream registry is told for one rule. The zero value
// is anonymous. It goes to the upstream registry itself (Basic) or to a token
// server that the rule allows (Bearer), and nowhere else; printing it shows no
// secret.
//
// In Amazon ECR it comes from a secret {"username": …, "accessToken": …} in
// Secrets Manager.
type Credential struct {
	Username    string
	AccessToken string // the password or token that belongs to Username
	// IdentityToken is a refresh token, which token servers take in place of user
	// and password (POST with grant_type=refresh_token). Where one does not, Username
	// and AccessToken are tried once, if they are there. "": none.
	IdentityToken string
	ExpiresAt     time.Time // when to ask for a new one; zero: it does not expire
}

// String does not show the secret.
func (c Credential) String() string {
	if c.anonymous() {
		return "anonymous"
	}
	return "credential(redacted)"
}

// GoString does not show the secret.
func (c Credential) GoString() string { return c.String() }

// LogValue does not show the secret.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

func (c Credential) anonymous() bool { return !c.hasPassword() && c.IdentityToken == "" }

func (c Credential) hasPassword() bool { return c.Username != "" || c.AccessToken != "" }

func (c Credential) basic() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.AccessToken))
}

const (
	maxSites      = 1024
	maxTokens     = 2048
	probeWait     = 2 * time.Second
	bearerScheme  = "bearer"
	basicScheme   = "basic"
	pullScopeForm = "repository:%s:pull"
)

// realmPairs are token servers that belong to a registry on another host. The
// trust is in the pair, not in the server.
var realmPairs = map[string]string{
	"registry-1.docker.io": "auth.docker.io",
	"registry.gitlab.com":  "gitlab.com",
}

// authorizer knows how each rule's upstream wants to be told who asks. It is
// shared by all requests and holds no lock while it talks to the network.
type authorizer struct {
	upstream    *upstream
	credentials func(context.Context, Repo, Rule) (Credential, error)
	now         func() time.Time

	sites   *lru.Cache[routeID, *site]
	tokens  *lru.Cache[tokenKey, token]
	fetches flight.Group[tokenKey, token]
}

func newAuthorizer(u *upstream, p *Proxy) *authorizer {
	return &authorizer{
		upstream:    u,
		credentials: p.Credentials,
		now:         p.now,
		sites:       lru.New[routeID, *site](maxSites),
		tokens:      lru.New[tokenKey, token](maxTokens),
	}
}

// site is what was learnt about one rule's upstream. The first request finds
// out whether it is challenged while the others wait for that answer, so that
// a herd costs one 401.
type site struct {
	mu      sync.Mutex
	asked   bool          // a request has had its answer
	probing chan struct{} // closed when the first one has, or has failed; nil: none is under way
	demand  demand
	basic   token // for a demand of basic: what to send
}

// demand is what a challenge asks for. The zero demand asks for nothing.
type demand struct {
	scheme  string
	realm   string
	service string
	opaque  string // scopes that are no resource scopes (ECR Public's "aws"), space-separated
}

// tokenKey is all that a token depends on.
type tokenKey struct {
	rule   routeID
	demand demand
	scope  string
}

// token is a value for the Authorization header.
type token struct {
	header  string
	expires time.Time // when to fetch a new one; zero: never
}

func (t token) usable(now time.Time) bool {
	return t.header != "" && (t.expires.IsZero() || now.Before(t.expires))
}

// do sends a request with the authorization that upstream is known to want,
// and once more after a challenge, or after a refusal that a cached token may
// be to blame for: an expired one is answered 401, by ECR 403, by ECR Public 400.
func (a *authorizer) do(ctx context.Context, rt *route, send func(authorization string) (*http.Response, error)) (*http.Response, error) {
	s := a.sites.GetOrPut(rt.id, func() *site { return new(site) })
	settle, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer settle()
	sent, err := a.authorization(ctx, rt, s)
	if err != nil {
		return nil, err
	}
	resp, err := send(sent.header)
	if err != nil {
		return nil, err
	}
	if !s.learn(rt, resp, sent) {
		return resp, nil
	}
	settle()
	a.forget(rt, sent)
	next, err := a.authorization(ctx, rt, s)
	if err == nil && next.header == "" {
		return resp, nil // nothing better to say
	}
	drain(resp)
	if err != nil {
		return nil, err
	}
	return send(next.header)
}

// learn notes what resp says about authorization, and reports whether another
// try is worth it: there is a demand, and what was sent did not meet it or was
// kept from earlier. A refusal by a host that we were redirected to says
// nothing: our credentials never were there.
func (s *site) learn(rt *route, resp *http.Response, sent grant) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = true
	if resp.Request != nil && origin(resp.Request.URL) != origin(rt.base) {
		return false
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		d, ok := choose(rt, challenge.Parse(resp.Header.Values("WWW-Authenticate")))
		if ok {
			s.demand = d
		}
		return sent.cached || ok && d != sent.demand
	case http.StatusBadRequest, http.StatusForbidden:
		return sent.cached
	}
	return false
}

// enter lets the first request pass at once, and those that come meanwhile when
// it has its answer or has failed. settle must be called then; it may be called
// more than once.
func (s *site) enter(ctx context.Context) (settle func(), err error) {
	s.mu.Lock()
	if s.asked {
		s.mu.Unlock()
		return func() {}, nil
	}
	if wait := s.probing; wait != nil {
		s.mu.Unlock()
		patience := time.NewTimer(probeWait)
		defer patience.Stop()
		select {
		case <-wait:
			return func() {}, nil
		case <-patience.C:
			return func() {}, nil // one slow answer must not hold up the whole rule
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	done := make(chan struct{})
	s.probing = done
	s.mu.Unlock()
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.probing = nil
		close(done)
	}), nil
}

// choose picks the challenge to answer: a Bearer one that can be used, else a
// Basic one.
func choose(rt *route, all []challenge.Challenge) (demand, bool) {
	basic := false
	for _, c := range all {
		switch c.Scheme {
		case bearerScheme:
			if checkRealm(rt, c.Params["realm"]) == nil {
				return demand{bearerScheme, c.Params["realm"], c.Params["service"], opaqueScopes(c.Params["scope"])}, true
			}
		case basicScheme:
			basic = true
		}
	}
	return demand{scheme: basicScheme}, basic
}

// opaqueScopes keeps those of a challenge's scopes that name no resource. A
// challenge must not widen what we ask for to another repository or to a push.
func opaqueScopes(scope string) string {
	fields := slices.DeleteFunc(strings.Fields(scope), func(s string) bool {
		return strings.Contains(s, ":") || len(s) > 256
	})
	slices.Sort(fields)
	fields = slices.Compact(fields)
	return strings.Join(fields[:min(len(fields), 8)], " ")
}

// checkRealm refuses token servers that no secret and no question may go to:
// the realm is upstream's word, and upstream may be hostile.
func checkRealm(rt *route, realm string) error {
	u, err := url.Parse(realm)
	switch {
	case err != nil, strings.ContainsFunc(realm, func(r rune) bool { return r <= ' ' || r > '~' }):
		return errors.New("token server is no URL")
	case u.Scheme != "https" && (u.Scheme != "http" || rt.base.Scheme != "http"):
		return fmt.Errorf("token server has the scheme %.20q", u.Scheme)
	case u.Hostname() == "" || u.User != nil || u.Fragment != "" || u.Opaque != "":
		return errors.New("token server is no plain URL")
	}
	return nil
}

// mayHaveCredentials reports whether the rule's secret may go to the token
// server: it has the registry's scheme and host name (on any port), is the
// registry's known partner, or the rule names it.
func mayHaveCredentials(rt *route, realm *url.URL) bool {
	host := strings.ToLower(realm.Hostname())
	registry := strings.ToLower(rt.base.Hostname())
	if realm.Scheme == rt.base.Scheme && host == registry {
		return true
	}
	if realm.Scheme == "https" && realmPairs[registry] == host {
		return true
	}
	return slices.ContainsFunc(rt.policy.RealmHosts, func(allowed string) bool {
		return strings.EqualFold(allowed, host) || strings.EqualFold(allowed, realm.Host)
	})
}

// grant is what one request sends, and for which demand.
type grant struct {
	token
	demand demand
	cached bool // it was there before this request
}

// authorization returns what to send now.
func (a *authorizer) authorization(ctx context.Context, rt *route, s *site) (grant, error) {
	s.mu.Lock()
	demand, basic := s.demand, s.basic
	s.mu.Unlock()
	switch {
	case demand.scheme == bearerScheme:
		key := tokenKeyOf(rt, demand)
		if t, ok := a.tokens.Get(key); ok && t.usable(a.now()) {
			return grant{t, demand, true}, nil
		}
		t, err := a.fetchOnce(ctx, key, func(ctx context.Context) (token, error) {
			// The fetch before may have ended since we looked.
			if t, ok := a.tokens.Get(key); ok && t.usable(a.now()) {
				return t, nil
			}
			t, err := a.fetchToken(ctx, rt, key)
			if err == nil {
				a.tokens.Put(key, t)
			}
			return t, err
		})
		return grant{t, demand, false}, err
	case demand.scheme == basicScheme && basic.usable(a.now()):
		return grant{basic, demand, true}, nil
	case demand.scheme == basicScheme:
		t, err := a.fetchOnce(ctx, tokenKey{rule: rt.id, demand: demand}, func(ctx context.Context) (token, error) {
			// The fetch before may have ended since we looked.
			s.mu.Lock()
			known := s.basic
			s.mu.Unlock()
			if known.usable(a.now()) {
				return known, nil
			}
			return a.fetchBasic(ctx, rt, s)
		})
		return grant{t, demand, false}, err
	}
	return grant{}, nil
}

// fetchOnce has one fetch serve all who want the key, on a context that is
// nobody's, and lets nobody wait for ever.
func (a *authorizer) fetchOnce(ctx context.Context, key tokenKey, fetch func(context.Context) (token, error)) (token, error) {
	wait, cancel := context.WithTimeoutCause(ctx, smallTimeout, errNoCredentials)
	defer cancel()
	t, _, err := a.fetches.Do(wait, key, func(call *flight.Call[tokenKey, token]) (token, error) {
		own, cancel := context.WithTimeout(withCounterOf(call.Context(), ctx), smallTimeout)
		defer cancel()
		return fetch(own)
	})
	if errors.Is(err, errNoCredentials) {
		err = &Error{Kind: ErrUnavailable, Err: err}
	}
	return t, err
}

var errNoCredentials = fmt.Errorf("no credentials within %v", smallTimeout)

// tokenKeyOf asks for nothing but pulls from the route's repository.
func tokenKeyOf(rt *route, d demand) tokenKey {
	return tokenKey{rt.id, d, strings.TrimSpace(d.opaque + " " + fmt.Sprintf(pullScopeForm, rt.name))}
}

// forget drops exactly the token that was refused: another request may have
// fetched a new one already.
func (a *authorizer) forget(rt *route, refused grant) {
	same := func(t token) bool { return t == refused.token }
	a.tokens.RemoveIf(tokenKeyOf(rt, refused.demand), same)
	if s, ok := a.sites.Get(rt.id); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		if same(s.basic) {
			s.basic = token{}
		}
	}
}

func (a *authorizer) fetchBasic(ctx context.Context, rt *route, s *site) (token, error) {
	cred, err := a.credential(ctx, rt)
	if err != nil {
		return token{}, err
	}
	if cred.anonymous() {
		return token{}, nil // upstream decides
	}
	t := token{header: cred.basic(), expires: cred.ExpiresAt}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.basic = t
	return t, nil
}

// credential asks the host. Its failure refuses the pull as Amazon ECR does
// when it cannot read a rule's secret.
func (a *authorizer) credential(ctx context.Context, rt *route) (cred Credential, err error) {
	if a.credentials == nil {
		return Credential{}, nil
	}
	err = guarded("Credentials", func() (err error) {
		cred, err = a.credentials(ctx, rt.repo, rt.rule)
		return err
	})
	if err != nil {
		return Credential{}, rt.error(ErrDenied, fmt.Errorf("credentials of the rule: %w", err))
	}
	return cred, nil
}
