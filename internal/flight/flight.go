// Package flight runs a function once per key for any number of waiters.
//
// It differs from the usual single flight in three ways that a long-lived cache
// needs. A call belongs to nobody: it runs on a context of its own, and a waiter
// that leaves changes nothing for the others. A call may publish its value before
// it ends, so that waiters go on while it still stores what they got. And a call
// that nobody waits for is unlinked before it is cancelled, so that no newcomer
// joins a call that is being torn down.
//
// Every step below is taken under the group's lock, so any two of them have an
// order. The life of a call:
//
//  1. Do finds no call for its key. It starts one, linked under that key, with one
//     waiter. A later Do for the key joins it and is one more waiter.
//  2. The function calls Publish with a value. All waiters are released at once,
//     Acquire is called for each of them, and from now on Do returns that value at
//     once, after Acquire. Nobody is counted as a waiter any more.
//  3. The function goes on, for example to store the value. The call stays linked, so
//     a Do that comes now joins it and does not start the same work again.
//  4. The function returns. The call is unlinked, and waiters that are still there
//     are released, in one step. The next Do starts afresh.
//
// What may happen in between:
//
//   - The last waiter leaves before 2. The call is unlinked, then its context is
//     cancelled. A newcomer starts another call while this one is still ending.
//   - The function has called Linger before that. The call stays linked for 30 seconds,
//     so that a client that tries again finds what its last try began. If nobody has
//     joined by then it ends as above. When 64 calls of a Set linger and one more does,
//     the oldest ends. When the set is closed, all of them do.
//   - The function calls Keep before 2. If the call is still linked, Keep returns true,
//     and nothing in the two lines above happens any more: the call goes on without
//     waiters, and newcomers join it. Otherwise Keep returns false, and the function
//     should give up, since another call may be under way.
//   - A kept call has its own rule for how long it goes on. It calls Desert, which
//     unlinks it if nobody waits for it or holds its value. That is one step: a
//     newcomer either is counted before it, and the call goes on, or starts another call.
//   - The function calls PublishUnder with a second key. In the same step as 2 the call
//     is linked under that key, and a Do for either key joins it, until both keys are
//     unlinked in one step. There are three exceptions, in which nothing is linked. A
//     call is linked under that key: its waiters have their own. A value is out: those
//     who ask for the second key would get a value that is not meant for it. The call
//     is unlinked already: it would stay linked for ever.
//   - The function calls Unlink. Newcomers start another call. Those that wait, and
//     those that have the value, notice nothing.
//   - A caller of Renew finds that the value that is out is too old. It starts another
//     call in the place of this one, which goes on. What must be done in the order of
//     the values, such as storing them, each call does in its Turn.
package flight

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
)

// ErrClosed is what Do returns after the group was closed.
var ErrClosed = errors.New("flight: closed")

// ErrDeserted is the cause with which a call is cancelled that nobody waits for any
// more. It Is context.Canceled.
var ErrDeserted = fmt.Errorf("nobody waits for it any more: %w", context.Canceled)

