package pullthroughtest

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
)

// answer is the ResponseWriter of every request. It logs the answer and applies the request's fault, if there is one.
// Like any ResponseWriter it must be used by one goroutine at a time.
type answer struct {
	upstream *Upstream
	entry    *entry
	w        http.ResponseWriter
	r        *http.Request

	begun bool
	fault *Fault     // nil: none
	body  *faultBody // nil: no fault, or the answer has not begun
	mute  bool       // the handler's body is dropped
	other []byte     // the body that the fault sends instead of the handler's
	conn  net.Conn   // the connection hijacked from net/http; nil: net/http still has it
}

func (a *answer) Header() http.Header { return a.w.Header() }

func (a *answer) WriteHeader(status int) {
	if a.begun {
		return
	}
	a.begun = true
	request := a.entry.request
	request.Status = status
	a.fault = a.upstream.faults.pick(request)
	a.entry.setSettled(true)
	if a.fault == nil {
		a.entry.answer(status)
		a.w.WriteHeader(status)
		return
	}
	a.writeFaultyHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	switch {
	case a.mute || a.r.Method == http.MethodHead:
		return len(p), nil
	case a.body != nil:
		return a.body.Write(p)
	}
	return a.send(p)
}

// Flush implements http.Flusher for Config.Handler.
func (a *answer) Flush() {
	a.WriteHeader(http.StatusOK)
	if !a.mute {
		a.flush()
	}
}

// Hijack implements http.Hijacker for Config.Handler. What the handler writes to the connection is not logged, and
// faults do not apply to it.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	a.begun = true
	return http.NewResponseController(a.w).Hijack()
}

// Unwrap lets http.ResponseController find the methods that answer does not have.
func (a *answer) Unwrap() http.ResponseWriter { return a.w }

// finish sends the rest of the answer after the handler has returned.
func (a *answer) finish() {
	a.WriteHeader(http.StatusOK)
	if a.body == nil {
		return
	}
	if a.r.Method == http.MethodHead {
		a.body.applyAtOffset()
		return
	}
	a.body.finish(a.other)
}

// close closes a hijacked connection. It is deferred, so it also runs when the handler panics.
func (a *answer) close() {
	if a.conn != nil {
		_ = a.conn.Close() // the client sees the result; there is nobody else to tell
	}
}

// send writes p to the client. It counts the bytes before it writes them, so that the log never shows fewer bytes than
// a client has received.
func (a *answer) send(p []byte) (int, error) {
	a.entry.addBytes(len(p))
	var out io.Writer = a.w
	if a.conn != nil {
		out = a.conn
	}
	n, err := out.Write(p)
	if n < len(p) {
		a.entry.addBytes(n - len(p))
	}
	return n, err
}

func (a *answer) flush() {
	if a.conn == nil {
		_ = http.NewResponseController(a.w).Flush() // fails when the client has gone
	}
}

// connection returns the connection that the request came on. It returns nil if the request came through a listener
// that is not the registry's own.
func (a *answer) connection() net.Conn {
	conn, _ := a.r.Context().Value(connKey{}).(net.Conn)
	return conn
}

// writeBeneath writes to the connection directly, bypassing net/http.
func (a *answer) writeBeneath(p []byte) {
	if conn := a.connection(); conn != nil {
		_, _ = conn.Write(p) // if the client has gone, writing the body fails
	}
}

// cut closes the connection in the middle of the answer.
func (a *answer) cut() {
	conn := a.connection()
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if tcp, ok := conn.(*net.TCPConn); ok && a.fault.Reset {
		_ = tcp.SetLinger(0) // closing sends RST from now on
		_ = tcp.Close()
	}
	panic(http.ErrAbortHandler)
}
