//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package dirstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// How to lock: alone or with others, waiting or not.
const (
	lockAlone  = syscall.LOCK_EX
	lockShared = syscall.LOCK_SH
	lockNow    = syscall.LOCK_NB
)

// errReadOnly is the error of a file system that cannot be written.
const errReadOnly = syscall.EROFS

// errFull is the error of a file system without room.
const errFull = syscall.ENOSPC

// tryLock locks f for as long as it is open. It fails with errLocked, or with
// errors.ErrUnsupported where the file system has no locks.
func tryLock(f *os.File) error { return flock(f, lockAlone|lockNow) }

func flock(f *os.File, how int) error {
	err := syscall.Flock(int(f.Fd()), how)
	for errors.Is(err, syscall.EINTR) {
		err = syscall.Flock(int(f.Fd()), how)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EWOULDBLOCK):
		return errLocked
	}
	return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
}

// isTaken reports whether a directory cannot get a name since that is there.
func isTaken(err error) bool { return errors.Is(err, fs.ErrExist) }
