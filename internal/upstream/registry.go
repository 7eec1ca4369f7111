package upstream

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/challenge"
)

const (
	maxRegistries = 1024
	// firstAnswerWait is how long others wait for the one request that is to find
	// something out for all of them.
	firstAnswerWait = 2 * time.Second
)

// registry is what is known about the registry of targets with one ID: whether it
// challenges, and how. It is safe for concurrent use.
//
// A hundred clients that come at once must not be challenged a hundred times. So
// the very first request goes alone.
//
//  1. The first request takes the lead: it makes first, and is sent without
//     authorization. Those that come meanwhile wait for first to be closed.
//  2. Its answer is not a 401: the registry wants nothing for this. first is closed
//     as soon as the header is in, even if it is a 503 and the request is tried
//     again. All others go on, without authorization.
//  3. Its answer is a 401: the challenge is kept, then first is closed. The others
//     go on with that challenge. They need a token each, and those that need the
//     same one share one fetch.
//  4. It fails, or its client leaves: first is closed, with nothing learnt. Those
//     that waited go on without authorization; the next one that comes leads again.
//  5. It is slow: after firstAnswerWait the others go on without authorization. Some
//     of them may be challenged, too, which is harmless.
//
// From the first answer on, nobody waits any more.
type registry struct {
	mu         sync.Mutex
	answered   bool          // some request has had its answer
	first      chan struct{} // closed when the first one has, or has failed; nil: none is under way
	challenge  authChallenge
	credential credentialID // of the credential that was asked for last
	basic      token        // what to send if the challenge is Basic
	login      login        // what /v2/ has to say
}

// awaitFirst lets the first request pass at once, and those that come meanwhile
// when that has its answer or has failed. release must be called then; it may be
// called more than once.
func (r *registry) awaitFirst(ctx context.Context) (release func(), err error) {
	r.mu.Lock()
	if r.answered {
		r.mu.Unlock()
		return func() {}, nil
	}
	if first := r.first; first != nil {
		r.mu.Unlock()
		timer := time.NewTimer(firstAnswerWait)
		defer timer.Stop()
		select {
		case <-first:
			return func() {}, nil
		case <-timer.C:
			return func() {}, nil // one slow answer must not hold up all others
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	first := make(chan struct{})
	r.first = first
	r.mu.Unlock()
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.first = nil
		close(first)
	}), nil
}

// markAnswered notes that the registry has answered without a challenge.
func (r *registry) markAnswered() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answered = true
}

// verdict says whether a request is worth another try, after one answer to it.
type verdict int

const (
	final    verdict = iota // no: this is the answer
	tryAgain                // yes, with what is known now
	tryWider                // yes, with a token for more, which may be a third try
	tryLogin                // yes, if /v2/ asks for what we have
)

// tries is after how many tries at most an answer is worth another one.
func (v verdict) tries() int {
	switch v {
	case tryAgain, tryLogin:
		return 1
	case tryWider:
		return 2
	}
	return 0
}

// readAnswer keeps the challenge of resp, and tells what to do next. extra are scopes
// that the challenge asks for and we do not.
//
// Another try is worth it if the challenge is not the one that was answered, or if
// what was sent was kept from earlier: an expired token is answered 401, by ECR 403,
// by ECR Public 400. A refusal by a host that we were redirected to says nothing,
// since our authorization never was there.
func (r *registry) readAnswer(t *Target, resp *http.Response, sent authorization) (v verdict, extra string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := !r.answered
	r.answered = true
	if isElsewhere(t, resp) {
		return final, ""
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		all := challenge.Parse(resp.Header.Values("WWW-Authenticate"))
		ch, narrow, ok := chooseChallenge(t.Base, all, r.challenge)
		if ok {
			r.challenge = ch
		} else if !sent.cached && sent.credential != r.login.met {
			r.dropLoginLocked(sent.challenge, sent.credential)
		}
		if sent.cached || ok && ch != sent.challenge {
			v = tryAgain
			if narrow {
				v = tryWider
			}
		}
		if first && t.Name != "" {
			extra = extraScopes(all, t.Name)
		}
	case http.StatusBadRequest, http.StatusForbidden:
		if sent.cached {
			v = tryAgain
		}
	case http.StatusOK:
		if sent.header != "" {
			r.login.met = sent.credential
		}
	}
	return v, extra
}

// authorization is what one request sends, and which challenge it answers.
type authorization struct {
	token
	challenge authChallenge
	cached    bool // it was there before this request
}

// currentChallenge returns the challenge to answer.
func (r *registry) currentChallenge() authChallenge {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.challenge
}

// dropChallenge forgets a challenge that could not be answered: one that was wrong
// once must not be kept for ever. The next request is challenged again. A challenge
// that has taken its place stays.
func (r *registry) dropChallenge(ch authChallenge) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.challenge == ch {
		r.challenge = authChallenge{}
	}
}

// setCredential notes which credential the target has now. What was made from
// another one is not sent any more.
func (r *registry) setCredential(id credentialID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.credential != id {
		r.credential, r.basic = id, token{}
	}
}

// currentBasic returns what to send for Basic, and the ID of the credential that
// the target had last.
func (r *registry) currentBasic() (token, credentialID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.basic, r.credential
}

func (r *registry) setBasic(t token) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.basic = t
}

// dropBasic forgets t, if it is still what would be sent.
func (r *registry) dropBasic(t token) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.basic == t {
		r.basic = token{}
	}
}
