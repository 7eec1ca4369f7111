//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package dirstore

import "io/fs"

// errReadOnly is the error of a file system that cannot be written.
var errReadOnly = fs.ErrPermission

// errFull is the error of a file system without room, which has no name here.
var errFull = fs.ErrPermission

// isTaken reports whether a directory cannot get a name. Not every system says why: a
// file in it that is open is reason enough.
func isTaken(err error) bool { return err != nil }
