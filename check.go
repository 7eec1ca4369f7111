package pullthrough

import (
	"errors"
	"net/http"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

const (
	defaultCheckTimeout = 2 * time.Second
	minPause            = 15 * time.Second
	maxPause            = 5 * time.Minute
)

// checks are paused when they fail: a pull of a stored tag must not wait, each
// time anew, for an upstream that is not there. Only checks are: what is not
// stored is always asked for. An upstream that is unavailable pauses the rule's
// checks, one that refuses us those of the repository.
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
	return &checks{lru.New[objectKey, pause](maxSites), lru.New[objectKey, struct{}](maxMissing)}
}

// refuse keeps a tag back: its check was answered in a way that RefuseStale is
// about. No timeout and no pause brings it into sight again.
func (c *checks) refuse(rt *route, tag string) { c.refusals.Put(rt.key(tag), struct{}{}) }

func (c *checks) refused(rt *route, tag string) bool {
	_, ok := c.refusals.Get(rt.key(tag))
	return ok
}

// pauseKeys are those of the rule and of the repository.
func (rt *route) pauseKeys() (rule, repo objectKey) {
	return objectKey{rule: rt.id}, objectKey{rule: rt.id, repo: rt.repo.Name}
}

// paused reports whether rt's tags are not to be checked now.
func (c *checks) paused(rt *route, now time.Time) bool {
	rule, repo := rt.pauseKeys()
	return c.pausedAt(rule, now) || c.pausedAt(repo, now)
}

// pausedAt does not trust a clock that was set back.
func (c *checks) pausedAt(key objectKey, now time.Time) bool {
	p, ok := c.pauses.Get(key)
	return ok && now.Before(p.until) && p.until.Sub(now) <= p.length
}

// failed begins a pause after a check that ended with err. Where upstream is to
// be asked on every pull it takes more than a quick refusal.
func (c *checks) failed(rt *route, err error, slow bool, now time.Time) {
	key, repo := rt.pauseKeys()
	switch {
	case errors.Is(err, ErrNotFound):
		return // that is an answer
	case rt.policy.TagTTL == EveryPull && !slow:
		return
	case errors.Is(err, ErrDenied):
		key = repo
	}
	if c.pausedAt(key, now) {
		return // another check has failed at the same time
	}
	length := minPause
	if last, ok := c.pauses.Get(key); ok {
		length = min(2*last.length, maxPause)
	}
	c.pauses.Put(key, pause{now.Add(length), length})
}

// went forgets all that was wrong: upstream has confirmed the tag.
func (c *checks) went(rt *route, tag string) {
	c.refusals.RemoveIf(rt.key(tag), func(struct{}) bool { return true })
	any := func(pause) bool { return true }
	rule, repo := rt.pauseKeys()
	c.pauses.RemoveIf(rule, any)
	c.pauses.RemoveIf(repo, any)
}

// limitCheck has those who wait for a check served with what is stored if it
// takes too long. The check goes on. stop reports whether that has happened.
func (p *Proxy) limitCheck(call *manifestCall, rt *route, have *Manifest) (stop func() (late bool)) {
	limit := rt.policy.CheckTimeout
	switch {
	case limit < 0:
		return func() bool { return false }
	case limit == 0:
		limit = defaultCheckTimeout
	}
	timer := time.AfterFunc(limit, func() {
		p.state().checks.failed(rt, ErrUnavailable, true, p.now())
		call.Publish(stale(have))
	})
	return func() bool { return !timer.Stop() }
}

// stale is what is stored, unchecked.
func stale(have *Manifest) *Manifest {
	m := *have
	m.Source = SourceStale
	return &m
}

// mayServeStale reports whether what is stored may be served although its check
// failed.
func (pol Policy) mayServeStale(err error) bool {
	if !pol.RefuseStale {
		return true
	}
	if _, ok := errors.AsType[*errRedirect](err); ok {
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
