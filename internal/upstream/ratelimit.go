package upstream

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

const (
	// maxRetryWait is how long a pull waits because the registry asks it to.
	maxRetryWait = 10 * time.Second
	// maxLimiters is enough for manifests, blobs and tokens of maxRegistries.
	maxLimiters = 3 * maxRegistries
)

// limiters are the limiters of all targets. They are safe for concurrent use.
type limiters struct {
	cache *lru.Cache[limiterKey, *limiter]
}

// limiterKey says which requests are held back together. Registries limit
// manifests, blobs and tokens apart, so the kind is part of it.
type limiterKey struct {
	target any // Target.ID
	kind   string
}

func newLimiters() *limiters { return &limiters{lru.New[limiterKey, *limiter](maxLimiters)} }

// Held is a kind of request that a registry has asked us to wait with.
type Held struct {
	ID   any    // the Target's
	Kind string // "manifests", "blobs", "referrers", "tags", "tokens", …
	Err  *Error // what a request gets that does not wait: RetryAfter is how long it would
}

// Held returns what is held back now.
func (c *Client) Held() (all []Held) {
	c.limiters.cache.Each(func(key limiterKey, l *limiter) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if now := time.Now(); l.nextAt.After(now) {
			all = append(all, Held{key.target, key.kind, l.errorLocked(now)})
		}
	})
	return all
}

func (l *limiters) of(t *Target, kind string) *limiter {
	return l.cache.GetOrPut(limiterKey{t.ID, kind}, func() *limiter { return &limiter{host: t.Base.Host} })
}

// limiter holds all requests of one kind to one target back when the registry asks
// for it, by 429 or by 503 with Retry-After: a hundred pulls that wait must not be
// a hundred that ask again. It is safe for concurrent use.
//
// A round goes like this.
//
//  1. Nobody waits: nextAt is zero, and acquire lets every request pass.
//  2. A request is answered 429. Its release sets nextAt. Other requests that were
//     under way with it may be answered 429, too. They began before askedAt, so they
//     tell nothing new and begin no round of their own.
//  3. Until nextAt, acquire lets requests wait, each for as many rounds as its
//     attempts allow. A request with no wait left fails at once, and so do all if
//     the registry asks for more than maxRetryWait.
//  4. After nextAt the first request that comes becomes the probe: it alone is sent.
//     The others wait for its answer.
//  5. The probe's answer decides for all. If it asks to wait again, the next round
//     begins at 3, with a longer wait. Any other answer, or a connection that fails,
//     sets nextAt to zero and all that wait are sent. A probe that we gave up says
//     nothing: the next request becomes the probe.
//  6. A probe that is slow decides nothing: after firstAnswerWait the next request
//     becomes a probe beside it.
type limiter struct {
	host string // of the registry, for errors

	mu       sync.Mutex
	askedAt  time.Time     // when the registry asked us to wait last
	nextAt   time.Time     // when the next request may go; zero: at any time
	resumeAt time.Time     // when the registry wants us back: nextAt, or long after
	explicit bool          // the registry named the time; false: it is our guess
	tooLong  bool          // resumeAt is later than a pull may wait
	status   int           // what the registry answered
	rounds   int           // in a row
	probing  chan struct{} // closed when the probe has its answer; nil: no probe is under way
}

// slot is the leave to send one request.
type slot struct {
	limiter *limiter
	began   time.Time
	probe   chan struct{} // nil: the request is no probe
}

// acquire waits until a request may be sent, and takes each wait from a. A request
// that is tried only once is held back by a time that the registry named, but not by
// our guess. The caller must release the slot.
func (l *limiter) acquire(ctx context.Context, a *attempts) (slot, error) {
	for {
		l.mu.Lock()
		now := time.Now()
		switch wait := l.nextAt.Sub(now); {
		case l.nextAt.IsZero(), a.requests == 1 && !l.explicit && !a.extra:
			l.mu.Unlock()
			return slot{limiter: l, began: now}, nil
		case wait > 0:
			err, tooLong := l.errorLocked(now), l.tooLong
			l.mu.Unlock()
			if a.waits == 0 || tooLong {
				return slot{}, err
			}
			a.waits--
			if err := sleep(ctx, wait); err != nil {
				return slot{}, err
			}
		case l.probing == nil:
			l.probing = make(chan struct{})
			s := slot{limiter: l, began: now, probe: l.probing}
			l.mu.Unlock()
			return s, nil
		default:
			probing := l.probing
			l.mu.Unlock()
			if err := l.awaitProbe(ctx, probing); err != nil {
				return slot{}, err
			}
		}
	}
}

// awaitProbe waits for the probe's answer. If the probe is slow, the next request
// becomes one.
func (l *limiter) awaitProbe(ctx context.Context, probing chan struct{}) error {
	timer := time.NewTimer(firstAnswerWait)
	defer timer.Stop()
	select {
	case <-probing:
	case <-timer.C:
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.probing == probing {
			l.probing = nil
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

func (l *limiter) errorLocked(now time.Time) *Error {
	e := &Error{Kind: ErrRateLimited, Host: l.host, Status: l.status, RetryAfter: l.resumeAt.Sub(now), Err: errors.New("upstream asked us to wait")}
	if l.status != http.StatusTooManyRequests {
		e.Kind = ErrUnavailable
	}
	return e
}

// release notes the answer; nil: there was none, perhaps since ctx has ended. limited
// reports that the registry asks everybody to wait, tooLong that it is for longer than a
// pull may take.
func (s slot) release(ctx context.Context, resp *http.Response) (limited, tooLong bool) {
	l := s.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.probe != nil {
		close(s.probe)
		if l.probing == s.probe {
			l.probing = nil
		}
	}
	if !asksToWait(resp) {
		if s.probe != nil && (resp != nil || ctx.Err() == nil) {
			l.nextAt, l.rounds = time.Time{}, 0
		}
		return false, false
	}
	now := time.Now()
	asked := retryAfter(resp.Header.Get("Retry-After"), now)
	if l.nextAt.IsZero() || !s.began.Before(l.askedAt) {
		l.beginRoundLocked(now, resp.StatusCode, asked)
	}
	l.resumeAt, l.explicit, l.tooLong = l.nextAt, asked > 0, asked > maxRetryWait
	if l.tooLong {
		l.resumeAt = now.Add(asked)
	}
	return true, l.tooLong
}

// beginRoundLocked sets when the next request may go. asked is how long the
// registry wants us to wait; 0: it did not say.
func (l *limiter) beginRoundLocked(now time.Time, status int, asked time.Duration) {
	l.rounds++
	l.askedAt, l.status = now, status
	wait := backoff(l.rounds)
	if asked > 0 {
		wait = min(asked, maxRetryWait) + rand.N(min(asked/4, time.Second)+1)
	}
	l.nextAt = now.Add(wait)
}

func asksToWait(resp *http.Response) bool {
	return resp != nil && (resp.StatusCode == http.StatusTooManyRequests ||
		resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "")
}
