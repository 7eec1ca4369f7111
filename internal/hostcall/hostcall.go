// Package hostcall calls code of the host: its Store and its callbacks.
//
// Such code may panic, block, or ignore its context. Three rules keep that from
// spreading. A panic becomes an error. A caller that waits leaves when its own
// context ends, and the call goes on without it. And the number of calls that go on
// without anybody is bounded, so that a Store that hangs does not collect
// goroutines for ever.
//
// A look-up on the way of a hit is not made through [Lookups]: it is a plain call
// with [Guard] or [Recover], since hits are many and a goroutine costs more than
// the look-up itself.
package hostcall

import (
	"context"
	"errors"
	"fmt"
	"path"
	"runtime"
	"strings"
	"sync"
	"time"
)

// ErrStuck is what a call gets that was not made because too many calls before it
// have not returned.
var ErrStuck = errors.New("the host's code does not return")

// ErrNotCalled is part of the error of a put that was never begun.
var ErrNotCalled = errors.New("was not called")

// PanicError is a panic of the host's code.
type PanicError struct {
	What  string // what was called: "Store.Manifest"
	Value any    // what it panicked with
	Where string // the file, with its directory, and the line: "shop/store.go:12"
}

// Error names the call and the value.
func (e *PanicError) Error() string { return fmt.Sprintf("%s panicked: %v", e.What, e.Value) }

// CallError is an error of the host's code, with the name of what was called.
type CallError struct {
	What string
	Err  error
}

// Error names the call and what it said.
func (e *CallError) Error() string { return e.What + ": " + e.Err.Error() }

// Unwrap makes errors.Is find what the call said.
func (e *CallError) Unwrap() error { return e.Err }

// Named returns err as an error of the call of that name. A panic has its name, and nil has
// none.
func Named(what string, err error) error {
	if err == nil {
		return nil
	}
	if _, panicked := errors.AsType[*PanicError](err); panicked {
		return err
	}
	return &CallError{what, err}
}

// Failed says which call of the host's code err comes from, and where it panicked. Both are
// "" where that is not known.
func Failed(err error) (call, where string) {
	if p, ok := errors.AsType[*PanicError](err); ok {
		return p.What, p.Where
	}
	if c, ok := errors.AsType[*CallError](err); ok {
		return c.What, ""
	}
	return "", ""
}

// errEnded is what the waiter gets where the call has ended its goroutine, as
// t.FailNow does in the Store of a test.
var errEnded = errors.New("the host's code ended its goroutine")

// Guard calls f. A panic of f becomes a [*PanicError], so that everybody who waits
// for the call is released.
func Guard(what string, f func() error) (err error) {
	defer Recover(what, &err)
	return f()
}

// Recover is Guard for a function that defers it: it costs no closure.
func Recover(what string, err *error) {
	if r := recover(); r != nil {
		*err = &PanicError{what, r, panickedAt()}
	}
}

// panickedAt is the line that panicked. Recover calls it while the stack is still there.
func panickedAt() string {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])]) // from what called Recover on
	for {
		frame, more := frames.Next()
		if !strings.HasPrefix(frame.Function, "runtime.") && frame.File != "" {
			return path.Join(path.Base(path.Dir(frame.File)), fmt.Sprintf("%s:%d", path.Base(frame.File), frame.Line))
		}
		if !more {
			return ""
		}
	}
}

const (
	// MaxLookups is how many calls a [Lookups] makes at a time, those that nobody waits
	// for any more included.
	MaxLookups = 64
	// LookupPatience is how long a call waits to be made while none of those under way
	// returns.
	LookupPatience = 10 * time.Second
)

// Lookups bounds the calls made by [Do]. The zero value is ready for use. It is
// safe for concurrent use and must not be copied.
type Lookups struct {
	mu      sync.Mutex
	running int
	left    int           // of these, how many nobody waits for
	moved   time.Time     // when a call last began or returned
	freed   chan struct{} // closed and replaced when running or left changes; nil: nobody waits
}

// Do calls f in a goroutine of its own and waits for it, or for the end of ctx,
// whichever comes first. When ctx ends first, Do returns its cause; what f returns
// later goes to drop, if it is no error. drop may be nil.
//
// At most [MaxLookups] calls run at a time. When that many run, Do waits for one of
// them to return. It fails with [ErrStuck] when none has for [LookupPatience], and at
// once when nobody waits for any of them.
func Do[T any](ctx context.Context, l *Lookups, what string, drop func(T), f func(context.Context) (T, error)) (v T, err error) {
	if err := l.enter(ctx); err != nil {
		return v, fmt.Errorf("%s %w: %w", what, ErrNotCalled, err)
	}
	c := &lookup[T]{done: make(chan struct{})}
	go func() {
		c.err = errEnded // unless the call returns
		defer func() {
			if abandoned := c.end(l); abandoned && c.err == nil && drop != nil {
				_ = Guard(what, func() error { drop(c.value); return nil }) // nobody is there to be told
			}
		}()
		c.err = Guard(what, func() (err error) { c.value, err = f(ctx); return err })
	}()
	select {
	case <-c.done:
		return c.value, c.err
	case <-ctx.Done():
	}
	if c.abandon(l) {
		return v, context.Cause(ctx)
	}
	return c.value, c.err // it has returned in this very moment
}

// lookup is one call. Its goroutine and its waiter agree, under the lock of the
// Lookups, on which of them came first.
type lookup[T any] struct {
	done      chan struct{}
	ended     bool
	abandoned bool
	value     T
	err       error
}

// end notes that the call has returned, and reports whether nobody waited for it.
func (c *lookup[T]) end(l *Lookups) (abandoned bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.ended = true
	l.running--
	l.moved = time.Now()
	if c.abandoned {
		l.left--
	}
	l.wakeLocked()
	close(c.done)
	return c.abandoned
}

// abandon notes that the waiter leaves. It reports false if the call has ended.
func (c *lookup[T]) abandon(l *Lookups) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.ended {
		return false
	}
	c.abandoned = true
	l.left++
	l.wakeLocked()
	return true
}

// enter waits until one more call may run.
func (l *Lookups) enter(ctx context.Context) error {
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		freed, patience, err := l.tryEnter()
		if freed == nil {
			return err
		}
		over := time.NewTimer(patience)
		select {
		case <-freed:
		case <-over.C:
		case <-ctx.Done():
		}
		over.Stop()
	}
}

// tryEnter takes a place, or returns the channel that tells of a change, and for how
// long to wait for it.
func (l *Lookups) tryEnter() (freed <-chan struct{}, patience time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running < MaxLookups {
		l.running++
		l.moved = time.Now()
		return nil, 0, nil
	}
	patience = LookupPatience - time.Since(l.moved)
	if l.left >= MaxLookups || patience <= 0 {
		return nil, 0, ErrStuck
	}
	if l.freed == nil {
		l.freed = make(chan struct{})
	}
	return l.freed, patience, nil
}

func (l *Lookups) wakeLocked() {
	if l.freed != nil {
		close(l.freed)
		l.freed = nil
	}
}
