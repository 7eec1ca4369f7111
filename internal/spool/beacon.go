package spool

import (
	"sync"
	"time"
)

// Readers that wait are woken for the first bytes, and then once per wakeBytes.
// Waking thousands of readers for every read of a fast upstream would cost more
// than the download. wakeAfter bounds how long the bytes of a slow upstream wait.
const (
	wakeBytes = 1 << 20
	wakeAfter = 5 * time.Millisecond
)

// beacon wakes those that wait for bytes of one connection. The spool's lock guards it.
type beacon struct {
	lit   chan struct{} // closed and replaced when there is news; nil: nobody waits
	told  int64         // how much there was at the last wake-up
	due   int64         // how much there is
	timer *time.Timer   // a wake-up that is due; nil: none
}

// wait returns what is closed when there is news.
func (b *beacon) wait() <-chan struct{} {
	if b.lit == nil {
		b.lit = make(chan struct{})
	}
	return b.lit
}

// announce says that there are n bytes: now, or soon. mu is the lock that is held.
func (b *beacon) announce(mu *sync.Mutex, n int64) {
	b.due = n
	switch {
	case n == b.told:
	case b.lit == nil:
		b.told = n // nobody waits, and who comes now finds n
	case b.told == 0, n-b.told >= wakeBytes:
		b.ring(n)
	case b.timer == nil:
		var timer *time.Timer
		timer = time.AfterFunc(wakeAfter, func() {
			mu.Lock()
			defer mu.Unlock()
			if b.timer == timer {
				b.ring(b.due)
			}
		})
		b.timer = timer
	}
}

// ring wakes all, who find n bytes.
func (b *beacon) ring(n int64) {
	b.stop()
	b.told = n
	if b.lit != nil {
		close(b.lit)
		b.lit = nil
	}
}

// stop takes back a wake-up that is due.
func (b *beacon) stop() {
	if b.timer != nil {
		b.timer.Stop()
		b.timer = nil
	}
}
