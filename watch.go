package pullthrough

import (
	"sync"
	"time"
)

// watcher looks after one download: it ends one that upstream has stopped
// feeding, and one that nobody reads any more. Total time is nobody's limit: a
// large layer over a slow line takes what it takes.
type watcher struct {
	p *Proxy
	f *fill

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
	written int64 // at the last look
	moved   time.Time
	orphan  int64 // bytes admitted to the orphanage; -1: none
}

// watch looks after f until Stop.
func (p *Proxy) watch(f *fill) *watcher {
	now := time.Now() // stalls are real time, whatever the host's clock says
	w := &watcher{p: p, f: f, moved: now, orphan: -1}
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
	now := time.Now()
	if written := w.f.spool.Written(); written != w.written {
		w.written, w.moved = written, now
	}
	if now.Sub(w.moved) >= stallTimeout {
		w.f.cancel(errStalled)
		return
	}
	if w.desertedLocked() {
		w.f.cancel(errDeserted)
		return
	}
	w.timer.Reset(watchEvery)
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
	if w.f.spool.Size() >= 0 && w.p.state().orphans.admit(remaining) {
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
func (o *orphanage) admit(remaining int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.n >= maxOrphans || o.bytes+remaining > maxOrphanBytes {
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
