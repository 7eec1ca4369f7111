// Package spool holds one download for any number of readers.
//
// One writer appends. Every reader follows at its own pace, from any offset, and
// blocks until the bytes that it wants are there. Small content is kept in memory.
// Larger content is kept in a file: in the place that the owner gives, or in a file
// without a name, so that a crash leaves nothing behind. When that place fails, the
// rest goes to a second one.
//
// The last bytes are held back until the writer says that all of them are right. So
// no reader of the whole can complete content that was not verified, step by step:
//
//  1. The writer appends. A reader sees what is there, but nothing of the last
//     [Withheld] bytes of the size. Where the size is not known, it sees nothing of
//     the last Withheld bytes of what is there, since these may be the last.
//  2. A reader that has read so far waits on the channel that the next news closes.
//  3. The writer has written and checked all. It calls Finish, and the same step that
//     sets finished wakes the readers. Now they see the rest, and then io.EOF.
//  4. Or the check has failed, and the writer calls Fail. The readers wake and get
//     the error, also those that could still read: io.EOF comes after Finish only.
//
// A reader that has asked for a closed part, and not for all, may see the end before
// that (see [Reader.Ask]): it cannot take the part for the whole.
//
// Bytes may come before it is their turn: see [Window].
package spool

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
)

const (
	// MemoryLimit is how much content a spool keeps in memory: what is larger
	// goes to a file.
	MemoryLimit = 1 << 20
	// Withheld is how much of the end of the content readers do not see before
	// Finish.
	Withheld = 64 << 10
)

var (
	// ErrAbandoned is what readers get when the owner gave the spool up.
	ErrAbandoned = errors.New("spool: abandoned")
	errClosed    = errors.New("spool: reader is closed")
)

// Place is where content goes that is too large for memory. One goroutine writes
// it, in order, while others read it.
type Place interface {
	io.WriterAt
	io.ReaderAt
	// Open returns a file of its own with the same content, at offset 0, for
	// reading. Where it fails, readers use ReadAt, which is slower.
	Open() (*os.File, error)
}

// Options say where a spool keeps its content. The zero value is usable.
type Options struct {
	// Size is the length of the content; -1 where it is not known.
	Size int64
	// Dir is for files of the spool's own; "": [os.TempDir].
	Dir string
	// Place is where the content goes, whatever its size. The spool does not close
	// it. nil: memory, or a file of the spool's own.
	Place Place
	// Sparse says that several goroutines may write Place at a time, each elsewhere, in any
	// order. A file of the spool's own is always like that.
	Sparse bool
	// Have is what is in Place already; it is Sparse then. It has not been hashed: the writer
	// takes it as what has come ahead.
	Have []extent.Span
	// Files counts the files that readers open for themselves. nil: they open none.
	Files *Files
	// PlaceFailed is called when the Place, or the spool's own file, failed at the
	// offset start, before the rest goes to another file in Dir. It may wait for room
	// there. Its error ends the download. nil: nobody is told.
	PlaceFailed func(start int64, err error) error
	// Changed is called on the goroutine of a reader that begins to wait for bytes that
	// are far ahead, or that leaves these. Then [Spool.Next] and [Spool.Unwanted] may
	// have something else to say. nil: nobody is told.
	Changed func()
	// Gone is called when the spool's space is free again. nil: nobody is told.
	Gone func()
}

// Spool is one download. It is safe for concurrent use by one writer and any
// number of readers.
type Spool struct {
	dir    string
	files  *Files
	moved  func(int64, error) error
	gone   func()
	told   func()
	sparse bool // what comes ahead lies where it belongs

	making   sync.Mutex // held while a place is made; mu is not
	mu       sync.Mutex
	news     beacon     // of the prefix
	size     int64      // -1: unknown until Finish
	got      extent.Map // its prefix is what was written in order
	ahead    ahead
	mem      []byte
	segments []segment // at most two; nil: mem
	finished bool
	err      error     // why the download failed
	refs     int       // the owner, everyone who holds it, and every open reader
	next     Successor // nil: none
	readers  map[*Reader]struct{}
}

// segment is the content from an offset on, up to the next segment.
type segment struct {
	Place
	start int64 // offset of its byte 0 in the content
	own   *file // the same, if it is the spool's to close; nil: it is not
}

