package pullthroughtest

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
)

// answer is the ResponseWriter of every request: it logs, and it applies the fault that the request meets, if any.
// Like any ResponseWriter it is for one goroutine.
type answer struct {
	upstream *Upstream
	entry    *entry
	w        http.ResponseWriter
	r        *http.Request

	begun bool
	fault *Fault     // nil: none
	body  *faultBody // nil: no fault, or not begun
	mute  bool       // the handler's body is not wanted
	other []byte     // the body that the fault puts in its place
	conn  net.Conn   // taken over from net/http; nil: not
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
	a.entry.settle(true)
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

// Flush makes answer an http.Flusher, for the handlers in Config.
func (a *answer) Flush() {
	a.WriteHeader(http.StatusOK)
	if !a.mute {
		a.flush()
	}
}

// Hijack makes answer an http.Hijacker, for the handlers in Config. What they do then is neither logged nor faulty.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	a.begun = true
	return http.NewResponseController(a.w).Hijack()
}

// Unwrap lets http.ResponseController find what answer does not have itself.
func (a *answer) Unwrap() http.ResponseWriter { return a.w }

// finish sends what is left once the handler has returned.
func (a *answer) finish() {
	a.WriteHeader(http.StatusOK)
	if a.body == nil {
		return
	}
	if a.r.Method == http.MethodHead {
		a.body.pause()
		return
	}
	a.body.finish(a.other)
}

// close ends the connection that answer has taken over. It runs whatever happens.
func (a *answer) close() {
	if a.conn != nil {
		_ = a.conn.Close() // the client notices what there is to notice
	}
}

// send counts before it writes, so that a client never knows of more bytes than the log does.
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

// connection is the one the request came on. Nil: a listener that is not the registry's own has it.
func (a *answer) connection() net.Conn {
	conn, _ := a.r.Context().Value(connKey{}).(net.Conn)
	return conn
}

// writeBeneath writes to the connection past net/http.
func (a *answer) writeBeneath(p []byte) {
	if conn := a.connection(); conn != nil {
		_, _ = conn.Write(p) // a client that has gone is noticed when the body is written
	}
}

// cut ends the connection without ending the answer.
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
