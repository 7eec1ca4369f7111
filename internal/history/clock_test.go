package history_test

import (
	"sync"
	"time"
)

// clock is the world's clock: real time, and jumps forward. The model keeps real time
// and asks the clock what an age by the world's time means.
type clock struct {
	mu    sync.Mutex
	jumps []jump // in order; the first is none, at the beginning of time
}

// jump is how far the world is ahead of real time from then on.
type jump struct {
	since time.Time
	ahead time.Duration
}

func newClock() *clock { return &clock{jumps: make([]jump, 1)} }

// Now is a Proxy.Now.
func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.jumps[len(c.jumps)-1].ahead)
}

// Jump moves the world's time forward.
func (c *clock) Jump(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.jumps = append(c.jumps, jump{time.Now(), c.jumps[len(c.jumps)-1].ahead + d})
}

// Before returns the real time at which the clock showed d less than at the real time at.
func (c *clock) Before(at time.Time, d time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := len(c.jumps) - 1
	for c.jumps[i].since.After(at) {
		i--
	}
	shown := at.Add(c.jumps[i].ahead - d)
	for ; i > 0; i-- {
		if then := shown.Add(-c.jumps[i].ahead); !then.Before(c.jumps[i].since) {
			return then
		}
		if shown.Add(-c.jumps[i-1].ahead).After(c.jumps[i].since) {
			return c.jumps[i].since // the clock jumped over that time
		}
	}
	return shown
}
