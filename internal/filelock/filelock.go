// Package filelock locks open files, against other processes and against other opens of
// the same file in this one. A lock goes with the open file, however its process ends.
package filelock

import "errors"

// ErrLocked says that somebody else has the lock.
var ErrLocked = errors.New("locked")
