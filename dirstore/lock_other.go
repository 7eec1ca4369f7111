//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package dirstore

import (
	"errors"
	"os"
)

// tryLock cannot lock here: staging files are given up by their age.
func tryLock(*os.File) error { return errors.ErrUnsupported }