// PanicError is what every waiter gets when the function panicked.
type PanicError struct {
	Value any    // what was passed to panic
	Stack []byte // the stack of the function's goroutine
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Group coalesces calls by key. The zero value is ready for use. It is safe
// for concurrent use and must not be copied.
type Group[K comparable, V any] struct {
	// Acquire is called for each waiter with the value that it is going to get, before
	// the call can end. It keeps the value alive. A caller that got the value from Do
	// lets go of it. For a waiter that has left instead, Release is called. Both are
	// called with the group locked, and must neither block nor use the group. Both
	// must be set before the first Do. nil: values need no care.
	Acquire, Release func(V)

	set   *Set // nil: none
	name  string
	inner bool // see JoinInner

	mu     sync.Mutex
	calls  map[K]*Call[K, V]
	live   map[*Call[K, V]]struct{} // every call that runs, linked or not
	closed bool
}

// Call is one run of a function, for all that have asked for its key.
type Call[K comparable, V any] struct {
	group  *Group[K, V]
	key    K // the first of keys
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{} // closed once val and err are set
	ended  chan struct{} // closed when the function has returned
	passed chan struct{} // closed when another call has taken this one's turn

	// Guarded by group.mu.
	keys      []K
	waiters   int // until the value is out
	lingers   bool
	alone     *alone // while the call lingers; nil: it does not
	kept      bool
	published bool
	before    *Call[K, V] // whose end Turn waits for; nil: no call's
	hadTurn   bool        // see Turn

	val V
	err error
}

// Do returns the value of the call that runs for key. It starts one with fn if none
// runs. shared reports whether the call ran already. When ctx ends first, Do
// returns ctx's cause, and the call goes on as long as anyone else waits for it.
func (g *Group[K, V]) Do(ctx context.Context, key K, fn func(*Call[K, V]) (V, error)) (v V, shared bool, err error) {
	return g.Renew(ctx, key, nil, fn)
}

// Renew is Do, but a call whose value is out and is too old, as tooOld says, is not
// joined: another call takes its place. tooOld is called with the group locked, and must
// neither block nor use the group. nil: no value is too old.
func (g *Group[K, V]) Renew(ctx context.Context, key K, tooOld func(V) bool, fn func(*Call[K, V]) (V, error)) (v V, shared bool, err error) {
	c, shared, err := g.join(key, tooOld, fn)
	if err != nil {
		return v, false, err
	}
	select {
	case <-c.done:
		return c.val, shared, c.err
	case <-ctx.Done():
		c.leaveEarly()
		return v, shared, context.Cause(ctx)
	}
}

// join counts the caller as a waiter of key's call, or acquires what that has
// published.
func (g *Group[K, V]) join(key K, tooOld func(V) bool, fn func(*Call[K, V]) (V, error)) (*Call[K, V], bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old, ok := g.calls[key]
	if ok && !(tooOld != nil && old.published && old.err == nil && tooOld(old.val)) {
		old.joinLocked()
		return old, true, nil
	}
	if g.closed {
		return nil, false, ErrClosed
	}
	c := &Call[K, V]{
		group: g, key: key, keys: []K{key}, waiters: 1,
		done: make(chan struct{}), ended: make(chan struct{}), passed: make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	if ok {
		c.before = old
		old.keys = slices.DeleteFunc(old.keys, func(k K) bool { return k == key })
	}
	if g.calls == nil {
		g.calls = make(map[K]*Call[K, V])
		g.live = make(map[*Call[K, V]]struct{})
	}
	g.calls[key] = c
	g.live[c] = struct{}{}
	g.set.begin()
	go c.run(fn)
	return c, false, nil
}

func (c *Call[K, V]) joinLocked() {
	if c.published {
		c.acquireLocked(1)
		return
	}
	c.waiters++
	c.endAloneLocked()
}

// Running reports whether a call is linked under key.
func (g *Group[K, V]) Running(key K) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.calls[key]
	return ok
}

// Wait waits until the call that runs for key, if any, has ended, and so have those
// whose turn is before its own.
func (g *Group[K, V]) Wait(ctx context.Context, key K) error {
	g.mu.Lock()
	c := g.calls[key]
	g.mu.Unlock()
	for c != nil {
		select {
		case <-c.ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		c = g.next(key, c)
	}
	return nil
}

// next is the call to wait for after c: the one whose place c has taken, or where another
// one has passed c, the newest.
func (g *Group[K, V]) next(key K, c *Call[K, V]) *Call[K, V] {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-c.passed:
		return g.calls[key]
	default:
		return c.before
	}
}

// Settle waits until those calls have ended that have published by now and that match.
// match is called with the group locked, and must neither block nor use the group.
func (g *Group[K, V]) Settle(ctx context.Context, match func(K, V) bool) error {
	g.mu.Lock()
	var all []*Call[K, V]
	for c := range g.live {
		if c.published && c.err == nil && match(c.key, c.val) {
			all = append(all, c)
		}
	}
	g.mu.Unlock()
	for _, c := range all {
		select {
		case <-c.ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// Peek returns what key's call has published, without waiting or holding it.
func (g *Group[K, V]) Peek(key K) (v V, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c, running := g.calls[key]; running && c.published {
		return c.val, true
	}
	return v, false
}

// Waiting returns how many callers wait for key's call.
func (g *Group[K, V]) Waiting(key K) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c, ok := g.calls[key]; ok {
		return c.waiters
	}
	return 0
}

// Len returns the number of calls that run, linked or not.
func (g *Group[K, V]) Len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.live)
}

// Close refuses new calls. Running ones go on, and may still be joined, but those that
// nobody waits for end.
func (g *Group[K, V]) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for c := range g.live {
		if c.alone != nil {
			c.unlinkLocked()
			c.cancel(ErrDeserted)
		}
	}
}

