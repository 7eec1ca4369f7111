package pullthrough

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// watchEvery is how often a download is looked after.
	watchEvery = 500 * time.Millisecond
	// stallTimeout is how long upstream may send nothing in the middle of a blob.
	stallTimeout = 30 * time.Second
	// Upstream must send floorBytes in each floorWindow: one byte now and then is
	// no stall, and no download either.
	floorWindow = time.Minute
	floorBytes  = 60 << 10
)

var (
	errStalled  = fmt.Errorf("upstream sent nothing for %v", stallTimeout)
	errTooSlow  = fmt.Errorf("upstream sent less than %d bytes in %v", floorBytes, floorWindow)
	errDeserted = errors.New("nobody reads this download any more")
)

// watcher looks after one download: it has one that upstream has stopped
// feeding go on by another answer, and ends one that is hopelessly slow or that
// nobody reads any more. Total time is nobody's limit: a large layer over a
// slow line takes what it takes.
type watcher struct {
	p    *Proxy
	f    *fill
	body *transfer

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
	written int64 // at the last look
	moved   time.Time
	window  time.Time // when the present floorWindow began
	before  int64     // written by then
	orphan  int64     // bytes admitted to the orphanage; -1: none
}

// watch looks after f until Stop.
func (p *Proxy) watch(f *fill, body *transfer) *watcher {
	now := time.Now() // stalls are real time, whatever the host's clock says
	w := &watcher{p: p, f: f, body: body, moved: now, window: now, orphan: -1}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(watchEvery, w.look)
	return w
}

// Stop ends the watch.
func (w *watcher) Stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.timer.Stop()
	w.adoptLocked()
}

func (w *watcher) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	if end := w.judgeLocked(time.Now()); end != nil {
		w.f.cancel(end)
		return
	}
	w.timer.Reset(watchEvery)
}

// judgeLocked returns why the download must end; nil: it goes on.
func (w *watcher) judgeLocked(now time.Time) error {
	if written := w.f.spool.Written(); written != w.written {
		w.written, w.moved = written, now
	}
	if now.Sub(w.moved) >= stallTimeout {
		w.moved = now
		w.body.Interrupt(errStalled)
	}
	if now.Sub(w.window) >= floorWindow {
		// A stall has its own, shorter, patience: here bytes came, too few.
		if got := w.written - w.before; got > 0 && got < floorBytes {
			return errTooSlow
		}
		w.window, w.before = now, w.written
	}
	if w.desertedLocked() {
		return errDeserted
	}
	return nil
}

// desertedLocked reports that the download has no reader, is not one of the
// orphans that may finish, and now never gets a reader.
func (w *watcher) desertedLocked() bool {
	if w.f.spool.Held() || !w.f.call.Published() {
		w.adoptLocked()
		return false
	}
	if w.orphan >= 0 {
		return false
	}
	remaining := w.f.spool.Size() - w.written
	if w.f.spool.Size() >= 0 && w.p.state().orphans.admit(remaining, w.f.rt.policy) {
		w.orphan = remaining
		return false
	}
	if !w.f.spool.Abandon() {
		return false
	}
	w.f.call.Unlink()
	return true
}

func (w *watcher) adoptLocked() {
	if w.orphan >= 0 {
		w.p.state().orphans.leave(w.orphan)
		w.orphan = -1
	}
}

// orphanage counts the downloads that go on without a reader. The zero value
// is empty; it is safe for concurrent use.
type orphanage struct {
	mu    sync.Mutex
	n     int
	bytes int64
}

// admit takes in a download with so many bytes to come, if there is room.
func (o *orphanage) admit(remaining int64, policy Policy) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.n >= policy.maxOrphans() || o.bytes+remaining > policy.maxOrphanBytes() {
		return false
	}
	o.n++
	o.bytes += remaining
	return true
}

func (o *orphanage) leave(remaining int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.n--
	o.bytes -= remaining
}
