//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package dirstore

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// tryLock locks f for as long as it is open. It fails with errLocked, or with
// errors.ErrUnsupported where the file system has no locks.
func tryLock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EWOULDBLOCK):
		return errLocked
	}
	return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
}
