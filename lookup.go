package pullthrough

import (
	"context"
	"sync"
	"time"
)

// lookUpContext gives a Store lookUpTimeout for a look-up. It is a context of
// its own because hits are many: it has no timer before somebody waits for it,
// which a Store in memory never does.
type lookUpContext struct {
	context.Context

	mu     sync.Mutex
	timed  context.Context // nil: nobody has asked yet
	cancel context.CancelFunc
	over   bool
}

// Done starts the clock.
func (c *lookUpContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timed == nil {
		c.timed, c.cancel = context.WithTimeout(c.Context, lookUpTimeout)
		if c.over {
			c.cancel()
		}
	}
	return c.timed.Done()
}

func (c *lookUpContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timed != nil {
		return c.timed.Err()
	}
	return c.Context.Err()
}

// Deadline is not known before Done was called.
func (c *lookUpContext) Deadline() (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timed != nil {
		return c.timed.Deadline()
	}
	return c.Context.Deadline()
}

// stop ends the context: the look-up has returned.
func (c *lookUpContext) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.cancel != nil {
		c.cancel()
	}
}
