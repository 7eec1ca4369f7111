package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/challenge"
	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
	"github.com/ecr-pullthrough/pullthrough/internal/quota"
)

const (
	maxSites  = 1024
	maxTokens = 2048
	probeWait = 2 * time.Second
)

// authorizer knows how each rule's upstream wants to be told who asks. It is
// shared by all requests and holds no lock while it talks to the network.
type authorizer struct {
	upstream    *upstream
	credentials func(context.Context, Repo, Rule) (Credential, error)
	onRotated   func(context.Context, Repo, Rule, string)
	now         func() time.Time

	generations *generations
	sites       *lru.Cache[routeID, *site]
	tokens      *lru.Cache[tokenKey, token]
	rotated     *lru.Cache[rotation, string]
	exchanges   *lru.Cache[rotation, *quota.Quota]
	fetches     flight.Group[tokenKey, token]
}

func newAuthorizer(u *upstream, p *Proxy) *authorizer {
	a := &authorizer{
		upstream:    u,
		credentials: p.Credentials,
		onRotated:   p.Rotated,
		now:         p.now,
		generations: newGenerations(),
		rotated:     lru.New[rotation, string](maxSites),
		exchanges:   lru.New[rotation, *quota.Quota](maxSites),
	}
	return a.fresh()
}

// fresh is an authorizer that has learnt nothing yet. Identity tokens are used up
// for all: those that came of them it knows.
func (a *authorizer) fresh() *authorizer {
	return &authorizer{
		upstream: a.upstream, credentials: a.credentials, onRotated: a.onRotated, now: a.now,
		generations: a.generations, rotated: a.rotated, exchanges: a.exchanges,
		sites:  lru.New[routeID, *site](maxSites),
		tokens: lru.New[tokenKey, token](maxTokens),
	}
}

// site is what was learnt about one rule's upstream. The first request finds
// out whether it is challenged while the others wait for that answer, so that
// a herd costs one 401.
type site struct {
	mu         sync.Mutex
	asked      bool          // a request has had its answer
	probing    chan struct{} // closed when the first one has, or has failed; nil: none is under way
	demand     demand
	generation generation // of the credential, when it was asked for last
	basic      token      // for a demand of basic: what to send
}

// String names the token by its scope, for people.
func (k tokenKey) String() string { return k.scope }

// tokenKey is all that a token depends on.
type tokenKey struct {
	rule       routeID
	generation generation
	demand     demand
	scope      string
	guest      bool // for a registry that we were redirected to
}

func keyOf(rt *route, g generation, d demand) tokenKey {
	return tokenKey{rule: rt.id, generation: g, demand: d, scope: scopeOf(rt, d)}
}

// token is a value for the Authorization header.
type token struct {
	header     string
	fetched    time.Time
	expires    time.Time // when to fetch a new one; zero: never
	generation generation
	anonymous  bool // the credentials were refused, and it was had without
}

// usable reports whether t may be sent. A clock that stands before its
// beginning has been set back and says nothing about its end.
func (t token) usable(now time.Time) bool {
	return t.header != "" && (t.expires.IsZero() || now.Before(t.expires) && !now.Before(t.fetched))
}

// sender sends a request with an Authorization header, "" for none, and calls
// answered with each answer that it gets on the way to its last.
type sender func(authorization string, answered func(*http.Response)) (*http.Response, error)

// do sends a request with the authorization that upstream is known to want,
// and once more after a challenge, or after a refusal that a cached token may
// be to blame for: an expired one is answered 401, by ECR 403, by ECR Public 400.
func (a *authorizer) do(ctx context.Context, rt *route, send sender) (*http.Response, error) {
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
	answered := func(resp *http.Response) {
		if resp.StatusCode != http.StatusUnauthorized {
			s.open()
			settle() // nobody needs to wait for what is to be learnt
		}
	}
	for try := 1; ; try++ {
		resp, err := send(sent.header, answered)
		if err != nil {
			return nil, err
		}
		lesson := s.learn(rt, resp, sent)
		if lesson.extra != "" {
			a.upstream.log.Warn("upstream's challenge asks for more than a pull of the repository",
				"host", rt.base.Host, "repository", rt.name, "scope", lesson.extra)
		}
		settle()
		if try > 1 && !lesson.widen || try > 2 || !lesson.again {
			return a.asGuest(ctx, rt, resp)
		}
		a.forget(rt, sent)
		keepBody(resp)
		sent, err = a.authorization(ctx, rt, s)
		if err == nil && sent.header == "" {
			return resp, nil // nothing better to say
		}
		if err != nil {
			return nil, err
		}
	}
}

// lesson is what an answer says about authorization.
type lesson struct {
	again bool   // another try is worth it
	widen bool   // since the token was too narrow
	extra string // scopes that upstream would have us ask for, and we do not
}

