package spool

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// piece is how much is sent at a time. Between two pieces a reader can be handed
// over. A reader that ends a piece is seen to move.
const piece = 600 << 10

// ErrSlow is what a reader gets that was cut since it was too slow for too long.
var ErrSlow = errors.New("spool: reader is too slow")

// sendBuffer is the buffer of a reader without a file of its own. A reader has it
// only while there is something to copy.
const sendBuffer = 16 << 10

var sendBuffers = sync.Pool{New: func() any { return new([sendBuffer]byte) }}

// Reader reads a spool from any offset. It is not safe for concurrent use, but
// Close may be called while another method blocks.
//
// It hides the spool's file on purpose. When net/http finds an *os.File in a body,
// it sends the file straight from the disk, also the end that is held back.
type Reader struct {
	s      *Spool
	ctx    context.Context
	closed chan struct{}
	once   sync.Once

	moved     atomic.Int64           // when a piece was done last, in Unix nanoseconds
	got       atomic.Int64           // bytes since then
	at        atomic.Int64           // off, for Readers
	slow      atomic.Bool            // it has been cut
	interrupt atomic.Pointer[func()] // ends a write that is under way; nil: none is

	mu    sync.Mutex // held by whatever method is under way
	off   int64
	err   error             // the first failure other than io.EOF
	own   *os.File          // one more file on of; nil: none
	of    Place             // what own reads
	next  io.ReadSeekCloser // where reading goes on after a hand-over; nil: here
	stays bool              // this reader has tried a hand-over
	parts []Part            // what its client has asked for; nil: nobody said
	tail  bool              // it may see the end before it is verified

	seat seat // guarded by s.mu
}

// NewReader opens a reader at offset 0. Its reads end when ctx ends. The error says
// why the download has failed: [ErrAbandoned] if nobody wanted it. The caller must
// hold the spool.
func (s *Spool) NewReader(ctx context.Context) (*Reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	s.refs++
	r := &Reader{s: s, ctx: ctx, closed: make(chan struct{})}
	r.moved.Store(time.Now().UnixNano())
	s.readers[r] = struct{}{}
	return r, nil
}

// Readers returns the offsets at which readers are, in no particular order.
func (s *Spool) Readers() []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := make([]int64, 0, len(s.readers))
	for r := range s.readers {
		at = append(at, r.at.Load())
	}
	return at
}

// move notes that the reader got n bytes further.
func (r *Reader) move(n int64) {
	r.off += n
	r.at.Store(r.off)
	if r.got.Add(n) >= piece {
		r.got.Store(0)
		r.moved.Store(time.Now().UnixNano())
	}
}

func (r *Reader) lastPiece() time.Time { return time.Unix(0, r.moved.Load()) }

// cut ends the reader from outside, also a write of its that does not end.
func (r *Reader) cut() {
	r.slow.Store(true)
	if f := r.interrupt.Load(); f != nil {
		(*f)()
	}
}

// Read blocks until there is at least one byte to read at the current offset,
// the end of verified content (io.EOF), or a failure.
func (r *Reader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	l, err := r.await()
	if err != nil {
		return 0, r.fail(err)
	}
	if r.next != nil {
		n, err := r.next.Read(p)
		r.move(int64(n))
		return n, r.fail(err)
	}
	p = p[:min(int64(len(p)), l.n)]
	n, err := l.readAt(p, r.off)
	r.move(int64(n))
	return n, r.fail(err)
}

// readAt fills p with what was looked up at off.
func (l *look) readAt(p []byte, off int64) (int, error) {
	if l.seg == nil {
		return copy(p, l.mem), nil
	}
	n, err := l.seg.ReadAt(p, off-l.seg.start)
	if n == len(p) {
		err = nil
	} else if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // somebody cut our file
	}
	return n, err
}

// await blocks, without holding anything, until there is something at the
// reader's offset.
func (r *Reader) await() (look, error) {
	for {
		if err := r.ended(); err != nil {
			return look{}, err
		}
		if r.next != nil {
			return look{}, nil
		}
		l, err := r.s.look(r)
		if err != nil || l.n > 0 {
			if l.next != nil && !r.stays {
				r.handOver(l.next)
			}
			return l, err
		}
		if l.tell {
			r.s.told()
		}
		select {
		case <-l.wait:
		case <-r.ctx.Done():
		case <-r.closed:
		}
	}
}

// handOver goes on with next, and lets go of the spool.
func (r *Reader) handOver(next Successor) {
	r.stays = true // a reader for which next fails does not ask again at each read
	body, err := next(r.ctx)
	if err != nil {
		return
	}
	if _, err := body.Seek(r.off, io.SeekStart); err != nil {
		_ = body.Close()
		return
	}
	r.closeOwn()
	r.next = body
	r.leave()
}

