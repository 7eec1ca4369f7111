package testkit

import (
	"sync/atomic"
	"time"
)

// HandClock is a clock that stands still until it is moved.
type HandClock struct{ passed atomic.Int64 }

// Now is a Proxy.Now.
func (c *HandClock) Now() time.Time {
	return time.Unix(1_700_000_000, 0).Add(time.Duration(c.passed.Load()))
}

// Pass moves the clock on.
func (c *HandClock) Pass(d time.Duration) { c.passed.Add(int64(d)) }
