//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package dirstore

import (
	"errors"
	"io/fs"
	"os"
)

const lockAlone, lockShared, lockNow = 1, 2, 4

// errReadOnly is the error of a file system that cannot be written.
var errReadOnly = fs.ErrPermission

// errFull is the error of a file system without room, which has no name here.
var errFull = fs.ErrPermission

// tryLock cannot lock here: staging files are given up by their age.
func tryLock(f *os.File) error { return flock(f, lockAlone) }

// flock cannot lock here: nothing is evicted.
func flock(*os.File, int) error { return errors.ErrUnsupported }

// isTaken reports whether a directory cannot get a name. Not every system says why: a
// file in it that is open is reason enough.
func isTaken(err error) bool { return err != nil }
