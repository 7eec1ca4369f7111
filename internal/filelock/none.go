//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package filelock

import (
	"errors"
	"os"
)

// How to lock: alone or with others, waiting or not.
const Alone, Shared, Now = 1, 2, 4

// Lock cannot lock here.
func Lock(*os.File, int) error { return errors.ErrUnsupported }

// Unlock does nothing.
func Unlock(*os.File) {}
