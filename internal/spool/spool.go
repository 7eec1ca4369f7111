// Package spool holds one download for any number of readers.
//
// One writer appends; every reader follows at its own pace from any offset and
// blocks until the bytes it wants are there. Content that stays small is kept
// in memory, larger content in a file without a name where the system allows
// it, so that a crash leaves nothing behind. The tail of the content is
// withheld until the writer says that the whole of it was right: no reader can
// complete content that was not verified.
package spool

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

const (
	// MemoryLimit is how much content a spool keeps in memory: what is larger
	// goes to a file.
	MemoryLimit = 1 << 20
	// Withheld is how much of the end of the content readers do not see before
	// Finish.
	Withheld = 64 << 10

	// Readers that wait are woken for the first bytes, then once per wakeBytes:
	// waking thousands of readers for every read of a fast upstream costs more
	// than the download. wakeAfter bounds how long a slow upstream's bytes wait.
	wakeBytes = 1 << 20
	wakeAfter = 5 * time.Millisecond
)

var (
	// ErrAbandoned is what readers get when the owner gave the spool up.
	ErrAbandoned = errors.New("spool: abandoned")
	errClosed    = errors.New("spool: reader is closed")
)

// Spool is one download. It is safe for concurrent use by one writer and any
// number of readers.
type Spool struct {
	dir string

	mu       sync.Mutex
	wake     chan struct{} // closed and replaced when there is news
	woken    int64         // what was readable at the last wake-up
	timer    *time.Timer   // a wake-up that is due; nil: none
	size     int64         // -1: unknown until Finish
	written  int64
	mem      []byte
	file     *file
	finished bool
	err      error // why the download failed
	refs     int   // the owner, everyone who holds it, and every open reader
}

// New returns an empty spool, held by its owner until Release. size is the
// length of the content, -1 where it is not known. Larger content goes to a
// file in dir; "" means [os.TempDir].
func New(dir string, size int64) *Spool {
	return &Spool{dir: dir, size: size, wake: make(chan struct{}), refs: 1}
}

// Write appends p. It fails when the disk does, never because of a reader.
// Only one goroutine may call it, and none after Finish or Fail.
func (s *Spool) Write(p []byte) (int, error) {
	f, err := s.backing(len(p))
	if err != nil {
		return 0, err
	}
	if f != nil {
		// Readers do not look beyond s.written, so the file needs no lock.
		if n, err := f.WriteAt(p, s.written); err != nil {
			return n, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f == nil {
		s.mem = append(s.mem, p...)
	}
	s.written += int64(len(p))
	s.announceLocked()
	return len(p), nil
}

// backing returns the file that the next n bytes go to, nil for memory.
func (s *Spool) backing(n int) (*file, error) {
	s.mu.Lock()
	f, mem := s.file, s.mem
	small := max(s.size, s.written+int64(n)) <= MemoryLimit
	if small && mem == nil && s.size > 0 {
		s.mem = make([]byte, 0, s.size)
	}
	s.mu.Unlock()
	if f != nil || small {
		return f, nil
	}
	f, err := createFile(s.dir)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(mem, 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.file, s.mem = f, nil
	return f, nil
}

// announceLocked wakes the readers now, or soon.
func (s *Spool) announceLocked() {
	readable := s.readableLocked()
	switch {
	case readable == s.woken:
	case s.woken == 0, readable-s.woken >= wakeBytes:
		s.wakeLocked()
	case s.timer == nil:
		s.timer = time.AfterFunc(wakeAfter, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.timer != nil {
				s.wakeLocked()
			}
		})
	}
}

func (s *Spool) wakeLocked() {
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	s.woken = s.readableLocked()
	close(s.wake)
	s.wake = make(chan struct{})
}

// readableLocked is how far readers may read.
func (s *Spool) readableLocked() int64 {
	if s.finished {
		return s.written
	}
	return max(0, min(s.written, max(s.size, s.written)-Withheld))
}

// Finish says that everything written is the whole, verified content.
func (s *Spool) Finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finished, s.size = true, s.written
	s.wakeLocked()
}

// Fail ends the download: readers get err at once, whatever is readable.
func (s *Spool) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	s.wakeLocked()
}

// Abandon fails the spool with [ErrAbandoned] if nobody but its owner holds it,
// in one step: after true, NewReader opens none any more.
func (s *Spool) Abandon() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refs > 1 || s.finished || s.err != nil {
		return false
	}
	s.err = ErrAbandoned
	return true
}

// Held reports whether anyone but the owner holds the spool.
func (s *Spool) Held() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refs > 1
}

// Size returns the length of the content, -1 while it is not known.
func (s *Spool) Size() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size
}

// Written returns how many bytes were written, readable or not.
func (s *Spool) Written() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.written
}

// Retain holds the spool for somebody who is about to open a reader. It must
// be called by somebody who holds it already.
func (s *Spool) Retain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refs++
}

// Release drops one hold. The content is gone when nobody holds it and every
// reader has closed.
func (s *Spool) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unrefLocked()
}

func (s *Spool) unrefLocked() {
	s.refs--
	if s.refs > 0 {
		return
	}
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	s.mem = nil
	if s.file != nil {
		// The file is scratch: what closing it says changes nothing.
		_ = s.file.Close()
	}
}

// readAt copies what is readable at off. It returns io.EOF at the end of
// finished content, and a channel to wait on when there is nothing yet.
func (s *Spool) readAt(p []byte, off int64) (int, <-chan struct{}, error) {
	s.mu.Lock()
	if s.err != nil {
		defer s.mu.Unlock()
		return 0, nil, s.err
	}
	n := min(int64(len(p)), s.readableLocked()-off)
	if n <= 0 {
		defer s.mu.Unlock()
		if s.finished {
			return 0, nil, io.EOF
		}
		return 0, s.wake, nil
	}
	f := s.file
	if f == nil {
		defer s.mu.Unlock()
		return copy(p[:n], s.mem[off:]), nil, nil
	}
	s.mu.Unlock()
	got, err := f.ReadAt(p[:n], off)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // somebody cut our file
	}
	return got, nil, err
}

// file is scratch space that disappears when it is closed or the process ends.
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

func (f *file) Close() error {
	err := f.File.Close()
	if f.name != "" {
		err = errors.Join(err, os.Remove(f.name))
	}
	return err
}
