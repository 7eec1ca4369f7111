// Package quota limits an amount of something, such as bytes of disk. Callers take parts
// of it and give them back. They are served in the order in which they ask.
//
// There are two kinds of claims. Those of [Quota.TakeBehind] stand behind all others: they
// are met when no other claim waits, and have at most half of the quota together. A
// single one may have more, or it would never be met.
package quota

import (
	"container/list"
	"context"
	"errors"
	"math"
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
	behind  int64     // what the claims of TakeBehind have together
	waiting list.List // of *claim, the oldest first
	last    list.List // of *claim, those of TakeBehind
}

type claim struct {
	n      int64
	behind bool
	ready  chan struct{} // closed when n has been taken for the claim
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
	return q.take(ctx, &claim{n: n, ready: make(chan struct{})})
}

// TakeBehind is Take for a claim that stands behind those of Take. It is given back by
// [Quota.GiveBehind].
func (q *Quota) TakeBehind(ctx context.Context, n int64) error {
	return q.take(ctx, &claim{n: n, behind: true, ready: make(chan struct{})})
}

func (q *Quota) take(ctx context.Context, c *claim) error {
	if q.try(c.n, c.behind) {
		return nil
	}
	q.mu.Lock()
	if c.n > q.max {
		q.mu.Unlock()
		return ErrTooMuch
	}
	queue := &q.waiting
	if c.behind {
		queue = &q.last
	}
	e := queue.PushBack(c)
	q.serveLocked() // something may have been given back since the try
	q.mu.Unlock()
	select {
	case <-c.ready:
		return nil
	case <-ctx.Done():
		return q.giveUp(ctx, queue, e)
	}
}

// TryTake takes n if that much is free and nobody waits. It reports whether it did.
func (q *Quota) TryTake(n int64) bool { return q.try(n, false) }

// TryTakeBehind is TryTake for a claim as those of TakeBehind.
func (q *Quota) TryTakeBehind(n int64) bool { return q.try(n, true) }

func (q *Quota) try(n int64, behind bool) bool {
	if q == nil || n <= 0 {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case n > q.free, q.waiting.Len() > 0:
		return false
	case behind && (q.last.Len() > 0 || !q.mayStandBehindLocked(n)):
		return false
	case behind:
		q.behind += n
	}
	q.free -= n
	return true
}

// Free is how much nobody has.
func (q *Quota) Free() int64 {
	if q == nil {
		return math.MaxInt64
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.free
}

// mayStandBehindLocked reports whether the claims of TakeBehind may have n more.
func (q *Quota) mayStandBehindLocked(n int64) bool {
	return q.behind == 0 || q.behind+n <= q.max/2
}

// giveUp withdraws a claim and returns the context's cause. If the claim was met in the
// meantime, it keeps the amount and returns nil.
func (q *Quota) giveUp(ctx context.Context, queue *list.List, e *list.Element) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-e.Value.(*claim).ready:
		return nil
	default:
	}
	queue.Remove(e)
	q.serveLocked() // the next claims may be smaller
	return context.Cause(ctx)
}

// Give gives n back that Take or TryTake has taken.
func (q *Quota) Give(n int64) { q.give(n, 0) }

// GiveBehind gives n back that TakeBehind has taken.
func (q *Quota) GiveBehind(n int64) { q.give(n, n) }

func (q *Quota) give(n, behind int64) {
	if q == nil || n <= 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.free += n
	q.behind -= behind
	q.serveLocked()
}

// serveLocked meets claims in order, until one asks for more than it may have. As long
// as a claim of Take waits, none of TakeBehind is met.
func (q *Quota) serveLocked() {
	for e := q.waiting.Front(); e != nil; e = q.waiting.Front() {
		if e.Value.(*claim).n > q.free {
			return
		}
		q.meetLocked(&q.waiting, e)
	}
	for e := q.last.Front(); e != nil; e = q.last.Front() {
		n := e.Value.(*claim).n
		if n > q.free || !q.mayStandBehindLocked(n) {
			return
		}
		q.behind += n
		q.meetLocked(&q.last, e)
	}
}

func (q *Quota) meetLocked(queue *list.List, e *list.Element) {
	c := queue.Remove(e).(*claim)
	q.free -= c.n
	close(c.ready)
}