// New returns an empty spool, held by its owner until Release.
func New(o Options) *Spool {
	s := &Spool{dir: o.Dir, files: o.Files, moved: o.PlaceFailed, gone: o.Gone, told: o.Changed, size: o.Size, refs: 1, readers: make(map[*Reader]struct{})}
	s.sparse = o.Sparse || o.Place == nil
	if o.Place != nil {
		s.segments = []segment{{Place: o.Place}}
	}
	if len(o.Have) > 0 {
		s.ahead.scratch = segment{Place: o.Place}
		s.got.Have(o.Have)
	}
	return s
}

// Write appends p. It fails when both places have failed, never because of a
// reader. Only one goroutine may call it, and none after Finish or Fail.
func (s *Spool) Write(p []byte) (int, error) {
	seg, err := s.place(len(p))
	if err != nil {
		return 0, err
	}
	if seg != nil {
		if err := s.writeFile(seg, p); err != nil {
			return 0, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if seg == nil {
		s.mem = append(s.mem, p...)
	}
	s.advanceLocked(p)
	return len(p), nil
}

// advanceLocked says that p, which is written, belongs to the prefix.
func (s *Spool) advanceLocked(p []byte) {
	s.got.Advance(int64(len(p)))
	s.news.announce(&s.mu, s.readableLocked(s.ahead.parts > 0))
}

// writeFile writes p at the end. It needs no lock: readers do not look beyond
// the prefix, and only the writer makes that longer, after the bytes are in the file.
func (s *Spool) writeFile(seg *segment, p []byte) error {
	written := s.got.Prefix()
	err := writeAt(seg, p, written-seg.start)
	if err == nil || s.count() > 1 {
		return err
	}
	// The first disk is full or broken. What is there stays readable, and the rest
	// goes elsewhere.
	if s.moved != nil {
		if err := s.moved(written, err); err != nil {
			return err
		}
	}
	second, secondErr := s.addFile(written)
	if secondErr != nil {
		return errors.Join(err, secondErr)
	}
	return writeAt(second, p, 0)
}

func writeAt(seg *segment, p []byte, off int64) error {
	n, err := seg.WriteAt(p, off)
	if err == nil && n != len(p) {
		err = io.ErrShortWrite
	}
	return err
}

func (s *Spool) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.segments)
}

// place returns the segment that the next n bytes go to, nil for memory.
func (s *Spool) place(n int) (*segment, error) {
	s.mu.Lock()
	small := max(s.size, s.got.Prefix()+int64(n)) <= MemoryLimit
	if len(s.segments) > 0 {
		defer s.mu.Unlock()
		return &s.segments[len(s.segments)-1], nil
	}
	if small && s.mem == nil && s.size > 0 {
		s.mem = make([]byte, 0, s.size)
	}
	s.mu.Unlock()
	if small {
		return nil, nil
	}
	s.making.Lock()
	defer s.making.Unlock()
	return s.home()
}

// home returns the first place for content that is too large for memory, and makes it where
// there is none. s.making is held.
func (s *Spool) home() (*segment, error) {
	s.mu.Lock()
	segments, mem := s.segments, s.mem
	s.mu.Unlock()
	if len(segments) > 0 {
		return &segments[0], nil
	}
	return s.spill(mem)
}

// spill moves what is in memory to a file.
func (s *Spool) spill(mem []byte) (*segment, error) {
	f, err := createFile(s.dir)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(mem, 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mem = nil
	s.segments = []segment{{Place: f, own: f}}
	return &s.segments[0], nil
}

// addFile starts a segment at the offset start.
func (s *Spool) addFile(start int64) (*segment, error) {
	f, err := createFile(s.dir)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Readers keep copies of segments: the slice is replaced, never changed.
	s.segments = append(s.segments[:len(s.segments):len(s.segments)], segment{Place: f, start: start, own: f})
	return &s.segments[len(s.segments)-1], nil
}

// Whole reports whether all content is in the one place that [Options] gave.
func (s *Spool) Whole() bool { return s.count() <= 1 }

// readableLocked is how far into the prefix readers may read; tail says that they may
// see the end.
func (s *Spool) readableLocked(tail bool) int64 {
	written := s.got.Prefix()
	if s.finished || tail {
		return written
	}
	return max(0, min(written, max(s.size, written)-Withheld))
}

// Finish says that what was written is the whole content and that it is right. From
// here on readers see its end.
func (s *Spool) Finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finished, s.size = true, s.got.Prefix()
	s.news.ring(s.size)
}

