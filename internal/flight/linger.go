package flight

import (
	"slices"
	"time"
)

const (
	// Lingering is how long a call goes on after its last waiter has left, if it lingers.
	Lingering = 30 * time.Second
	// MaxLingering is how many calls of a Set linger at a time.
	MaxLingering = 64
)

// alone is the time for which one call lingers.
type alone struct{ timer *time.Timer }

// Lingerer is a call that goes on although nobody waits for it.
type Lingerer struct {
	Group string // its name in the Set
	Key   any
}

// Lingering returns the calls that linger.
func (s *Set) Lingering() (all []Lingerer) {
	for _, m := range s.all() {
		all = append(all, m.lingering()...)
	}
	return all
}

func (g *Group[K, V]) lingering() (all []Lingerer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.live {
		if c.alone != nil {
			all = append(all, Lingerer{g.name, c.key})
		}
	}
	return all
}

// linger has end called when a call has lingered for long enough, or when too many have
// begun to after it. end must take the lock of the call's group, which the caller holds.
func (s *Set) linger(a *alone, end func()) {
	a.timer = time.AfterFunc(Lingering, end)
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alone = append(s.alone, a)
	if len(s.alone) > MaxLingering {
		s.alone[0].timer.Reset(0) // its group may be another one, so that the lock is taken elsewhere
		s.alone = s.alone[1:]
	}
}

// stopLingering takes back linger.
func (s *Set) stopLingering(a *alone) {
	a.timer.Stop()
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alone = slices.DeleteFunc(s.alone, func(other *alone) bool { return other == a })
}

// Linger lets the call go on for a while when the last waiter leaves before it has
// published.
func (c *Call[K, V]) Linger() {
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	c.lingers = true
}

// desertedLocked is called when the last waiter has left a call that is neither kept
// nor published. The call lingers, or ends: it is unlinked, then cancelled.
func (c *Call[K, V]) desertedLocked() {
	switch {
	case len(c.keys) == 0: // it was unlinked before
		c.cancel(ErrDeserted)
	case c.lingers && !c.group.closed:
		a := new(alone)
		c.alone = a
		c.group.set.linger(a, func() { c.endLingering(a) })
	default:
		c.unlinkLocked()
		c.cancel(ErrDeserted)
	}
}

// endLingering ends the call if it has lingered since a.
func (c *Call[K, V]) endLingering(a *alone) {
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	if c.alone == a {
		c.unlinkLocked()
		c.cancel(ErrDeserted)
	}
}

// endAloneLocked is called when the call has a waiter again, or needs none.
func (c *Call[K, V]) endAloneLocked() {
	if c.alone != nil {
		c.group.set.stopLingering(c.alone)
		c.alone = nil
	}
}
