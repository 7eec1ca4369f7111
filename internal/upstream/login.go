package upstream

import (
	"context"
	"net/http"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/challenge"
	"github.com/ecr-pullthrough/pullthrough/internal/flight"
)

const (
	loginTimeout = 10 * time.Second // for the answer of /v2/
	loginKept    = time.Hour        // for how long it counts that /v2/ asks nobody to log in
	loginRetry   = 10 * time.Second // when to ask /v2/ again that gave no answer
	loginUnknown = time.Minute      // when to ask a target again that had no credential
)

// login is what is known of registries that ask for credentials at /v2/ and nowhere
// else. To those who come without, their objects are refused or are not there. docker
// logs in at /v2/ first, and never notices. A Client learns it like this:
//
//  1. An answer is 401 without a challenge, 403 or 404, and the registry has challenged
//     nobody yet. The target is asked for its credential. Without one this is the end.
//  2. /v2/ is asked, without authorization, once for all requests that wait for it.
//  3. Its answer is a challenge: that is kept like any other, and each request is sent
//     once more, with authorization.
//  4. It is no challenge: that is remembered, and so is a credential that was refused.
//     The answers that there were stand, and /v2/ is not asked again: for an hour, or
//     until the target has another credential.
//
// The zero value knows nothing.
type login struct {
	challenge authChallenge // that /v2/ has answered with
	met       credentialID  // what was good for something last
	refused   credentialID  // what was good for nothing
	until     time.Time     // until then there is no use in asking
}

// loginKey is one question to one registry, after what was sent in vain.
type loginKey struct {
	target     any // Target.ID
	challenge  authChallenge
	credential credentialID
}

// String names the question, for people.
func (loginKey) String() string { return "/v2/" }

// mayHideContent reports whether resp may be another one for those who log in.
func (r *registry) mayHideContent(t *Target, resp *http.Response, sent authorization, now time.Time) bool {
	if t.Credential == nil || t.Name == "" || isElsewhere(t, resp) {
		return false
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		if len(resp.Header.Values("WWW-Authenticate")) > 0 {
			return false
		}
	case http.StatusForbidden, http.StatusNotFound:
	default:
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if sent.challenge.scheme == "" {
		return r.challenge.scheme != "" || !now.Before(r.login.until)
	}
	return resp.StatusCode == http.StatusNotFound && sent.cached && sent.challenge == r.login.challenge
}

// logIn returns what to send in place of sent, which was answered as if by a registry
// that hides its content; nothing where that is no use.
func (a *authorizer) logIn(ctx context.Context, t *Target, r *registry, sent authorization) (authorization, error) {
	known, _, err := a.logins.Do(ctx, loginKey{t.ID, sent.challenge, sent.credential}, func(call *flight.Call[loginKey, bool]) (bool, error) {
		own, cancel := context.WithTimeout(withTraceOf(call.Context(), ctx), smallTimeout)
		defer cancel()
		return a.askLogin(own, t, r, sent), nil
	})
	switch {
	case ctx.Err() != nil:
		return authorization{}, context.Cause(ctx)
	case err != nil || !known:
		return authorization{}, nil
	}
	better, err := a.authorization(ctx, t, r)
	if err != nil {
		a.log.Warn("upstream asks for credentials at /v2/, and they were not taken", "host", t.Base.Host, "repository", t.label(), "err", err)
		return authorization{}, context.Cause(ctx)
	}
	return better, nil
}

// askLogin reports whether there is a challenge to meet that sent has not met.
func (a *authorizer) askLogin(ctx context.Context, t *Target, r *registry, sent authorization) bool {
	if ch := r.currentChallenge(); ch != sent.challenge {
		return ch.scheme != "" // another request has learnt it
	}
	cred, err := a.servers.callbacks.askCredential(ctx, t)
	if err != nil {
		return false
	}
	id := a.ids.id(cred)
	r.setCredential(id)
	switch {
	case sent.challenge.scheme != "": // the credential may have changed since
		return !cred.isAnonymous() && id != sent.credential
	case cred.isAnonymous():
		return r.noLogin(a.now().Add(loginUnknown))
	case r.wasRefused(id):
		return false
	}
	resp, err := a.pingLogin(ctx, t)
	if err != nil {
		return r.noLogin(a.now().Add(loginRetry))
	}
	drain(resp)
	ch, _, ok := chooseChallenge(t.Base, challenge.Parse(resp.Header.Values("WWW-Authenticate")), authChallenge{})
	switch {
	case isElsewhere(t, resp) || mayPassStatus(resp.StatusCode):
		return r.noLogin(a.now().Add(loginRetry))
	case resp.StatusCode != http.StatusUnauthorized || !ok:
		return r.noLogin(a.now().Add(loginKept))
	}
	return r.learnLogin(ch)
}

// pingLogin asks for /v2/ as one who has not logged in.
func (a *authorizer) pingLogin(ctx context.Context, t *Target) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	return retry(ctx, a.servers.limiters.of(t, "login"), attempts{requests: 1}, func() (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.Base.JoinPath("v2/").String(), nil)
		if err != nil {
			return nil, err
		}
		return a.servers.transport.send(t, req, sameOrigin)
	})
}

// noLogin notes that there is nothing to learn from /v2/ until then. It returns false.
func (r *registry) noLogin(until time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.login.until = until
	return false
}

// learnLogin keeps the challenge of /v2/. It returns true.
func (r *registry) learnLogin(ch authChallenge) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.challenge, r.login.challenge = ch, ch
	return true
}

// wasRefused reports whether the credential did not meet the challenge of /v2/.
func (r *registry) wasRefused(id credentialID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.login.refused == id
}

// dropLogin forgets the challenge of /v2/ if that is what could not be met with the
// credential. What is there for everybody is there again from now on.
func (r *registry) dropLogin(ch authChallenge, id credentialID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropLoginLocked(ch, id)
}

func (r *registry) dropLoginLocked(ch authChallenge, id credentialID) {
	if ch.scheme == "" || ch != r.login.challenge {
		return
	}
	r.login = login{refused: id}
	if r.challenge == ch {
		r.challenge = authChallenge{}
	}
}
