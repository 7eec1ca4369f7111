// Package quota shares out an amount of something, such as bytes of disk, to
// those who ask for it, in the order they asked.
package quota

import (
	"container/list"
	"context"
	"errors"
	"sync"
)

// ErrTooMuch is returned for more than there will ever be.
var ErrTooMuch = errors.New("quota: more than there is")

// Quota is an amount that is given out and given back. A nil Quota is endless.
// It is safe for concurrent use.
type Quota struct {
	mu      sync.Mutex
	free    int64
	max     int64
	waiting list.List // of *claim, first come first
}

type claim struct {
	n     int64
	ready chan struct{} // closed when n has been taken for the claim
}

// New returns a quota of max; max < 1 means an endless one, nil.
func New(max int64) *Quota {
	if max < 1 {
		return nil
	}
	return &Quota{free: max, max: max}
}

// Take waits for n and takes it. It returns ctx's error when that ends first,
// and ErrTooMuch at once when n is more than the whole quota.
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
	q.serveLocked() // something may have come back meanwhile
	q.mu.Unlock()
	select {
	case <-c.ready:
		return nil
	case <-ctx.Done():
		return q.giveUp(ctx, e)
	}
}

// TryTake takes n if it is there and nobody waits.
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

// giveUp withdraws a claim, unless it was met in this very moment.
func (q *Quota) giveUp(ctx context.Context, e *list.Element) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-e.Value.(*claim).ready:
		return nil
	default:
	}
	q.waiting.Remove(e)
	q.serveLocked() // those behind may want less
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

// serveLocked meets the claims that can be met, in order.
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
