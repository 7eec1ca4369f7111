package spool

import (
	"context"
	"errors"
	"io"
	"sync"
)

// Reader reads a spool from any offset. It is not safe for concurrent use, but
// Close may be called while another method blocks.
//
// It hides the spool's file on purpose: net/http sends an *os.File that it
// finds in a body straight from the disk, past the withheld tail.
type Reader struct {
	s      *Spool
	ctx    context.Context
	closed chan struct{}
	once   sync.Once
	off    int64
	err    error // the first failure other than io.EOF
}

// NewReader opens a reader at offset 0 whose reads end when ctx does. The error
// is why the download failed, [ErrAbandoned] if nobody wanted it. The caller
// must hold the spool.
func (s *Spool) NewReader(ctx context.Context) (*Reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	s.refs++
	return &Reader{s: s, ctx: ctx, closed: make(chan struct{})}, nil
}

// Read blocks until there is at least one byte to read at the current offset,
// the end of verified content (io.EOF), or a failure.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if err := r.ended(); err != nil {
			return 0, r.fail(err)
		}
		n, wait, err := r.s.readAt(p, r.off)
		r.off += int64(n)
		if n > 0 || err != nil {
			return n, r.fail(err)
		}
		select {
		case <-wait:
		case <-r.ctx.Done():
		case <-r.closed:
		}
	}
}

func (r *Reader) ended() error {
	select {
	case <-r.closed:
		return errClosed
	default:
	}
	return context.Cause(r.ctx)
}

func (r *Reader) fail(err error) error {
	if err != nil && r.err == nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return err
}

// Err returns why a Read failed, nil if none did. Whoever copies through code
// that hides errors asks here whether the copy was whole.
func (r *Reader) Err() error { return r.err }

// Seek sets the offset of the next Read. Seeking to the end needs a known
// size; it does not wait for one.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.off
	case io.SeekEnd:
		size := r.s.Size()
		if size < 0 {
			return 0, errors.New("spool: the size is not known yet")
		}
		offset += size
	}
	if offset < 0 {
		return 0, errors.New("spool: seek before the start")
	}
	r.off = offset
	return offset, nil
}

// Close ends the reader. Closing it again does nothing.
func (r *Reader) Close() error {
	r.once.Do(r.close)
	return nil
}

func (r *Reader) close() {
	close(r.closed)
	s := r.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unrefLocked()
}
