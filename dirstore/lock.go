package dirstore

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"sync"

	"github.com/ecr-pullthrough/pullthrough/internal/filelock"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// commit runs f, which makes names for content, while no process removes any. It
// is held for a few renames and syncs, never while content is copied. It may have
// to wait: f is not run when the context has ended by then.
func (s *Store) commit(ctx context.Context, f func() error) error {
	h := s.commits.enter()
	defer s.commits.leave(h)
	h.once.Do(func() { h.unlock, h.err = s.lockBoth(filelock.Shared) })
	if h.err != nil && !errors.Is(h.err, errors.ErrUnsupported) { // without locks nothing is evicted, either
		return h.err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return f()
}

// commits lets commits that run at the same time have the lock together. Whoever waits to
// have it alone gets it: after [maxTogether] of them the next one takes the lock anew.
type commits struct {
	mu  sync.Mutex
	now *hold // nil: none runs
}

// hold is the lock for as long as somebody of those who have it together needs it.
type hold struct {
	users, came int // guarded by commits.mu

	once   sync.Once
	unlock func() // nil: it could not be locked
	err    error
}

func (c *commits) enter() *hold {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now == nil || c.now.came == maxTogether {
		c.now = new(hold)
	}
	c.now.users++
	c.now.came++
	return c.now
}

func (c *commits) leave(h *hold) {
	c.mu.Lock()
	h.users--
	over := h.users == 0
	if over && c.now == h {
		c.now = nil
	}
	c.mu.Unlock()
	if over && h.unlock != nil {
		h.unlock()
	}
}

// alone runs f, which removes names, while no process makes any.
func (s *Store) alone(f func() error) error {
	unlock, err := s.lockBoth(filelock.Alone)
	if err != nil {
		return err
	}
	defer unlock()
	return f()
}

// lockBoth locks the gate for as long as it waits for the lock itself. Without the
// gate a sweep would wait for ever while puts come and go.
func (s *Store) lockBoth(how int) (unlock func(), err error) {
	gate, err := s.lockFile(layout.Gate, how)
	if err != nil {
		return nil, err
	}
	lock, err := s.lockFile(layout.Lock, how)
	if err = errors.Join(err, gate.Close()); err != nil {
		if lock != nil {
			_ = lock.Close()
		}
		return nil, err
	}
	return func() { _ = lock.Close() }, nil
}

// lockFile returns the locked file: closing it unlocks it.
func (s *Store) lockFile(name string, how int) (*os.File, error) {
	var f *os.File
	err := s.disk.in("lock", name, func(dir *keptDir, rest string) (err error) {
		f, err = dir.root.OpenFile(rest, os.O_RDWR|os.O_CREATE, fileMode)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) { // somebody tidied up
		if err := s.disk.root.MkdirAll(path.Dir(name), dirMode); err != nil {
			return nil, err
		}
		f, err = s.disk.root.OpenFile(name, os.O_RDWR|os.O_CREATE, fileMode)
	}
	if err != nil {
		return nil, err
	}
	if err := filelock.Lock(f, how); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
