package serve

import (
	"errors"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

const (
	// DefaultSilence is for how long a client may read nothing.
	DefaultSilence = 10 * time.Minute
	// shortSilence is the same while descriptors are short. The longest silent go
	// first, and no client that reads at 2 MiB/s is among them.
	shortSilence = time.Second
	// lookEvery is how often a Watch looks, while any write is under way.
	lookEvery = time.Second / 2
)

// errSilent is what a write gets whose client was silent for too long.
var errSilent = errors.New("serve: the client has read nothing for too long")

// Watch counts what is sent, and ends the connections of clients that read nothing. A client that asks for
// much and never reads would keep a goroutine, a connection and a file for ever.
//
// It knows the writes that are under way, the longest first, and looks at them twice a
// second while there are any. So a write costs no timer and no system call. The time
// in which an answer waits for an upstream registry or a Store does not count. While
// descriptors are short, connections are not kept for the next request, either. The
// zero value is usable. A Watch is safe for concurrent use.
type Watch struct {
	// Silence is how long one write of at most 1 MiB may take. 0: [DefaultSilence];
	// negative: for ever, also when descriptors are short.
	Silence time.Duration
	// Files tells how many descriptors are open, at least, and how many may be. nil:
	// what the operating system says of the process.
	Files func() (open, limit int64)
	// Ended is called after a connection was ended that was silent for so long; short
	// says that it was for its descriptors. nil: nobody is told.
	Ended func(r *http.Request, silent time.Duration, short bool)

	tight atomic.Bool // descriptors were short at the last look

	mu          sync.Mutex
	sent        int64   // bytes of bodies
	first, last *Answer // writes under way, in the order in which they began
	timer       *time.Timer
	looking     bool      // the timer runs
	asked       time.Time // when Files was asked last
}

// Sent returns how many bytes of bodies its Answers have written.
func (w *Watch) Sent() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sent
}

// add notes that a write of a begins.
func (w *Watch) add(a *Answer) {
	if a.conn == nil {
		return // there is nothing to be ended
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	a.began, a.listed = time.Now(), true
	if a.began.Sub(w.asked) >= lookEvery {
		w.lackingLocked(a.began)
	}
	a.before = w.last
	if w.last == nil {
		w.first = a
	} else {
		w.last.after = a
	}
	w.last = a
	if w.looking {
		return
	}
	w.looking = true
	if w.timer != nil {
		w.timer.Reset(lookEvery)
		return
	}
	self := weak.Make(w) // the timer keeps nobody's Proxy alive
	w.timer = time.AfterFunc(lookEvery, func() {
		if w := self.Value(); w != nil {
			w.look()
		}
	})
}

// remove notes that a write of n bytes of a has returned. It reports whether the client is
// still to be served: false when its connection has been ended.
func (w *Watch) remove(a *Answer, n int64) bool {
	w.mu.Lock()
	w.sent += n
	w.removeLocked(a)
	ended := a.ended
	w.mu.Unlock()
	if !ended {
		return true
	}
	a.ending.Lock() // until then look uses the ResponseWriter
	defer a.ending.Unlock()
	return false
}

func (w *Watch) removeLocked(a *Answer) {
	if !a.listed {
		return
	}
	if a.before == nil {
		w.first = a.after
	} else {
		a.before.after = a.after
	}
	if a.after == nil {
		w.last = a.before
	} else {
		a.after.before = a.before
	}
	a.before, a.after, a.listed = nil, nil, false
}

// look ends the connections that are due.
func (w *Watch) look() {
	w.mu.Lock()
	now := time.Now()
	due := w.takeLocked(now, w.silence(), math.MaxInt64)
	old := len(due)
	if w.first != nil && now.Sub(w.first.began) >= shortSilence {
		due = append(due, w.takeLocked(now, shortSilence, w.lackingLocked(now)-int64(old))...)
	}
	w.looking = w.first != nil
	if w.looking {
		w.timer.Reset(lookEvery)
	}
	w.mu.Unlock()
	for i, a := range due {
		silent := now.Sub(a.began)
		_ = a.conn.SetWriteDeadline(time.Unix(1, 0)) // the write fails now, and so do later ones
		a.ending.Unlock()
		if w.Ended != nil {
			w.Ended(a.request, silent, i >= old)
		}
	}
}

// takeLocked takes those out whose write has been under way for so long, at most max
// of them. Each is locked, until its connection is ended.
func (w *Watch) takeLocked(now time.Time, long time.Duration, max int64) (due []*Answer) {
	for max > 0 && w.first != nil && now.Sub(w.first.began) >= long {
		a := w.first
		w.removeLocked(a)
		a.ended = true
		a.ending.Lock()
		due = append(due, a)
		max--
	}
	return due
}

func (w *Watch) silence() time.Duration {
	if w.Silence == 0 {
		return DefaultSilence
	}
	return w.Silence
}

// lackingLocked is how many descriptors have to be closed. Where less than an eighth
// of those that the process may have is free, a quarter has to be.
func (w *Watch) lackingLocked(now time.Time) int64 {
	files := w.Files
	if files == nil {
		files = spool.OpenFiles
	}
	open, limit := files()
	w.asked = now
	short := open > limit-limit/8
	w.tight.Store(short)
	if !short {
		return 0
	}
	return open - (limit - limit/4)
}
