package fill

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/quota"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

const (
	// maxWindows is how many windows of a fill are open at a time. In all it opens
	// windowsPerFill, and one more per MiB of the blob. A client that asks for what is
	// still to come, byte by byte from the end, then waits for the main stream.
	maxWindows     = 8
	windowsPerFill = 64
	// restLimit is how long a window may have upstream's line for itself.
	restLimit = 2 * time.Second
	// laterPause is how long no window is asked for after [ErrLater].
	laterPause = 5 * time.Second
)

// errUnwanted is the cause with which a window is closed that nobody waits for.
var errUnwanted = errors.New("nobody waits for the window")

// windows are the side windows of a fill: connections that bring what readers far ahead
// wait for, while the main stream brings everything in order. The owner of a window is a
// goroutine of its own. It is closed when all of it is here, when its readers have left,
// when it brings nothing for too long, or with the fill. A window that fails does not
// fail the fill: the main stream comes there, too.
type windows struct {
	fill    *Fill
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	used    atomic.Bool   // a window has been opened: there may be something ahead
	changed chan struct{} // has an item when the main stream should look whether it still rests
	brought atomic.Int64  // bytes, by all windows
	resting atomic.Bool   // the main stream reads nothing, on purpose

	mu    sync.Mutex
	lane  *quota.Quota
	open  map[*window]struct{}
	asked int       // in all
	size  int64     // of the blob; -1: not known yet
	off   bool      // no more of them
	later time.Time // none before
	rate  float64   // of the main stream; 0: not measured yet
}

// window is one of them.
type window struct {
	span   extent.Span // what was asked for
	place  *spool.Window
	ready  chan struct{} // closed when place is set, or never will be
	cancel context.CancelCauseFunc
	opened time.Time
	early  bool  // for a client that has no reader yet
	held   int64 // of SpoolBytes

	received atomic.Int64
	seen     int64     // received at the last tick
	moved    time.Time // when something was received, by the ticks
	floor    time.Time // when the present floorWindow began
	before   int64     // received by then
}

// newWindows returns those of f, which may open one at once for the client that has
// begun it.
func newWindows(ctx context.Context, f *Fill) *windows {
	w := &windows{fill: f, size: -1, changed: make(chan struct{}, 1), off: f.job.OpenPart == nil}
	w.ctx, w.cancel = context.WithCancel(ctx)
	if w.off {
		return w
	}
	plain, found := f.budget.plain.Get(plainKey{f.job.Lane, f.job.Digest})
	w.off = found && time.Since(plain) < plainFor
	w.rate, _ = f.budget.rates.Get(f.job.Lane)
	w.lane = f.budget.windows.GetOrPut(f.job.Lane, func() *quota.Quota { return quota.New(int64(f.job.MaxPerLane)) })
	if f.kept == nil { // else what the client wants may be there
		w.openEarly()
	}
	return w
}

// openEarly asks for what the first client wants beside the question for the blob.
func (w *windows) openEarly() {
	d, size := w.fill.job.Want.demand(), int64(1<<62)
	if w.fill.job.Size != nil {
		if told := w.fill.job.Size(); told >= 0 {
			size = told
		}
	}
	d.To = min(d.To, size)
	if n := w.fill.job.Want.Suffix; n > 0 {
		d.From = size - n
	}
	if unknown := size == 1<<62; unknown && w.fill.job.Want.Suffix > 0 || d.From >= d.To {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if span, ok := extent.Early(d, w.rate); ok && w.mayOpenLocked() && w.lane.TryTake(1) {
		w.startLocked(&window{span: span, early: true, ready: make(chan struct{})})
	}
}

// begin says how long the blob is, once the spool is there: windows may be opened.
func (w *windows) begin(size int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.size = size
	for early := range w.open {
		var err error
		if early.place, early.held, err = w.place(early.span); err != nil {
			early.cancel(err)
		}
		close(early.ready)
	}
}

// place takes a place for a window, for which there must be room at once.
func (w *windows) place(span extent.Span) (place *spool.Window, held int64, err error) {
	if w.size < 0 || !w.fill.room.holdAhead(span.Len()) {
		return nil, 0, newError(ErrBusy, "no room for %d bytes", span.Len())
	}
	place, err = w.fill.spool.Open(span)
	if err != nil {
		w.fill.room.giveAhead(span.Len())
		return nil, 0, err
	}
	held = place.Span().Len()
	w.fill.room.giveAhead(span.Len() - held)
	w.used.Store(true)
	return place, held, nil
}

func (w *windows) mayOpenLocked() bool {
	most := windowsPerFill + int(max(0, w.size)>>20)
	return !w.off && w.ctx.Err() == nil && len(w.open) < maxWindows && w.asked < most && !time.Now().Before(w.later)
}

// plan opens and closes what should be open and closed now. Nobody waits for it.
func (w *windows) plan() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	unwanted := w.fill.spool.Unwanted()
	for one := range w.open {
		for _, place := range unwanted {
			if one.place == place && !(one.early && time.Since(one.opened) < restLimit) {
				one.cancel(errUnwanted)
			}
		}
	}
	for w.size >= 0 && w.mayOpenLocked() {
		span, ok := w.fill.spool.Next(w.rate)
		if !ok || !w.lane.TryTake(1) {
			return
		}
		place, held, err := w.place(span)
		if err != nil {
			w.lane.Give(1)
			return
		}
		ready := make(chan struct{})
		close(ready)
		w.startLocked(&window{span: place.Span(), place: place, held: held, ready: ready})
	}
}