// learn notes what resp says. Another try is worth it if there is a demand, and
// what was sent did not meet it or was kept from earlier. A refusal by a host that
// we were redirected to says nothing: our credentials never were there.
func (s *site) learn(rt *route, resp *http.Response, sent grant) (l lesson) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := !s.asked
	s.asked = true
	if away(rt, resp) {
		return l
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		all := challenge.Parse(resp.Header.Values("WWW-Authenticate"))
		d, narrow, ok := choose(rt.base, all, s.demand)
		if ok {
			s.demand = d
		}
		l.again = sent.cached || ok && d != sent.demand
		l.widen = l.again && narrow
		if first && rt.name != "" {
			l.extra = extraScopes(all, rt.name)
		}
	case http.StatusBadRequest, http.StatusForbidden:
		l.again = sent.cached
	}
	return l
}

// open notes that upstream has answered without a challenge.
func (s *site) open() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = true
}

// away reports whether resp comes from where we were redirected to.
func away(rt *route, resp *http.Response) bool {
	return resp.Request != nil && origin(resp.Request.URL) != origin(rt.base)
}

// renew notes of which generation the credential is now. What was made from
// another one is not sent any more.
func (s *site) renew(g generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.generation != g {
		s.generation, s.basic = g, token{}
	}
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

// grant is what one request sends, and for which demand.
type grant struct {
	token
	demand demand
	cached bool // it was there before this request
}

// authorization returns what to send now.
func (a *authorizer) authorization(ctx context.Context, rt *route, s *site) (g grant, err error) {
	s.mu.Lock()
	demand := s.demand
	s.mu.Unlock()
	g.demand = demand
	if demand.scheme == "" {
		return g, nil
	}
	if g.token, g.cached = a.known(rt, s, demand); g.cached {
		g.note(ctx)
		return g, nil
	}
	// Without a generation: which it is, the fetch finds out for all who wait.
	key := keyOf(rt, generation{}, demand)
	g.token, err = a.fetchOnce(ctx, key, func(ctx context.Context) (token, error) {
		// The fetch before may have ended since we looked.
		if t, ok := a.known(rt, s, demand); ok {
			return t, nil
		}
		if demand.scheme == basicScheme {
			return a.fetchBasic(ctx, rt, s)
		}
		return a.fetchToken(ctx, rt, s, demand)
	})
	if e, ok := errors.AsType[*Error](err); ok {
		known := trusted(rt, demand) && (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden)
		if !known {
			s.doubt(demand)
		}
	}
	g.note(ctx)
	return g, err
}

// doubt forgets a demand that could not be met: a challenge that was wrong once
// must not be the rule's for ever. The next request is challenged again. The word
// of a token server that is known to be the registry's needs no second challenge.
func (s *site) doubt(d demand) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.demand == d {
		s.demand = demand{}
	}
}

// note marks a fetch that goes without the rule's credentials.
func (g grant) note(ctx context.Context) {
	if g.anonymous {
		traceOf(ctx).markAnonymous()
	}
}

// known returns what was had before and may still be sent.
func (a *authorizer) known(rt *route, s *site, d demand) (token, bool) {
	s.mu.Lock()
	t, g := s.basic, s.generation
	s.mu.Unlock()
	if d.scheme != basicScheme {
		t, _ = a.tokens.Get(keyOf(rt, g, d))
	}
	return t, t.usable(a.now())
}

// fetchOnce has one fetch serve all who want the key, on a context that is
// nobody's, and lets nobody wait for ever.
func (a *authorizer) fetchOnce(ctx context.Context, key tokenKey, fetch func(context.Context) (token, error)) (token, error) {
	wait, cancel := context.WithTimeoutCause(ctx, smallTimeout, errNoCredentials)
	defer cancel()
	t, _, err := a.fetches.Do(wait, key, func(call *flight.Call[tokenKey, token]) (token, error) {
		own, cancel := context.WithTimeout(withTraceOf(call.Context(), ctx), smallTimeout)
		defer cancel()
		return fetch(own)
	})
	if errors.Is(err, errNoCredentials) {
		err = &Error{Kind: ErrUnavailable, Err: err}
	}
	return t, err
}

var errNoCredentials = fmt.Errorf("no credentials within %v", smallTimeout)

// scopeOf asks for nothing but pulls from the route's repository, and for what
// was challenged first: some registries read one scope only.
func scopeOf(rt *route, d demand) string {
	if d.scheme == basicScheme {
		return ""
	}
	if rt.name == "" {
		return d.opaque // of the registry as a whole
	}
	return strings.TrimSpace(d.opaque + " " + fmt.Sprintf(pullScopeForm, rt.name))
}

// forget drops exactly the token that was refused: another request may have
// fetched a new one already.
func (a *authorizer) forget(rt *route, refused grant) {
	same := func(t token) bool { return t == refused.token }
	a.tokens.RemoveIf(keyOf(rt, refused.generation, refused.demand), same)
	if s, ok := a.sites.Get(rt.id); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		if same(s.basic) {
			s.basic = token{}
		}
	}
}

func (a *authorizer) fetchBasic(ctx context.Context, rt *route, s *site) (token, error) {
	cred, err := a.credential(ctx, rt, s)
	if err != nil {
		return token{}, err
	}
	if !cred.hasPassword() {
		return token{}, nil // upstream decides
	}
	t := token{header: cred.basic(), fetched: a.now(), expires: cred.ExpiresAt, generation: a.generations.of(cred)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.basic = t
	return t, nil
}
