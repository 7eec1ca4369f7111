package spool

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
)

// Files bounds how many files the readers of all spools open for themselves. The
// kernel sends a file for a reader that has one of its own, but a process may have
// few open. It is safe for concurrent use.
type Files struct {
	max  int64
	open atomic.Int64
}

// NewFiles allows at most max files; max < 1: none.
func NewFiles(max int64) *Files { return &Files{max: max} }

// Open returns how many are open.
func (f *Files) Open() int64 { return f.open.Load() }

// take counts one file in, if there is room.
func (f *Files) take() bool {
	if f == nil {
		return false
	}
	if f.open.Add(1) > f.max {
		f.open.Add(-1)
		return false
	}
	return true
}

func (f *Files) give() { f.open.Add(-1) }

// file is scratch space. It disappears when it is closed, or when the process ends.
type file struct {
	*os.File
	name string // to be removed on Close; "": removed already
}

func createFile(dir string) (*file, error) {
	f, err := os.CreateTemp(dir, "pullthrough-*.spool")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return &file{f, f.Name()}, nil // no unlinking of open files here
	}
	return &file{f, ""}, nil
}

// Open opens the same file once more, with an offset of its own.
func (f *file) Open() (*os.File, error) {
	if f.name != "" {
		return os.Open(f.name)
	}
	return Reopen(f.File)
}

// Reopen opens an open file once more, with an offset of its own, for reading.
// It works without the file's name, on systems that have /proc.
func Reopen(f *os.File) (*os.File, error) {
	if runtime.GOOS != "linux" {
		return nil, errors.ErrUnsupported
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

func (f *file) Close() error {
	err := f.File.Close()
	if f.name != "" {
		err = errors.Join(err, os.Remove(f.name))
	}
	return err
}
