package dirstore

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// spare is the part of MaxBytes that a sweep makes free, so that not each put
// needs one.
const spare = 10

// Sweep brings the directory under MaxBytes now, and counts what it has; with
// MaxBytes 0 it counts only. Puts start sweeps of their own accord.
//
// What goes is an image: a manifest that no index of the repository needs, the
// tags that name it, and the links of its blobs; then all content that nothing
// refers to any more. The image that was asked for least recently goes first; on
// the disk that is known to the hour. Repositories stay, and so does all that a
// manifest of any repository refers to, and an image of which this Store is
// downloading a part. Content that nothing has referred to for an hour goes with
// the first. Files that are open stay readable.
//
// Images are removed while no process stores any. The search for them delays no
// other call.
// A sweep that fails or is cut short has lost nothing: what is left is whole. One
// process sweeps at a time, and Sweep does nothing while another one does. Where
// the file system has no locks the error Is [errors.ErrUnsupported].
func (s *Store) Sweep(ctx context.Context) error {
	swept, end, err := s.sweeper.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	err = s.sweep(swept)
	if errors.Is(err, context.Canceled) && ctx.Err() == nil {
		err = os.ErrClosed
	}
	return err
}

// sweeper owns the sweeps of a Store.
type sweeper struct {
	turn chan struct{} // holds a token while a sweep runs
	left atomic.Int64  // bytes after the last sweep
	// rest is how many bytes must come before the next sweep, after one that failed:
	// not each put tries again.
	rest atomic.Int64
	// uncounted are bytes that could not be added to the count: the next put does.
	uncounted atomic.Int64

	ctx  context.Context
	quit context.CancelFunc

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
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
	return w.beginLocked(ctx)
}

// beginLocked is called by the goroutine that has the turn.
func (w *sweeper) beginLocked(ctx context.Context) (swept context.Context, end func(), err error) {
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

// start runs f in the background, unless a sweep runs already.
func (w *sweeper) start(f func(context.Context)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case w.turn <- struct{}{}:
	default:
		return
	}
	ctx, end, err := w.beginLocked(context.Background())
	if err != nil {
		return
	}
	go func() {
		defer end()
		f(ctx)
	}()
}

// grow counts content that has come, and starts a sweep when there is too much or
// nobody knows. After a sweep that could not make enough room the next one waits
// until there is something more to remove.
func (s *Store) grow(added int64) {
	if added == 0 {
		return
	}
	added += s.sweeper.uncounted.Swap(0)
	size, err := s.addSize(added)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.sweeper.uncounted.Add(added)
		return
	}
	if s.MaxBytes <= 0 {
		return
	}
	if s.sweeper.rest.Add(-added) > 0 || err == nil && size <= max(s.MaxBytes, s.sweeper.left.Load()+s.MaxBytes/spare) {
		return
	}
	s.sweeper.start(func(ctx context.Context) {
		if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
			s.sweeper.rest.Store(s.MaxBytes / spare)
			s.log().Warn("the size of the directory could not be kept", "err", err)
		}
	})
}

func (s *Store) sweep(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	turn, err := s.lockFile(layout.Sweep, lockAlone|lockNow)
	if errors.Is(err, errLocked) {
		return nil // another process is at it
	}
	if err != nil {
		return err
	}
	defer func() { _ = turn.Close() }()
	return s.sweepAlone(ctx)
}

// sweepAlone also removes what it should when it cannot count: the disk may be full.
func (s *Store) sweepAlone(ctx context.Context) error {
	counted, countErr := s.beginCount()
	c := newScan(ctx, s)
	if err := c.run(); err != nil {
		if countErr == nil && counted == 0 { // as far as anybody knows nobody has counted
			countErr = s.disk.root.Remove(layout.Size)
		}
		return errors.Join(err, countErr)
	}
	var freed int64
	var err error
	if s.MaxBytes > 0 && c.total > s.MaxBytes {
		freed, err = c.evict(s.MaxBytes - s.MaxBytes/spare)
	}
	s.sweeper.left.Store(c.total - freed)
	if countErr == nil { // what was put meanwhile has been added to what was counted before
		_, countErr = s.addSize(c.total - freed - counted)
	}
	s.log().Info("swept the directory", "bytes", c.total-freed, "freed", freed, "maxBytes", s.MaxBytes, "err", err)
	return errors.Join(err, countErr)
}