// leave lets go of the spool.
func (r *Reader) leave() {
	r.s.mu.Lock()
	delete(r.s.readers, r)
	tell := r.s.standUpLocked(r)
	r.s.mu.Unlock()
	if tell {
		r.s.told()
	}
	r.s.Release()
}

// Conn is what a reader may do with the connection that it sends to. Both funcs are
// called at any time while SendTo runs. nil: it cannot be done.
type Conn struct {
	Flush     func() // sends what was written so far
	Interrupt func() // makes the write that is under way fail, and all later ones
}

// SendTo copies n bytes to w, as they come, and returns how many it copied. Before
// it waits it flushes, and while it waits it holds no buffer. If w is an
// io.ReaderFrom it gets files, which a network connection lets the kernel send.
func (r *Reader) SendTo(w io.Writer, n int64, c Conn) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.Interrupt != nil {
		r.interrupt.Store(&c.Interrupt)
		defer r.interrupt.Store(nil)
	}
	var sent int64
	for sent < n {
		if c.Flush != nil && r.next == nil && r.s.empty(r) {
			c.Flush()
		}
		l, err := r.await()
		if err != nil {
			return sent, r.fail(err)
		}
		m, err := r.send(w, l, min(n-sent, piece))
		sent += m
		if err != nil {
			return sent, r.fail(err)
		}
	}
	return sent, nil
}

// empty reports whether a reader has to wait.
func (s *Spool) empty(r *Reader) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || s.finished || s.readableLocked(r.tail) > r.off {
		return false
	}
	n, _ := s.aheadLocked(r)
	return n <= 0
}

// send copies some of what was looked up, at most limit bytes.
func (r *Reader) send(w io.Writer, l look, limit int64) (n int64, err error) {
	from, direct := w.(io.ReaderFrom)
	switch {
	case r.next != nil && direct:
		n, err = from.ReadFrom(&io.LimitedReader{R: r.next, N: limit})
	case r.next != nil:
		n, err = copySome(w, r.next, limit)
	case l.seg == nil:
		var m int
		m, err = w.Write(l.mem[:min(l.n, limit)])
		n = int64(m)
	case direct && r.openOwn(l.seg):
		n, err = r.sendFile(from, l, limit)
	default:
		n, err = copySome(w, io.NewSectionReader(l.seg, r.off-l.seg.start, l.n), limit)
	}
	r.move(n)
	if n == 0 && err == nil {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// sendFile hands w the part of the reader's own file that may be seen.
func (r *Reader) sendFile(w io.ReaderFrom, l look, limit int64) (int64, error) {
	if _, err := r.own.Seek(r.off-l.seg.start, io.SeekStart); err != nil {
		return 0, err
	}
	return w.ReadFrom(&io.LimitedReader{R: r.own, N: min(l.n, limit)})
}

// copySome copies what fits into one buffer: a reader that waits must hold none.
func copySome(w io.Writer, src io.Reader, limit int64) (int64, error) {
	buf := sendBuffers.Get().(*[sendBuffer]byte)
	defer sendBuffers.Put(buf)
	n, err := src.Read(buf[:min(limit, sendBuffer)])
	if n == 0 {
		return 0, err
	}
	n, err = w.Write(buf[:n])
	return int64(n), err
}

// openOwn makes r.own a file on seg, if there may be one more.
func (r *Reader) openOwn(seg *segment) bool {
	if r.own != nil && r.of == seg.Place {
		return true
	}
	r.closeOwn()
	if !r.s.files.take() {
		return false
	}
	f, err := seg.Open()
	if err != nil {
		r.s.files.give()
		return false
	}
	r.own, r.of = f, seg.Place
	return true
}

func (r *Reader) closeOwn() {
	if r.own != nil {
		_ = r.own.Close() // it was only read
		r.own = nil
		r.s.files.give()
	}
}

func (r *Reader) ended() error {
	if r.slow.Load() {
		return ErrSlow
	}
	select {
	case <-r.closed:
		return errClosed
	default:
	}
	return context.Cause(r.ctx)
}

func (r *Reader) fail(err error) error {
	if err != nil && r.slow.Load() {
		err = ErrSlow
	}
	if err != nil && r.err == nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return err
}

// Err returns why a Read or SendTo has failed, nil if none has. A caller that copies
// through code that hides errors asks here whether the copy is whole.
func (r *Reader) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Seek sets the offset of the next Read. It does not wait: where the size is not
// known yet, a seek from the end fails.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
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
	if r.next != nil {
		if _, err := r.next.Seek(offset, io.SeekStart); err != nil {
			return 0, err
		}
	} else if offset != r.off {
		r.s.forgetWindows(r)
	}
	r.off = offset
	r.at.Store(offset)
	return offset, nil
}

// Close ends the reader, and a method that waits. Closing it again does nothing.
func (r *Reader) Close() error {
	r.once.Do(func() {
		close(r.closed)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.closeOwn()
		if r.next != nil {
			_ = r.next.Close() // it was only read
			return
		}
		r.leave()
	})
	return nil
}
