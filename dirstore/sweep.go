package dirstore

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/filelock"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

const (
	// spare is the part of MaxBytes that a sweep makes free, so that not each put
	// needs one.
	spare = 10
	// maxPutDelay is how long a put waits for a sweep, when puts are too fast.
	maxPutDelay = 10 * time.Second
)

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
	_, err := s.sweep(ctx)
	switch {
	case errors.Is(err, errLocked):
		return nil // another process is at it
	case errors.Is(err, context.Canceled) && ctx.Err() == nil:
		return os.ErrClosed
	}
	return err
}

// grow counts content that has come. Where there is too much of it, or where nobody knows,
// it has the directory swept in the background. swept is closed when that has ended, and nil
// unless a tenth too much is there.
func (s *Store) grow(added int64) (swept <-chan struct{}) {
	if added == 0 {
		return nil
	}
	added += s.sweeper.uncounted.Swap(0)
	size, err := s.addSize(added)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.sweeper.uncounted.Add(added)
		return nil
	}
	if s.MaxBytes <= 0 || err == nil && size <= s.MaxBytes || s.sweeper.rest.Add(-added) > 0 {
		return nil
	}
	ended := s.sweeper.start(s.shrink)
	if size <= s.MaxBytes+s.MaxBytes/spare {
		return nil
	}
	return ended
}

// holdUp has a put wait for a sweep: puts must not be faster than sweeps for ever.
func holdUp(ctx context.Context, swept <-chan struct{}) {
	if swept == nil {
		return
	}
	patience := time.NewTimer(maxPutDelay)
	defer patience.Stop()
	select {
	case <-swept:
	case <-patience.C:
	case <-ctx.Done():
	}
}

// shrink sweeps until the directory has no more than MaxBytes. When nothing can go, it
// leaves the rest to a later try: something is in use, or young.
func (s *Store) shrink(ctx context.Context) {
	for {
		freed, err := s.sweep(ctx)
		busy := errors.Is(err, errLocked) // another process is at it
		if busy {
			s.sweeper.pause(ctx)
			err = nil
		}
		if ctx.Err() != nil {
			return
		}
		var size int64
		if err == nil {
			size, err = s.addSize(0)
		}
		switch {
		case err == nil && size <= s.MaxBytes:
			s.sweeper.relax()
			return
		case err == nil && (freed > 0 || busy):
			continue
		case err != nil:
			s.log().Warn("the size of the directory could not be kept", "err", err)
		}
		s.sweeper.rest.Store(s.MaxBytes / spare)
		if !errors.Is(err, errors.ErrUnsupported) { // without locks nothing can ever go
			s.sweeper.later(s.shrink)
		}
		return
	}
}

// sweep is one sweep, in its turn. The error Is errLocked while another process sweeps.
func (s *Store) sweep(ctx context.Context) (freed int64, err error) {
	ctx, end, err := s.sweeper.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	turn, err := s.lockFile(layout.Sweep, filelock.Alone|filelock.Now)
	if err != nil {
		return 0, err
	}
	defer func() { _ = turn.Close() }()
	return s.sweepAlone(ctx)
}

// sweepAlone also removes what it should when it cannot count: the disk may be full.
func (s *Store) sweepAlone(ctx context.Context) (freed int64, err error) {
	counted, countErr := s.beginCount()
	c := newScan(ctx, s)
	if err := c.run(); err != nil {
		if countErr == nil && counted == 0 { // as far as anybody knows nobody has counted
			countErr = s.disk.root.Remove(layout.Size)
		}
		return 0, errors.Join(err, countErr)
	}
	c.total += s.shelf.Tidy()
	if s.MaxBytes > 0 && c.total > s.MaxBytes {
		freed, err = c.evict(s.MaxBytes - s.MaxBytes/spare)
	}
	if countErr == nil { // what was put meanwhile has been added to what was counted before
		_, countErr = s.addSize(c.total - freed - counted)
	}
	level := slog.LevelDebug
	switch {
	case err != nil:
		level = slog.LevelWarn
	case freed > 0:
		level = slog.LevelInfo
	}
	s.log().Log(ctx, level, "swept the directory", "bytes", c.total-freed, "freed", freed, "maxBytes", s.MaxBytes, "err", err)
	return freed, errors.Join(err, countErr)
}
