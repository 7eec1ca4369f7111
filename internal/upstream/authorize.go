package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

const maxTokens = 2048

// errNoCredentials is the cause with which a request stops waiting for its token.
var errNoCredentials = fmt.Errorf("no credentials within %v", smallTimeout)

// authorizer knows how each registry wants to be told who asks. It is shared by all
// requests, holds no lock while it talks to the network, and is safe for
// concurrent use.
type authorizer struct {
	servers *tokenServers
	log     *slog.Logger
	now     func() time.Time
	ids     *fingerprinter

	registries *lru.Cache[any, *registry] // by Target.ID
	tokens     *lru.Cache[tokenKey, token]
	fetches    flight.Group[tokenKey, token]
	logins     flight.Group[loginKey, bool]
}

func newAuthorizer(servers *tokenServers, log *slog.Logger, now func() time.Time) *authorizer {
	a := &authorizer{servers: servers, log: log, now: now, ids: newFingerprinter()}
	return a.fresh()
}

// fresh is an authorizer that has learnt nothing yet. Only the identity tokens are
// common to both, since an exchange uses one up for everybody.
func (a *authorizer) fresh() *authorizer {
	return &authorizer{
		servers: a.servers, log: a.log, now: a.now, ids: a.ids,
		registries: lru.New[any, *registry](maxRegistries),
		tokens:     lru.New[tokenKey, token](maxTokens),
	}
}

// sender sends a request with an Authorization header, "" for none, and calls
// answered with each answer that it gets on the way to its last.
type sender func(header string, answered func(*http.Response)) (*http.Response, error)

