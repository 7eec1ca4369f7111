package fill

import (
	"fmt"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
)

const (
	// watchEvery is how often a fill is looked at.
	watchEvery = 500 * time.Millisecond
	// stallTimeout is how long a source may send nothing in the middle of a blob.
	stallTimeout = 30 * time.Second
	// A source must send floorBytes in each floorWindow: one byte now and then is no
	// stall, and no progress either.
	floorWindow = time.Minute
	floorBytes  = 60 << 10
	// orphanTries is how often a source may ask in vain for the rest of a blob that
	// nobody reads. For readers it goes on for longer, as it sees fit.
	orphanTries = 4
)

// What the watch has to say: the cause of an [ErrBroken], or of an interruption.
var (
	// ErrStalled interrupts a source. A source that cannot go on may wrap it.
	ErrStalled = fmt.Errorf("upstream sent nothing for %v", stallTimeout)
	// ErrTooSlow ends a fill whose source sends next to nothing.
	ErrTooSlow = fmt.Errorf("upstream sent less than %d bytes in %v", floorBytes, floorWindow)
)

// watch looks after one fill. It interrupts a source that sends nothing, so that
// the source goes on with another answer. It ends a fill that is hopelessly slow,
// and one that nobody reads any more. There is no limit of the total time: a large
// layer over a slow line takes what it takes.
type watch struct {
	fill    *Fill
	source  Source
	windows *windows

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
	moved   time.Time // when the source moved last, or was interrupted
	window  time.Time // when the present floorWindow began
	before  int64     // received by then
	last    int64     // received at the last look
	orphan  int64     // bytes counted among the orphans; -1: it is none
}

// newWatch looks after f until Stop.
func newWatch(f *Fill, source Source, ws *windows) *watch {
	now := time.Now() // stalls are real time, whatever the host's clock says
	w := &watch{fill: f, source: source, windows: ws, moved: now, window: now, orphan: -1}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(watchEvery, w.look)
	return w
}

// Stop ends the watch. After it the fill is not interrupted or ended any more.
func (w *watch) Stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.timer.Stop()
	w.releaseLocked()
}

func (w *watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	if end := w.checkLocked(time.Now()); end != nil {
		w.fill.cancel(end)
		return
	}
	w.timer.Reset(watchEvery)
}

// checkLocked returns why the fill must end; nil: it goes on.
func (w *watch) checkLocked(now time.Time) error {
	received, moved, tries := w.source.Progress()
	w.windows.tick(now, received-w.last)
	w.last = received
	received += w.windows.brought.Load()
	if moved.After(w.moved) {
		w.moved = moved
	}
	if w.windows.resting.Load() {
		w.moved, w.window, w.before = now, now, received // it is we who do not read
	}
	if now.Sub(w.moved) >= stallTimeout {
		w.moved = now
		w.source.Interrupt(ErrStalled)
	}
	if now.Sub(w.window) >= floorWindow {
		// A stall has its own, shorter, patience: here bytes came, too few.
		if got := received - w.before; got > 0 && got < floorBytes {
			return ErrTooSlow
		}
		w.window, w.before = now, received
	}
	if w.desertedLocked(tries) {
		return flight.ErrDeserted
	}
	return nil
}

// desertedLocked reports that nobody reads the fill or waits for it, that it is not one
// of the orphans that may finish, and that now nobody joins it any more. Content that
// is here to its last byte is never given up: what is left to do is to store it. An
// orphan is given up where it would have to wait for upstream to come back.
//
// A client may come in just this moment. What happens, step by step:
//
//  1. Desert takes the lock under which clients join. A client that has joined by now
//     waits for the fill, or holds the spool: Desert fails, and the fill goes on.
//  2. Otherwise the spool is abandoned and the fill is unlinked in that same step. A
//     client that comes now starts a new fill.
//  3. The fill's context is cancelled, and its goroutine lets go of the spool.
func (w *watch) desertedLocked(tries int) bool {
	f := w.fill
	if f.spool.Held() || f.call.Waited() {
		w.releaseLocked()
		return false
	}
	size := f.spool.Size()
	remaining := size - f.spool.Bytes()
	if size >= 0 && remaining <= 0 || w.orphan >= 0 && tries < orphanTries {
		return false
	}
	if w.orphan < 0 && size >= 0 && f.budget.orphans.admit(remaining, f.job.Orphans, f.job.OrphanBytes) {
		w.orphan = remaining
		return false
	}
	return f.call.Desert(f.spool.Abandon)
}

// releaseLocked takes the fill out of the orphans, if it is one.
func (w *watch) releaseLocked() {
	if w.orphan >= 0 {
		w.fill.budget.orphans.leave(w.orphan)
		w.orphan = -1
	}
}
