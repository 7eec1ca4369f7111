package pullthrough

import (
	"errors"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/lru"
	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
)

const (
	defaultCheckTimeout = 2 * time.Second
	minPause            = 15 * time.Second
	maxPause            = 5 * time.Minute
	maxPauses           = 1024
	maxRefusals         = 4096
)

// errPaused is why a stored tag is not checked.
var errPaused = errors.New("a check has failed: stored tags are served unchecked until the next one")

// checks are paused when they fail: a pull of a stored tag must not wait, each time
// anew, for an upstream that is not there. Only checks are paused; what is not
// stored is always asked for. An upstream that is unavailable pauses the checks of
// the rule, and one that refuses us pauses those of the repository.
type checks struct {
	pauses   *lru.Cache[objectKey, pause]
	refusals *lru.Cache[objectKey, struct{}] // tags that RefuseStale keeps back until upstream confirms them
}

// pause is one break, of which the next one is twice as long.
type pause struct {
	until  time.Time
	length time.Duration
}

func newChecks() *checks {
	return &checks{lru.New[objectKey, pause](maxPauses), lru.New[objectKey, struct{}](maxRefusals)}
}

// refuse keeps a tag back: its check was answered in a way that RefuseStale is
// about. No timeout and no pause brings it into sight again.
func (c *checks) refuse(rt *route, tag string) { c.refusals.Put(rt.key(tag), struct{}{}) }

func (c *checks) isRefused(rt *route, tag string) bool {
	_, ok := c.refusals.Get(rt.key(tag))
	return ok
}

// pauseKeys are those of the rule and of the repository.
func (rt *route) pauseKeys() (rule, repo objectKey) {
	return objectKey{rule: rt.id}, objectKey{rule: rt.id, repo: rt.repo.Name}
}

// arePaused reports whether rt's tags are not to be checked now.
func (c *checks) arePaused(rt *route, now time.Time) bool {
	rule, repo := rt.pauseKeys()
	return c.isPaused(rule, now) || c.isPaused(repo, now)
}

// isPaused does not trust a clock that was set back.
func (c *checks) isPaused(key objectKey, now time.Time) bool {
	p, ok := c.pauses.Get(key)
	return ok && now.Before(p.until) && p.until.Sub(now) <= p.length
}

// paused are the checks that are not made now, as events of fetches that wait.
func (c *checks) paused(now time.Time) (all []Event) {
	c.pauses.Each(func(key objectKey, p pause) {
		if !now.Before(p.until) || p.until.Sub(now) > p.length {
			return
		}
		e := key.waiting(EventManifest)
		e.Source = SourceStale
		why := &Error{Kind: ErrUnavailable, Host: key.rule.host(), RetryAfter: p.until.Sub(now), Err: errPaused}
		if key.repo != "" {
			why.Kind = ErrDenied
		}
		e.Err = why
		all = append(all, e)
	})
	return all
}

// pause begins a pause after a check that ended with err. Where upstream is to be
// asked on every pull, a quick refusal is not enough for a pause.
func (c *checks) pause(rt *route, err error, slow bool, now time.Time) {
	key, repo := rt.pauseKeys()
	switch {
	case errors.Is(err, ErrNotFound):
		return // that is an answer
	case rt.policy.TagTTL == EveryPull && !slow:
		return
	case errors.Is(err, ErrDenied):
		key = repo
	}
	if c.isPaused(key, now) {
		return // another check has failed at the same time
	}
	length := minPause
	if last, ok := c.pauses.Get(key); ok {
		length = min(2*last.length, maxPause)
	}
	c.pauses.Put(key, pause{now.Add(length), length})
}

// confirm forgets all that was wrong: upstream has confirmed the tag.
func (c *checks) confirm(rt *route, tag string) {
	c.refusals.RemoveIf(rt.key(tag), func(struct{}) bool { return true })
	rule, repo := rt.pauseKeys()
	c.pauses.RemoveIf(rule, func(pause) bool { return true })
	c.pauses.RemoveIf(repo, func(pause) bool { return true })
}

// checkLimit is how long the callers that pull a stored tag wait for its check. When the
// time is over they are given the stored manifest, and the check goes on. The zero
// limit is none.
type checkLimit struct {
	timer *time.Timer

	mu       sync.Mutex
	answered bool // upstream has
	failed   bool // the answer was a failure: what that means is not up to the limit
	late     bool // the time was over before upstream answered
}

// checkTimeout is how long a caller waits for a check. For ever is a long time.
func (rt *route) checkTimeout() time.Duration {
	switch limit := rt.policy.CheckTimeout; {
	case limit < 0:
		return math.MaxInt64
	case limit > 0:
		return limit
	}
	return defaultCheckTimeout
}

// startLimit begins the wait. over is called when the time is over; late says
// whether upstream has not answered yet: what is still to come then is the Store's
// word alone.
func (rt *route) startLimit(over func(late bool)) *checkLimit {
	l := new(checkLimit)
	l.timer = time.AfterFunc(rt.checkTimeout(), func() {
		if late, failed := l.expire(); !failed {
			over(late)
		}
	})
	return l
}

func (l *checkLimit) expire() (late, failed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.late = !l.answered
	return l.late, l.failed
}

// answer notes that upstream has answered, and reports whether that was too late.
// After a failure the limit is over for good.
func (l *checkLimit) answer(err error) (late bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answered, l.failed = true, err != nil
	return l.late
}

func (l *checkLimit) stop() {
	if l.timer != nil {
		l.timer.Stop()
	}
}

// asStale is what is stored, unchecked.
func asStale(have *Manifest) *Manifest {
	m := *have
	m.Source = SourceStale
	return &m
}

// asConfirmed is a stored tag that upstream was asked about at now.
func asConfirmed(have *Manifest, tag string, now time.Time) *Manifest {
	m := *have
	m.Tag, m.CheckedAt, m.Source = tag, now, SourceRevalidated
	return &m
}

// mayServeStale reports whether what is stored may be served although its check
// failed with err.
func (rt *route) mayServeStale(err error) bool {
	if !rt.policy.RefuseStale {
		return true
	}
	if _, ok := errors.AsType[*upstream.RedirectError](err); ok {
		return false
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return true
	}
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		return false
	}
	return true
}
