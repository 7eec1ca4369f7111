//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package filelock

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// How to lock: alone or with others, waiting or not.
const (
	Alone  = syscall.LOCK_EX
	Shared = syscall.LOCK_SH
	Now    = syscall.LOCK_NB
)

// Lock locks f for as long as it is open. With [Now] it fails with [ErrLocked] where it
// would wait. The error Is [errors.ErrUnsupported] where the file system has no locks.
func Lock(f *os.File, how int) error { return flock(f, how) }

// Unlock gives the lock back while f stays open.
func Unlock(f *os.File) { _ = flock(f, syscall.LOCK_UN) } // it would go with the file

func flock(f *os.File, how int) error {
	err := syscall.Flock(int(f.Fd()), how)
	for errors.Is(err, syscall.EINTR) {
		err = syscall.Flock(int(f.Fd()), how)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EWOULDBLOCK):
		return ErrLocked
	}
	return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
}