// Fail ends the download: readers get err at once, whatever they could still read.
// A spool that was abandoned stays so.
func (s *Spool) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	s.news.ring(0)
	for w := range s.ahead.windows {
		w.news.ring(0)
	}
}

// Successor opens the same content elsewhere, for a reader that reads until
// ctx ends.
type Successor func(ctx context.Context) (io.ReadSeekCloser, error)

// HandOver lets the readers of a finished spool go on with next, so that the
// spool's own space is free before a slow reader is done. Each reader calls next
// when it reads again. A reader for which next fails stays here.
func (s *Spool) HandOver(next Successor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next = next
}

// CutSlow ends the readers of a finished spool that have not got 600 KiB further
// for so long. It is called when their space is wanted.
func (s *Spool) CutSlow(long time.Duration) {
	s.mu.Lock()
	var slow []*Reader
	for r := range s.readers {
		if s.finished && time.Since(r.lastPiece()) >= long {
			slow = append(slow, r)
		}
	}
	s.mu.Unlock()
	for _, r := range slow {
		r.cut()
	}
}

// Abandon fails the spool with [ErrAbandoned] if nobody but its owner holds it. It
// looks and fails in one step, so after true nobody opens a reader any more.
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

// Written returns how many bytes were written in order, readable or not.
func (s *Spool) Written() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.Prefix()
}

// Wait blocks until more than seen bytes are written, or the download has ended.
// It wakes as often as readers do, not for each write.
func (s *Spool) Wait(ctx context.Context, seen int64) (written int64, ended bool, err error) {
	for {
		s.mu.Lock()
		written, wake, ended, err := s.got.Prefix(), s.news.wait(), s.finished, s.err
		s.mu.Unlock()
		if ended || err != nil || written > seen {
			return written, ended, err
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return written, false, context.Cause(ctx)
		}
	}
}

// Retain holds the spool for a client that is about to open a reader. Its caller
// must hold the spool already, or make sure that another one does meanwhile.
func (s *Spool) Retain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refs <= 0 {
		panic("spool: retained after its end") // a reader would read what is not there
	}
	s.refs++
}

// Release drops one hold. The content is gone when nobody holds it and every
// reader has closed.
func (s *Spool) Release() {
	s.mu.Lock()
	if s.refs--; s.refs > 0 {
		s.mu.Unlock()
		return
	}
	s.news.stop()
	segments := append(s.segments, s.ahead.scratch)
	s.mem, s.segments = nil, nil
	s.mu.Unlock()
	for _, seg := range segments {
		if seg.own != nil {
			_ = seg.own.Close() // scratch: what closing it says changes nothing
		}
	}
	if s.gone != nil {
		s.gone()
	}
}

// look is what a reader sees at an offset: how much there is to read and where, or
// a channel to wait on.
type look struct {
	n    int64
	mem  []byte   // n bytes, or
	seg  *segment // where they are
	wait <-chan struct{}
	tell bool // Changed is to be called
	next Successor
}

// look fails with io.EOF at the end of finished content, and with what the spool
// failed with.
func (s *Spool) look(r *Reader) (look, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return look{}, s.err
	}
	off := r.off
	n := s.readableLocked(r.tail) - off
	switch {
	case n <= 0 && s.finished:
		return look{}, io.EOF
	case n <= 0:
		return s.lookAheadLocked(r), nil
	}
	s.sitLocked(r, false)
	if len(s.segments) == 0 {
		return look{n: n, mem: s.mem[off : off+n]}, nil
	}
	seg := &s.segments[0]
	if len(s.segments) > 1 {
		if second := &s.segments[1]; off >= second.start {
			seg = second
		} else {
			n = min(n, second.start-off)
		}
	}
	return look{n: n, seg: seg, next: s.next}, nil
}
