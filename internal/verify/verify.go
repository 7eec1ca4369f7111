// Package verify finds out whether stored content has its digest, and keeps the end
// of a content from its readers until that is known.
//
// A full read belongs to nobody who asked for it: it goes on when they leave, and
// all who ask for the same content share it. A few run at a time. Those that somebody
// waits for come first.
package verify

import (
	"container/list"
	"context"
	"fmt"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
)

const (
	// maxRunning is how many full reads run at a time.
	maxRunning = 4
	// maxQueued is how many full reads that nobody waits for are remembered. What comes
	// then is read when somebody waits for it.
	maxQueued = 4096
)

// Reads are the full reads of a store. It is safe for concurrent use and must not be
// copied.
type Reads struct {
	ctx    context.Context
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	jobs    map[digest.Digest]*job // queued and running
	wanted  list.List              // of *job: somebody waits for them
	others  list.List              // of *job: nobody does
	running int
	closed  bool
}

type job struct {
	digest  digest.Digest
	read    func(context.Context) error
	waiters int
	queued  *list.Element // nil: it runs
	done    chan struct{} // closed once err is set
	err     error
}

// New returns Reads of which none runs.
func New() *Reads {
	r := &Reads{jobs: make(map[digest.Digest]*job)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Start has read called in the background, unless a read of d is under way or too many
// wait for their turn.
func (r *Reads) Start(d digest.Digest, read func(context.Context) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.jobs[d] != nil || r.closed || r.others.Len() >= maxQueued {
		return
	}
	r.addLocked(d, read)
	r.workLocked()
}

// Do has read called, unless a read of d is under way, and returns what it returned.
// When ctx ends first, Do returns its cause, and the read goes on. After Stop the error
// is [os.ErrClosed].
func (r *Reads) Do(ctx context.Context, d digest.Digest, read func(context.Context) error) error {
	j := r.join(d, read)
	if j == nil {
		return os.ErrClosed
	}
	defer r.leave(j)
	select {
	case <-j.done:
		return j.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// join counts the caller as a waiter of the read of d; nil after Stop.
func (r *Reads) join(d digest.Digest, read func(context.Context) error) *job {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	j := r.jobs[d]
	if j == nil {
		j = r.addLocked(d, read)
	}
	if j.waiters++; j.waiters == 1 && j.queued != nil {
		r.others.Remove(j.queued)
		j.queued = r.wanted.PushBack(j)
	}
	r.workLocked()
	return j
}

// leave counts a waiter out. A read that has not begun and that nobody waits for any
// more is one of the others again.
func (r *Reads) leave(j *job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if j.waiters--; j.waiters > 0 || j.queued == nil {
		return
	}
	r.wanted.Remove(j.queued)
	if j.queued = nil; r.others.Len() >= maxQueued {
		delete(r.jobs, j.digest)
		return
	}
	j.queued = r.others.PushBack(j)
}

func (r *Reads) addLocked(d digest.Digest, read func(context.Context) error) *job {
	j := &job{digest: d, read: read, done: make(chan struct{})}
	j.queued = r.others.PushBack(j)
	r.jobs[d] = j
	return j
}

// workLocked starts one more goroutine where there is work for it.
func (r *Reads) workLocked() {
	if r.running < maxRunning && r.wanted.Len()+r.others.Len() > 0 {
		r.running++
		r.done.Go(r.work)
	}
}

// work does what is queued, until nothing is.
func (r *Reads) work() {
	for {
		j := r.next()
		if j == nil {
			return
		}
		err := guard(r.ctx, j.read)
		if r.ctx.Err() != nil {
			err = os.ErrClosed
		}
		r.end(j, err)
	}
}

// next takes a job out of the queue; nil: there is none.
func (r *Reads) next() *job {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, queue := range []*list.List{&r.wanted, &r.others} {
		if first := queue.Front(); first != nil {
			j := queue.Remove(first).(*job)
			j.queued = nil
			return j
		}
	}
	r.running--
	return nil
}

func (r *Reads) end(j *job, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.jobs, j.digest)
	j.err = err
	close(j.done)
}

// guard makes an error of a panic: a storage driver is not ours.
func guard(ctx context.Context, read func(context.Context) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("a full read panicked: %v", r)
		}
	}()
	if err := ctx.Err(); err != nil {
		return err
	}
	return read(ctx)
}

// Wait returns when no read runs and none is queued.
func (r *Reads) Wait() { r.done.Wait() }

// Stop ends the reads, and returns when none runs any more.
func (r *Reads) Stop() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.done.Wait()
}