func (g *Group[K, V]) cancelAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.live {
		c.unlinkLocked()
		c.cancel(nil)
	}
}

// Context returns the call's own context. It carries no value of any waiter. It
// ends when the call has ended, when the last waiter has left before anything was
// published (the cause is [ErrDeserted]), or when the group is shut down.
func (c *Call[K, V]) Context() context.Context { return c.ctx }

// Publish gives v to all waiters, those of now and those to come, while the call
// goes on. Only the first value counts. A later one is dropped, and so is what the
// function returns.
func (c *Call[K, V]) Publish(v V) {
	defer runtime.Gosched() // who waits runs before the caller goes on
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	c.settleLocked(v, nil)
}

// Waited reports whether anybody waits for the call's value.
func (c *Call[K, V]) Waited() bool {
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	return c.waiters > 0
}

// PublishUnder is Publish, and links the call under more keys in the same step, but for
// those that have a call already. Where v is dropped, nothing is linked.
func (c *Call[K, V]) PublishUnder(v V, keys ...K) {
	defer runtime.Gosched() // as in Publish
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	if c.published {
		return
	}
	for _, key := range keys {
		c.linkLocked(key)
	}
	c.settleLocked(v, nil)
}

func (c *Call[K, V]) linkLocked(key K) {
	if _, taken := c.group.calls[key]; taken || len(c.keys) == 0 {
		return
	}
	c.group.calls[key] = c
	c.keys = append(c.keys, key)
}

// Keep makes the call go on, and stay linked, even if all waiters leave before it
// has published, and however long ago they have left. It reports false if the call has
// been unlinked already.
func (c *Call[K, V]) Keep() bool {
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	c.kept = len(c.keys) > 0
	if c.kept {
		c.endAloneLocked()
	}
	return c.kept
}

// Unkeep takes Keep back. If nobody waits the call ends, or lingers.
func (c *Call[K, V]) Unkeep() {
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	c.kept = false
	if c.waiters == 0 && !c.published {
		c.desertedLocked()
	}
}

// Desert unlinks a kept call that nobody waits for, and whose value nobody holds, as
// unheld says. It reports whether it has: then nobody joins the call any more. unheld
// is called with the group locked.
func (c *Call[K, V]) Desert(unheld func() bool) bool {
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	if c.waiters > 0 || !unheld() {
		return false
	}
	c.unlinkLocked()
	return true
}

// Unlink takes the call out of its group, so that the next Do for its keys starts
// afresh. Those that wait already still get its value.
func (c *Call[K, V]) Unlink() {
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	c.unlinkLocked()
}

func (c *Call[K, V]) unlinkLocked() {
	for _, k := range c.keys {
		if c.group.calls[k] == c {
			delete(c.group.calls, k)
		}
	}
	c.keys = nil
	c.endAloneLocked()
	c.giveBackLocked()
}

func (c *Call[K, V]) run(fn func(*Call[K, V]) (V, error)) {
	var v V
	err := errors.New("flight: the function ended its goroutine")
	defer func() {
		if r := recover(); r != nil {
			err = &PanicError{Value: r, Stack: debug.Stack()}
		}
		c.end(v, err)
	}()
	v, err = fn(c)
}

// end takes the call out of its group in the same step that releases the waiters:
// a Do that comes after an answer was given gets a new one.
func (c *Call[K, V]) end(v V, err error) {
	defer c.group.set.end() // last: nothing is left of the call
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	c.unlinkLocked()
	delete(c.group.live, c)
	c.settleLocked(v, err)
	c.cancel(nil)
	close(c.ended)
}

func (c *Call[K, V]) settleLocked(v V, err error) {
	if c.published {
		return
	}
	c.published = true
	c.endAloneLocked()
	c.val, c.err = v, err
	c.acquireLocked(c.waiters)
	c.waiters = 0
	close(c.done)
}

// acquireLocked takes hold of the value for n waiters.
func (c *Call[K, V]) acquireLocked(n int) {
	if c.group.Acquire == nil || c.err != nil {
		return
	}
	for range n {
		c.group.Acquire(c.val)
	}
}

// leaveEarly counts out a waiter whose own context has ended. If the call has just
// published, the waiter was counted there and its value is released instead.
func (c *Call[K, V]) leaveEarly() {
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	if c.published {
		if c.group.Release != nil && c.err == nil {
			c.group.Release(c.val)
		}
		return
	}
	c.waiters--
	if c.waiters == 0 && !c.kept {
		c.desertedLocked()
	}
}
