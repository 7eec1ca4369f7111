package dirstore

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A sweep that finds nothing to remove is tried again after firstRest, then after
	// twice as long each time, and lastRest at most.
	firstRest = 200 * time.Millisecond
	lastRest  = 5 * time.Minute
	// turnPause is how long a process waits before it looks again whether another one
	// still sweeps.
	turnPause = 50 * time.Millisecond
)

// sweeper owns the sweeps of a Store: when they run, not what they do.
type sweeper struct {
	turn chan struct{} // holds a token while a sweep runs
	// rest is how many bytes must come before a put starts the next sweep, after one that
	// found nothing to remove, or failed: not each put tries again.
	rest atomic.Int64
	// uncounted are bytes that could not be added to the count: the next put does.
	uncounted atomic.Int64

	ctx  context.Context
	quit context.CancelFunc

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
	ended   chan struct{} // closed when what start began has ended; nil: nothing runs
	again   bool          // it is to run once more
	retry   *time.Timer   // nil: nothing is to be tried later
	resting time.Duration // how long retry was set to last
}

func newSweeper() *sweeper {
	w := &sweeper{turn: make(chan struct{}, 1)}
	w.ctx, w.quit = context.WithCancel(context.Background())
	return w
}

// stop ends the sweep that runs, and waits for it.
func (w *sweeper) stop() {
	w.mu.Lock()
	w.closed = true
	w.stopRetryLocked()
	w.mu.Unlock()
	w.quit()
	w.running.Wait()
}

// begin waits for the turn. The context it returns ends with the Store, too.
func (w *sweeper) begin(ctx context.Context) (swept context.Context, end func(), err error) {
	select {
	case w.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	case <-w.ctx.Done():
		return nil, nil, os.ErrClosed
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		<-w.turn
		return nil, nil, os.ErrClosed
	}
	w.running.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(w.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		<-w.turn
		w.running.Done()
	}, nil
}

// start runs f in the background, and once more if it runs already. The channel is
// closed when it has ended.
func (w *sweeper) start(f func(context.Context)) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.startLocked(f)
}

func (w *sweeper) startLocked(f func(context.Context)) <-chan struct{} {
	if w.closed {
		return w.ctx.Done()
	}
	if w.ended != nil {
		w.again = true
		return w.ended
	}
	w.stopRetryLocked()
	ended := make(chan struct{})
	w.ended = ended
	w.running.Go(func() {
		for more := true; more; more = w.more() {
			f(w.ctx)
		}
	})
	return ended
}

// more reports whether it is to run once more, and ends it if not.
func (w *sweeper) more() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.again && !w.closed {
		w.again = false
		return true
	}
	close(w.ended)
	w.ended = nil
	return false
}

// later runs f after a while.
func (w *sweeper) later(f func(context.Context)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopRetryLocked()
	if w.closed {
		return
	}
	w.resting = min(max(2*w.resting, firstRest), lastRest)
	w.retry = time.AfterFunc(w.resting, func() { w.start(f) })
}

// nudge runs f now, if it is to run later: something has ended that was in use.
func (w *sweeper) nudge(f func(context.Context)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.retry != nil {
		w.startLocked(f)
	}
}

// relax is called when there is no more than there may be.
func (w *sweeper) relax() {
	w.rest.Store(0)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.resting = 0
}

func (w *sweeper) stopRetryLocked() {
	if w.retry != nil {
		w.retry.Stop()
		w.retry = nil
	}
}

// pause waits until another process may be done with its sweep.
func (w *sweeper) pause(ctx context.Context) {
	select {
	case <-time.After(turnPause):
	case <-ctx.Done():
	}
}
