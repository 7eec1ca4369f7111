package pullthrough

import (
	"context"
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

// recheck asks upstream whether a stored tag is still what it was. It does not fail
// unless the Policy says so: callers get what is stored when upstream fails, or when it
// takes too long.
func (re *resolver) recheck(f *fetching) (*Manifest, error) {
	refused := re.checks.isRefused(f.rt, f.r.Ref)
	limit := new(checkLimit)
	if !refused {
		limit = re.limit(f)
	}
	defer func() { limit.stop() }()
	slow := false
	m, err := re.traced(f, func(ctx context.Context, f *fetching) (*Manifest, error) {
		m, err := re.confirm(ctx, f)
		slow = limit.answer(err)
		if err != nil {
			return nil, err
		}
		re.checks.confirm(f.rt, f.r.Ref)
		if refused { // no longer: what is stored may be served if the Store takes too long
			limit = re.limit(f)
			limit.answer(nil)
		}
		return re.keep(f, m), nil
	})
	if err == nil {
		return m, nil
	}
	return re.serveUnconfirmed(f, err, slow, refused)
}

// limit serves what is stored to the callers that wait when the time for the check is
// over.
func (re *resolver) limit(f *fetching) *checkLimit {
	return f.rt.startLimit(func(late bool) {
		if late && f.Context().Err() == nil {
			re.checks.pause(f.rt, ErrUnavailable, true, re.now())
		}
		f.Publish(asStale(f.have))
	})
}

// serveUnconfirmed decides what becomes of a stored tag whose check has failed. That we
// gave the check up, or had no room for it, says nothing of upstream.
func (re *resolver) serveUnconfirmed(f *fetching, err error, slow, refused bool) (*Manifest, error) {
	switch {
	case f.Context().Err() != nil:
		return nil, err
	case errors.Is(err, errBusy):
	case errors.Is(err, ErrNotFound) && f.have.Origin == "":
		// Upstream has nothing to put in place of what was pushed here.
		return re.keep(f, asConfirmed(f.have, f.r.Ref, f.start)), nil
	case !f.rt.mayServeStale(err):
		re.checks.refuse(f.rt, f.r.Ref)
		return nil, err
	default:
		re.checks.pause(f.rt, err, slow, re.now())
	}
	if refused {
		return nil, err
	}
	return re.unchecked(f.r, f.have, err), nil
}

// confirm asks upstream for the tag: by HEAD whether it has moved, and only then for
// the manifest, by the digest that HEAD told.
func (re *resolver) confirm(ctx context.Context, f *fetching) (*Manifest, error) {
	d, err := re.registries.head(ctx, f.rt, f.r.Ref)
	switch {
	case err != nil:
		return nil, err
	case d == f.have.Descriptor.Digest:
		return asConfirmed(f.have, f.r.Ref, f.start), nil
	case d != "":
		m, err := re.registries.manifest(ctx, f.rt, d.String(), upstream.Check)
		if err == nil {
			m.Tag = f.r.Ref
			return stamp(m, f.start), nil
		}
		if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrDigest) {
			return nil, err
		}
		// The tag moved on between the two requests, or HEAD told a wrong digest: the
		// body decides now.
	}
	m, err := re.registries.manifest(ctx, f.rt, f.r.Ref, upstream.Check)
	return stamp(m, f.start), err
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

// keepsLocal reports whether m would take the place of a tag that was pushed here, and
// must not.
func (f *fetching) keepsLocal(m *Manifest) bool {
	return f.rt.policy.KeepLocal && m.Tag != "" && m.Source == SourceFill
}

// localTag is what has been pushed here under the tag of m while upstream was asked, and
// is to be kept; nil: nothing.
func (re *resolver) localTag(f *fetching, m *Manifest) *Manifest {
	if !f.keepsLocal(m) {
		return nil
	}
	have := re.store.findManifest(f.Context(), f.rt.repo, m.Tag)
	if have == nil || have.Origin != "" {
		return nil
	}
	return have
}
