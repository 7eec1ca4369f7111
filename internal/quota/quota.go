// Package quota limits an amount of something, such as bytes of disk. Callers take parts
// of it and give them back. They are served in the order in which they ask.
package quota

import (
	"container/list"
	"context"
	"errors"
	"sync"
)

// ErrTooMuch is the error for a claim that exceeds the whole quota.
var ErrTooMuch = errors.New("quota: more than there is")

// Quota is an amount that callers take and give back. A nil Quota has no limit. It is safe
// for concurrent use.
type Quota struct {
	mu      sync.Mutex
	free    int64
	max     int64
	waiting list.List // of *claim, the oldest first
}

type claim struct {
	n     int64
	ready chan struct{} // closed when n has been taken for the claim
}

// New returns a quota of max. If max < 1 it returns nil, a quota without limit.
func New(max int64) *Quota {
	if max < 1 {
		return nil
	}
	return &Quota{free: max, max: max}
}

// Take takes n and waits until that much is free. It returns the context's cause if ctx
// ends first. It returns ErrTooMuch at once if n is more than the whole quota.
func (q *Quota) Take(ctx context.Context, n int64) error {
	if q.TryTake(n) {
		return nil
	}
	q.mu.Lock()
	if n > q.max {
		q.mu.Unlock()
		return ErrTooMuch
	}
	c := &claim{n: n, ready: make(chan struct{})}
	e := q.waiting.PushBack(c)
	q.serveLocked() // something may have been given back since TryTake
	q.mu.Unlock()
	select {
	case <-c.ready:
		return nil
	case <-ctx.Done():
		return q.giveUp(ctx, e)
	}
}

// TryTake takes n if that much is free and nobody waits. It reports whether it did.
func (q *Quota) TryTake(n int64) bool {
	if q == nil || n <= 0 {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if n > q.free || q.waiting.Len() > 0 {
		return false
	}
	q.free -= n
	return true
}

// giveUp withdraws a claim and returns the context's cause. If the claim was met in the
// meantime, it keeps the amount and returns nil.
func (q *Quota) giveUp(ctx context.Context, e *list.Element) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-e.Value.(*claim).ready:
		return nil
	default:
	}
	q.waiting.Remove(e)
	q.serveLocked() // the next claims may be smaller
	return context.Cause(ctx)
}

// Give gives n back.
func (q *Quota) Give(n int64) {
	if q == nil || n <= 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.free += n
	q.serveLocked()
}

// serveLocked meets claims in order, until one asks for more than is free.
func (q *Quota) serveLocked() {
	for e := q.waiting.Front(); e != nil; e = q.waiting.Front() {
		c := e.Value.(*claim)
		if c.n > q.free {
			return
		}
		q.free -= c.n
		q.waiting.Remove(e)
		close(c.ready)
	}
}