// do sends a request with the authorization that the registry is known to want. It
// sends the request once more after a challenge, or after a refusal that a cached
// token may be to blame for, and a third time if the new token is good but not for
// enough. How the first request of all keeps the others waiting is told at registry,
// and what becomes of registries that do not challenge at login.
func (a *authorizer) do(ctx context.Context, t *Target, send sender) (*http.Response, error) {
	r := a.registries.GetOrPut(t.ID, func() *registry { return new(registry) })
	release, err := r.awaitFirst(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	sent, err := a.authorization(ctx, t, r)
	if err != nil {
		return nil, err
	}
	answered := func(resp *http.Response) {
		if resp.StatusCode != http.StatusUnauthorized {
			r.markAnswered()
			release() // there is no challenge to wait for
		}
	}
	for try := 1; ; try++ {
		resp, err := send(sent.header, answered)
		if err != nil {
			return nil, err
		}
		v, extra := r.readAnswer(t, resp, sent)
		release()
		a.logExtraScopes(t, extra)
		if v == final && r.mayHideContent(t, resp, sent, a.now()) {
			v = tryLogin
		}
		if try > v.tries() {
			return a.sendAsGuest(ctx, t, resp)
		}
		keepBody(resp)
		sent, err = a.authorizeAgain(ctx, t, r, sent, v)
		if err != nil {
			return nil, err
		}
		if sent.header == "" {
			return resp, nil // nothing better to say
		}
	}
}

// authorizeAgain returns what to send after an answer of that verdict to what was sent.
func (a *authorizer) authorizeAgain(ctx context.Context, t *Target, r *registry, sent authorization, v verdict) (authorization, error) {
	if v == tryLogin {
		return a.logIn(ctx, t, r, sent)
	}
	a.dropToken(t, r, sent)
	return a.authorization(ctx, t, r)
}

// logExtraScopes tells the operator what a registry wants that is not asked for.
func (a *authorizer) logExtraScopes(t *Target, extra string) {
	if extra == "" {
		return
	}
	a.log.Warn("upstream's challenge asks for more than a pull of the repository",
		"host", t.Base.Host, "repository", t.Name, "scope", a.servers.transport.secretsOf(t).strike(extra))
}

// authorization returns what to send now. Its errors are those of the fetch; those
// of Target.Credential are handed on as they are.
func (a *authorizer) authorization(ctx context.Context, t *Target, r *registry) (sent authorization, err error) {
	ch := r.currentChallenge()
	sent.challenge = ch
	if ch.scheme == "" {
		return sent, nil
	}
	if sent.token, sent.cached = a.cachedToken(t, r, ch); !sent.cached {
		sent.token, err = a.fetchOnce(ctx, t, r, ch)
	}
	if errors.Is(err, ErrDenied) {
		_, id := r.currentBasic()
		r.dropLogin(ch, id)
	}
	if err != nil && mayBeOutdated(t, ch, err) {
		r.dropChallenge(ch)
	}
	if sent.anonymous {
		traceOf(ctx).markAnonymous()
	}
	if failed, ok := err.(*credentialError); ok {
		err = failed.error
	}
	return sent, err
}

// mayBeOutdated reports whether a challenge that could not be answered should be
// asked for again. A token server that is known to be the registry's, and refuses
// us, needs no second challenge. A caller that leaves says nothing.
func mayBeOutdated(t *Target, ch authChallenge, err error) bool {
	if _, ok := err.(*credentialError); ok {
		return true
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return false
	}
	realm, parseErr := url.Parse(ch.realm)
	trusted := parseErr == nil && mayHaveCredentials(t, realm)
	return !trusted || e.Status != http.StatusUnauthorized && e.Status != http.StatusForbidden
}

// cachedToken returns what was had before and may still be sent.
func (a *authorizer) cachedToken(t *Target, r *registry, ch authChallenge) (token, bool) {
	cached, id := r.currentBasic()
	if ch.scheme != basicScheme {
		cached, _ = a.tokens.Get(newTokenKey(t, id, ch))
	}
	return cached, cached.isUsable(a.now())
}

// fetchOnce lets one fetch serve all requests that want the same token. The fetch
// runs under a context of its own, so a request that leaves takes the token from
// nobody, and no request waits for more than smallTimeout. The key has no credential ID:
// only the fetch finds out which credential the target has now.
func (a *authorizer) fetchOnce(ctx context.Context, t *Target, r *registry, ch authChallenge) (token, error) {
	wait, cancel := context.WithTimeoutCause(ctx, smallTimeout, errNoCredentials)
	defer cancel()
	key := newTokenKey(t, credentialID{}, ch)
	fetched, _, err := a.fetches.Do(wait, key, func(call *flight.Call[tokenKey, token]) (token, error) {
		own, cancel := context.WithTimeout(withTraceOf(call.Context(), ctx), smallTimeout)
		defer cancel()
		// The fetch before this one may have ended since we looked.
		if cached, ok := a.cachedToken(t, r, ch); ok {
			return cached, nil
		}
		return a.fetch(own, t, r, ch)
	})
	if errors.Is(err, errNoCredentials) {
		err = &Error{Kind: ErrUnavailable, Err: err}
	}
	return fetched, err
}

// fetch asks for the credential of now, and makes of it what the challenge wants.
//
// A credential may change at any time ("rotation"). Each fetch asks for it, and
// what is kept is keyed by the credential's ID:
//
//  1. The registry refuses the token it was sent. That token is dropped, and the
//     request asks for another (dropToken, authorization).
//  2. The fetch asks the target, which now has a new credential, with a new ID.
//     setCredential makes that ID the one under which cachedToken looks: nothing that
//     was had with the old credential is found from then on.
//  3. There may be a token for the new ID already, as another request was here
//     first. Then it is used. Else the token server is asked, and the token is kept
//     under the new ID.
//  4. A fetch with the old credential may end after all this. Its token goes under
//     the old ID, where nobody looks.
func (a *authorizer) fetch(ctx context.Context, t *Target, r *registry, ch authChallenge) (token, error) {
	cred, err := a.servers.callbacks.askCredential(ctx, t)
	if err != nil {
		return token{}, err
	}
	id := a.ids.id(cred)
	r.setCredential(id)
	if ch.scheme == basicScheme {
		return a.makeBasic(r, id, cred), nil
	}
	key := newTokenKey(t, id, ch)
	if cached, ok := a.tokens.Get(key); ok && cached.isUsable(a.now()) {
		return cached, nil
	}
	return a.fetchToken(ctx, t, key, cred)
}

// makeBasic returns what to send for Basic; nothing if there is no password. Then
// the registry decides.
func (a *authorizer) makeBasic(r *registry, id credentialID, cred Credential) token {
	if !cred.hasPassword() {
		return token{}
	}
	made := token{header: cred.basic(), fetched: a.now(), expires: cred.ExpiresAt, credential: id}
	r.setBasic(made)
	return made
}

// fetchToken asks the token server and keeps what it gets.
func (a *authorizer) fetchToken(ctx context.Context, t *Target, key tokenKey, cred Credential) (token, error) {
	answer, err := a.servers.request(ctx, t, key, cred)
	e, _ := errors.AsType[*Error](err)
	refused := e != nil && e.Kind == ErrDenied && e.Status != 0 // by the token server, not by us
	if refused && t.Options.AnonymousFallback && !cred.isAnonymous() {
		a.log.Warn("credentials refused, going on without", "repository", t.label(), "err", err)
		answer, err = a.servers.get(ctx, t, key, Credential{})
	}
	if err != nil {
		return token{}, err
	}
	fetched := token{header: "Bearer " + answer.token, fetched: a.now(), credential: key.credential, anonymous: refused}
	fetched.expires = fetched.fetched.Add(answer.life)
	a.tokens.Put(key, fetched)
	return fetched, nil
}

// dropToken drops exactly the token that was refused. Of ten requests that were
// sent with one token, and were all refused, the first drops it and fetches a new
// one. The other nine find the new one in its place: they leave it there, and send
// it.
func (a *authorizer) dropToken(t *Target, r *registry, refused authorization) {
	key := newTokenKey(t, refused.credential, refused.challenge)
	a.tokens.RemoveIf(key, func(kept token) bool { return kept == refused.token })
	r.dropBasic(refused.token)
}

// sendAsGuest answers the challenge of another registry that we were redirected to,
// with a token for anybody, for this one request. The target's credential is not
// sent: it is for the target's registry only. Any other answer is returned as it
// is.
func (a *authorizer) sendAsGuest(ctx context.Context, t *Target, resp *http.Response) (*http.Response, error) {
	if resp.StatusCode != http.StatusUnauthorized || !isElsewhere(t, resp) {
		return resp, nil
	}
	ch, scope, ok := guestChallenge(resp)
	if !ok {
		return resp, nil
	}
	drain(resp)
	answer, err := a.servers.get(ctx, t, tokenKey{target: t.ID, challenge: ch, scope: scope, guest: true}, Credential{})
	if err != nil {
		return nil, err
	}
	req := resp.Request.Clone(ctx)
	req.Header.Set("Authorization", "Bearer "+answer.token)
	return a.servers.transport.send(t, req, anyOrigin)
}
