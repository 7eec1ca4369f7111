package serve

import (
	"io"
	"math"
	"net/http"
	"os"
	"sync"
	"time"
)

// maxWrite is how much of an answer is handed to the connection at a time. A slow
// client is seen to read when it is through. The buffers of a connection hold about
// as much: at 16 KiB/s it may take 100 seconds until a smaller write returns, too.
const maxWrite = 1 << 20

// copyBuffers are for content that is no file.
var copyBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// Answer is a ResponseWriter whose writes a [Watch] sees. It is for one request.
type Answer struct {
	http.ResponseWriter
	watch   *Watch
	conn    deadliner // nil: it is counted, and not ended
	request *http.Request
	empty   bool       // the status is one without a body
	ending  sync.Mutex // held while look ends the connection

	// Guarded by watch.mu.
	began         time.Time // when the write began that is under way
	before, after *Answer
	listed        bool // a write is under way
	ended         bool // the connection was ended
}

// deadliner is what the servers of net/http can do: see [http.ResponseController].
type deadliner interface{ SetWriteDeadline(time.Time) error }

// Answer returns w as a watched one, for the answer to r, and nil where there is nothing
// to watch: where w is watched already, and where it is no connection of net/http's. Where
// the http.Server has a WriteTimeout that alone counts: what is sent is counted, and the
// connection is not ended. The caller calls End when all is written. A nil Watch is one
// for this answer alone.
func (w *Watch) Answer(rw http.ResponseWriter, r *http.Request) (http.ResponseWriter, *Answer) {
	conn := deadlinerOf(rw)
	if conn == nil {
		return rw, nil
	}
	if w == nil {
		w = new(Watch)
	}
	server, ok := r.Context().Value(http.ServerContextKey).(*http.Server)
	if w.Silence < 0 || ok && server.WriteTimeout > 0 {
		conn = nil
	}
	a := &Answer{ResponseWriter: rw, watch: w, conn: conn, request: r}
	return a, a
}

// deadlinerOf looks below what a host has wrapped around the connection. nil: there
// is none, or a watched one.
func deadlinerOf(w http.ResponseWriter) deadliner {
	for {
		switch t := w.(type) {
		case *Answer:
			return nil
		case deadliner:
			return t
		case interface{ Unwrap() http.ResponseWriter }:
			w = t.Unwrap()
		default:
			return nil
		}
	}
}

// End sends what is still in a buffer, while the client is watched: after the handler
// nobody is. A connection that was ended is cut, so that nothing follows on it.
func (a *Answer) End() {
	if a == nil || a.conn == nil {
		return
	}
	// What has neither a length nor an end would be chunked by a flush. And a host's own
	// ResponseWriter that cannot flush may not have sent the header yet.
	if _, flushes := a.ResponseWriter.(http.Flusher); flushes && (a.empty || a.Header().Get("Content-Length") != "") {
		_ = a.FlushError()
	}
	a.watch.mu.Lock()
	ended := a.ended
	a.watch.mu.Unlock()
	if ended {
		panic(http.ErrAbortHandler)
	}
}

// Unwrap is for [http.ResponseController].
func (a *Answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader notes whether a body follows.
func (a *Answer) WriteHeader(status int) {
	if a.conn != nil && a.watch.tight.Load() {
		a.Header().Set("Connection", "close") // idle connections hold descriptors, too
	}
	a.empty = status == http.StatusNoContent || status == http.StatusNotModified
	a.ResponseWriter.WriteHeader(status)
}

// Flush is FlushError, for those who look for an [http.Flusher].
func (a *Answer) Flush() { _ = a.FlushError() }

// FlushError sends what is in buffers.
func (a *Answer) FlushError() (err error) {
	a.watch.add(a)
	defer a.done(0, &err)
	return http.NewResponseController(a.ResponseWriter).Flush()
}

// done ends a write of n bytes. err becomes errSilent where it was not the write's own
// failure.
func (a *Answer) done(n int64, err *error) {
	if a.request.Method == http.MethodHead {
		n = 0 // net/http takes a body, and drops it
	}
	if !a.watch.remove(a, n) && *err == nil {
		*err = errSilent
	}
}

func (a *Answer) Write(p []byte) (n int, err error) {
	for {
		m, err := a.write(p[n:min(len(p), n+maxWrite)])
		n += m
		if err != nil || n >= len(p) {
			return n, err
		}
	}
}

func (a *Answer) write(p []byte) (n int, err error) {
	a.watch.add(a)
	defer func() { a.done(int64(n), &err) }()
	return a.ResponseWriter.Write(p)
}

// ReadFrom keeps the kernel's way from a file to the connection open. Other content
// may block when it is read, which is not the client's fault, so only its writes are
// watched.
func (a *Answer) ReadFrom(src io.Reader) (int64, error) {
	part, limited := src.(*io.LimitedReader)
	if !limited {
		part = &io.LimitedReader{R: src, N: math.MaxInt64}
	}
	file, isFile := part.R.(*os.File)
	to, direct := a.ResponseWriter.(io.ReaderFrom)
	if isFile && direct {
		return a.send(to, file, &part.N)
	}
	buf := copyBuffers.Get().(*[32 << 10]byte)
	defer copyBuffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{a}, struct{ io.Reader }{src}, buf[:])
}

// send copies up to n bytes of the file, in pieces.
func (a *Answer) send(to io.ReaderFrom, file *os.File, n *int64) (sent int64, err error) {
	for *n > 0 {
		piece := min(*n, maxWrite)
		m, err := a.sendPiece(to, file, piece)
		sent += m
		*n -= m
		if err != nil || m < piece { // the end of the file
			return sent, err
		}
	}
	return sent, nil
}

func (a *Answer) sendPiece(to io.ReaderFrom, file *os.File, piece int64) (n int64, err error) {
	a.watch.add(a)
	defer func() { a.done(n, &err) }()
	return to.ReadFrom(&io.LimitedReader{R: file, N: piece})
}
