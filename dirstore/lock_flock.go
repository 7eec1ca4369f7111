//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package dirstore

import (
	"errors"
	"io/fs"
	"syscall"
)

// errReadOnly is the error of a file system that cannot be written.
const errReadOnly = syscall.EROFS

// errFull is the error of a file system without room.
const errFull = syscall.ENOSPC

// isTaken reports whether a directory cannot get a name since that is there.
func isTaken(err error) bool { return errors.Is(err, fs.ErrExist) }
