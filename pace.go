package pullthrough

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"
)

// pace holds all requests of one kind by one rule back when upstream asks for
// it, 429 or 503 with Retry-After: a hundred pulls that wait must not be a
// hundred that ask again. When the time is over one of them asks, and its answer
// decides for all. Manifests, blobs and tokens are paced apart, as registries
// limit them apart. The zero pace holds nobody back; it is safe for concurrent
// use.
type pace struct {
	mu      sync.Mutex
	since   time.Time     // when upstream asked for it last
	until   time.Time     // when the next request may go; zero: at any time
	told    time.Time     // when upstream wants us back: until, or long after
	named   bool          // upstream said when, it is no guess of ours
	long    bool          // told is later than a pull may wait
	status  int           // what upstream answered
	rounds  int           // in a row
	probing chan struct{} // closed when the one request after a wait has its answer; nil: none is under way
}

type paceKey struct {
	rule routeID
	kind string
}

func (u *upstream) pace(rt *route, kind string) *pace {
	return u.paces.GetOrPut(paceKey{rt.id, kind}, func() *pace { return new(pace) })
}

// turn is the leave to send one request.
type turn struct {
	p     *pace
	began time.Time
	probe chan struct{} // nil: nobody was held back
}

// enter waits until a request may be sent, for as many rounds as e has left. Who
// has one try only is held back by upstream's word, not by our guess. The caller
// must leave.
func (p *pace) enter(ctx context.Context, e *effort) (turn, error) {
	for {
		p.mu.Lock()
		now := time.Now()
		switch wait := p.until.Sub(now); {
		case p.until.IsZero(), e.tries == 1 && !p.named:
			p.mu.Unlock()
			return turn{p: p, began: now}, nil
		case wait > 0:
			err, long := p.refusalLocked(now), p.long
			p.mu.Unlock()
			if e.rounds == 0 || long {
				return turn{}, err
			}
			e.rounds--
			if err := sleep(ctx, wait); err != nil {
				return turn{}, err
			}
		case p.probing == nil:
			p.probing = make(chan struct{})
			t := turn{p: p, began: now, probe: p.probing}
			p.mu.Unlock()
			return t, nil
		default:
			probing := p.probing
			p.mu.Unlock()
			if err := p.await(ctx, probing); err != nil {
				return turn{}, err
			}
		}
	}
}

// await waits for the answer that another request gets. A slow one is not
// waited for: the next asks too.
func (p *pace) await(ctx context.Context, probing chan struct{}) error {
	timer := time.NewTimer(probeWait)
	defer timer.Stop()
	select {
	case <-probing:
	case <-timer.C:
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.probing == probing {
			p.probing = nil
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

func (p *pace) refusalLocked(now time.Time) *Error {
	e := &Error{Kind: ErrRateLimited, Status: p.status, RetryAfter: p.told.Sub(now), Err: errors.New("upstream asked us to wait")}
	if p.status != http.StatusTooManyRequests {
		e.Kind = ErrUnavailable
	}
	return e
}

// leave notes the answer; nil: there was none. limited reports that upstream
// asks everybody to wait, hopeless that it is for longer than a pull may take.
func (t turn) leave(resp *http.Response) (limited, hopeless bool) {
	p := t.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.probe != nil {
		close(t.probe)
		if p.probing == t.probe {
			p.probing = nil
		}
	}
	if !asksToWait(resp) {
		if t.probe != nil {
			p.until, p.rounds = time.Time{}, 0
		}
		return false, false
	}
	now := time.Now()
	asked := retryAfter(resp.Header.Get("Retry-After"), now)
	// Of requests that were under way together only the first begins a round.
	if p.until.IsZero() || !t.began.Before(p.since) {
		p.rounds++
		p.since, p.status = now, resp.StatusCode
		wait := backoff(p.rounds)
		if asked > 0 {
			wait = min(asked, maxRetryWait) + rand.N(min(asked/4, time.Second)+1)
		}
		p.until = now.Add(wait)
	}
	p.told, p.named, p.long = p.until, asked > 0, asked > maxRetryWait
	if p.long {
		p.told = now.Add(asked)
	}
	return true, p.long
}

func asksToWait(resp *http.Response) bool {
	return resp != nil && (resp.StatusCode == http.StatusTooManyRequests ||
		resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "")
}