// startLocked runs a window that has its turn.
func (w *windows) startLocked(one *window) {
	var ctx context.Context
	ctx, one.cancel = context.WithCancelCause(w.ctx)
	one.opened = time.Now()
	one.moved, one.floor = one.opened, one.opened
	w.asked++
	if w.open == nil {
		w.open = make(map[*window]struct{})
	}
	w.open[one] = struct{}{}
	w.running.Go(func() {
		err := w.receive(ctx, one)
		w.end(ctx, one, err)
	})
}

// receive is a window from its request to its end.
func (w *windows) receive(ctx context.Context, one *window) (err error) {
	defer hostcall.Recover("a part of a blob", &err)
	body, err := w.fill.job.OpenPart(ctx, one.span)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	select {
	case <-one.ready:
	case <-ctx.Done():
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if total := body.Total(); total != w.fill.spool.Size() {
		return newError(ErrDigest, "a part is of a blob of %d bytes", total)
	}
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := body.Read(buf[:])
		if err := context.Cause(ctx); err != nil {
			return err
		}
		taken, writeErr := one.place.Write(buf[:n])
		one.received.Add(int64(taken))
		w.brought.Add(int64(taken))
		switch {
		case writeErr != nil:
			return newError(ErrSpool, "spool: %w", writeErr)
		case taken < n, one.place.Span().Len() == 0, err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// end notes how a window ended, and looks what is to be done now.
func (w *windows) end(ctx context.Context, one *window, err error) {
	cause := context.Cause(ctx)
	one.cancel(nil)
	w.lane.Give(1)
	w.mu.Lock()
	delete(w.open, one)
	if one.place != nil {
		w.fill.room.giveAhead(one.held - one.received.Load())
		one.place.Close()
	}
	switch {
	case cause != nil: // it was closed, which says nothing of upstream
	case errors.Is(err, ErrLater):
		w.later = time.Now().Add(laterPause)
	case one.received.Load() == 0, errors.Is(err, ErrSpool):
		w.off = true
	}
	begun := w.size >= 0
	w.mu.Unlock()
	if begun && w.ctx.Err() == nil {
		w.plan()
	}
}

// stop ends all windows, and waits until they have let go of the spool.
func (w *windows) stop() {
	w.mu.Lock()
	w.cancel() // from here on none is started
	w.mu.Unlock()
	w.running.Wait()
}

// rest holds the main stream back while a window has just been opened and nobody waits for
// what comes next: on a slow line the reader far ahead gets all of it.
func (w *windows) rest(ctx context.Context) {
	w.resting.Store(true)
	defer w.resting.Store(false)
	for {
		left := w.restFor(time.Now())
		if left <= 0 || !w.fill.shown || !w.fill.spool.Rest() {
			return
		}
		timer := time.NewTimer(left)
		select {
		case <-w.changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// restFor is how much longer the youngest window may have the line for itself.
func (w *windows) restFor(now time.Time) (left time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for one := range w.open {
		left = max(left, restLimit-now.Sub(one.opened))
	}
	return left
}

// tick looks after the windows, now and then. received is what the main stream has brought
// since the last time, which was a watchEvery ago.
func (w *windows) tick(now time.Time, received int64) {
	w.mu.Lock()
	if !w.resting.Load() {
		w.rate = average(w.rate, received)
		if received > 0 && !w.off {
			w.fill.budget.rates.Put(w.fill.job.Lane, w.rate)
		}
	}
	open := len(w.open)
	for one := range w.open {
		one.look(now)
	}
	w.mu.Unlock()
	if open > 0 || w.fill.spool.AnyAhead() {
		w.plan()
	}
}

// look ends a window that brings nothing, or next to nothing.
func (one *window) look(now time.Time) {
	received := one.received.Load()
	if one.place != nil {
		one.place.SetRate(average(0, received-one.seen))
	}
	if received > one.seen {
		one.seen, one.moved = received, now
	}
	switch {
	case now.Sub(one.moved) >= stallTimeout:
		one.cancel(ErrStalled)
	case now.Sub(one.floor) >= floorWindow:
		if received-one.before < floorBytes {
			one.cancel(ErrTooSlow)
		}
		one.floor, one.before = now, received
	}
}

// average is a rate in bytes a second to which another watchEvery is added.
func average(rate float64, received int64) float64 {
	now := float64(received) / watchEvery.Seconds()
	if rate > 0 {
		now = (rate + now) / 2
	}
	return max(1, now) // 0 is not measured
}
