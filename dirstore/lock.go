package dirstore

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"

	"github.com/ecr-pullthrough/pullthrough/internal/filelock"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// commit runs f, which makes names for content, while no process removes any. It
// is held for a few renames and syncs, never while content is copied. It may have
// to wait: f is not run when the context has ended by then.
func (s *Store) commit(ctx context.Context, f func() error) error {
	unlock, err := s.lockBoth(filelock.Shared)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) { // without locks nothing is evicted, either
		return err
	}
	if err == nil {
		defer unlock()
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return f()
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
