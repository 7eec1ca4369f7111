package fill

import (
	"context"
	"errors"
	"io"
	"slices"
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
	first   int64         // how much the main stream asks for at first; 0: all
	striped bool          // the blob comes over several connections; set by begin
	broken  atomic.Bool   // the place of the content has failed
	turn    atomic.Bool   // the main stream should leave what it is at, for what comes first

	mu    sync.Mutex
	lane  *quota.Quota
	open  map[*window]struct{}
	asked int           // in all
	most  int           // connections at a time
	lead  *spool.Window // what the main stream brings of a striped blob; nil: nothing
	size  int64         // of the blob; -1: not known yet
	off   bool          // no more of them
	begun bool          // the main stream has been answered
	over  bool          // the content is here, or will not come
	later time.Time     // none before
	rate  float64       // of the main stream; 0: not measured yet
}

// window is one of them.
type window struct {
	span   extent.Span // what was asked for
	place  *spool.Window
	ready  chan struct{} // closed when place is set, or never will be
	cancel context.CancelCauseFunc
	opened time.Time
	early  bool  // for a client that has no reader yet
	order  bool  // it is the next free stretch of a striped blob
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
	w := &windows{fill: f, size: -1, changed: make(chan struct{}, 1), off: f.job.OpenPart == nil, most: 1}
	w.ctx, w.cancel = context.WithCancel(ctx)
	if w.off {
		return w
	}
	plain, found := f.budget.plain.Get(plainKey{f.job.Lane, f.job.Digest})
	w.off = found && time.Since(plain) < plainFor
	w.rate, _ = f.budget.rates.Get(f.job.Lane)
	w.lane = turns(f.budget.windows, &f.job)
	told := int64(-1)
	if f.job.Size != nil {
		told = f.job.Size()
	}
	if !w.off {
		w.first = extent.FirstStripe(told, f.job.Connections).To
	}
	if f.kept == nil { // else what the client wants may be there
		w.openEarly(told)
	}
	return w
}

// openEarly asks for what the first client wants beside the question for the blob, of that
// size; -1: nobody knows it.
func (w *windows) openEarly(told int64) {
	d, size := w.fill.job.Want.demand(), int64(1<<62)
	if told >= 0 {
		size = told
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
	if span, ok := extent.Early(d, w.rate); ok && w.mayOpenLocked(false) && w.lane.TryTake(1) {
		w.startLocked(&window{span: span, early: true, ready: make(chan struct{})})
	}
}

// begin says how long the blob is, and what of it the main stream has asked for, once the
// spool is there: windows may be opened.
func (w *windows) begin(size int64, first extent.Span) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.size, w.begun = size, true
	if first.To > 0 && first.To < size {
		w.stripeLocked(first)
	}
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
	s := w.fill.spool
	if !s.Sparse() && !w.striped {
		held = span.Len()
	}
	if w.size < 0 || held > 0 && !w.fill.room.holdAhead(held) {
		return nil, 0, newError(ErrBusy, "no room for %d bytes", span.Len())
	}
	place, err = s.Open(span)
	if err != nil {
		w.fill.room.giveAhead(held)
		return nil, 0, err
	}
	if held > 0 {
		w.fill.room.giveAhead(held - place.Span().Len())
		held = place.Span().Len()
	}
	w.used.Store(true)
	return place, held, nil
}

// mayOpenLocked reports whether there may be one more window; inOrder: of a striped blob's
// next stretch.
func (w *windows) mayOpenLocked(inOrder bool) bool {
	now, limit := 0, maxWindows
	if inOrder {
		limit = w.fill.job.Connections - 1
	}
	for one := range w.open {
		if one.order == inOrder || inOrder {
			now++
		}
	}
	most := windowsPerFill + int(max(0, w.size)>>20)
	return !w.aloneLocked() && w.ctx.Err() == nil && now < limit && w.asked < most
}

// aloneLocked reports whether there is to be no window for the time being.
func (w *windows) aloneLocked() bool { return w.off || time.Now().Before(w.later) }

// plan opens and closes what should be open and closed now. Nobody waits for it.
func (w *windows) plan() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.size < 0 {
		return
	}
	w.closeUnwantedLocked()
	for w.mayOpenLocked(false) {
		span, ok := w.fill.spool.Next(w.rate)
		if !ok || !w.openLocked(false, func() (*spool.Window, int64, error) { return w.place(span) }) {
			break
		}
	}
	for w.striped && w.wantedLocked() && w.mayOpenLocked(true) {
		next := func() (*spool.Window, int64, error) {
			place, err := w.fill.spool.OpenNext(false)
			return place, 0, err
		}
		if !w.openLocked(true, next) {
			break
		}
	}
}

// closeUnwantedLocked closes what nobody waits for.
func (w *windows) closeUnwantedLocked() {
	unwanted := w.fill.spool.Unwanted()
	for one := range w.open {
		young := one.early && time.Since(one.opened) < restLimit
		if one.order && !w.wantedLocked() || !young && slices.Contains(unwanted, one.place) {
			one.cancel(errUnwanted)
		}
	}
}

// wantedLocked reports whether anybody reads the blob, or waits for it. What nobody wants
// is worth one connection at most.
func (w *windows) wantedLocked() bool { return w.fill.spool.Held() || w.fill.call.Waited() }

// openLocked opens a window, if a connection is free and there is a place for it.
func (w *windows) openLocked(inOrder bool, take func() (*spool.Window, int64, error)) bool {
	if !w.lane.TryTake(1) {
		return false
	}
	place, held, err := take()
	if err != nil {
		w.lane.Give(1)
		return false
	}
	ready := make(chan struct{})
	close(ready)
	w.startLocked(&window{span: place.Span(), place: place, held: held, ready: ready, order: inOrder})
	return true
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
	w.most = max(w.most, len(w.open)+1)
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
		if one.held > 0 {
			w.fill.room.giveAhead(one.held - one.received.Load())
		}
		one.place.Close()
	}
	switch {
	case cause != nil: // it was closed, which says nothing of upstream
	case errors.Is(err, ErrLater):
		w.later = time.Now().Add(laterPause)
	case errors.Is(err, ErrSpool):
		w.off = true
		w.broken.Store(true)
	case one.received.Load() == 0:
		w.off = true
	}
	w.mu.Unlock()
	if w.ctx.Err() == nil {
		w.plan()
	}
}

// connections is how many bring content now, the main stream among them.
func (w *windows) connections() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return 0
	}
	return len(w.open) + 1
}

// stop ends all windows, and waits until they have let go of the spool. It returns how many
// connections there were at a time, at most; 0: upstream has not answered.
func (w *windows) stop() (most int) {
	w.mu.Lock()
	w.over = true
	if w.begun {
		most = w.most
	}
	w.mu.Unlock()
	w.close()
	return most
}

func (w *windows) close() {
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
	striped := w.striped
	if w.lead != nil {
		w.lead.SetRate(w.rate)
	}
	w.mu.Unlock()
	if open > 0 || striped || w.fill.spool.AnyAhead() {
		w.plan()
	}
	if striped && w.fill.spool.Uncovered() {
		w.turnLead()
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
