package pullthroughtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// writeFaultyHeader sends the handler's header with the fault applied.
func (a *answer) writeFaultyHeader(status int) {
	f, header := a.fault, a.Header()
	status = a.replace(status)
	length := int64(-1)
	if n, err := strconv.ParseInt(header.Get("Content-Length"), 10, 64); err == nil {
		length = n
	}
	if f.NoLength || f.CloseDelimited {
		header.Del("Content-Length")
	}
	replaceHeaders(header, f.Header)
	ctx, cancel := context.WithCancel(a.r.Context())
	a.body = newFaultBody(ctx, a, length)
	a.body.start()
	a.entry.answer(status)
	if a.wantsRaw(length) && a.takeOver(cancel) {
		a.writeRawHeader(ctx, status)
		return
	}
	a.w.WriteHeader(status)
	if header.Get("Content-Length") == "" {
		a.flush() // otherwise net/http declares the length of a short body
	}
}

// replace applies Status, Redirect and Body. It returns the status to be sent.
func (a *answer) replace(status int) int {
	f, header := a.fault, a.Header()
	if f.Redirect != "" {
		status = http.StatusTemporaryRedirect
	}
	if f.Status != 0 {
		status = f.Status
	}
	a.other, a.mute = f.Body, f.Body != nil
	if f.Redirect != "" || f.Status >= http.StatusMultipleChoices {
		clear(header)
		a.replaceError(status)
	}
	if f.Redirect != "" {
		header.Set("Location", strings.ReplaceAll(f.Redirect, "{path}", a.r.URL.EscapedPath()))
	}
	if a.mute {
		header.Set("Content-Length", strconv.Itoa(len(a.other)))
	}
	return status
}

// replaceError drops the handler's body and prepares the one of an error or a redirect.
func (a *answer) replaceError(status int) {
	if status == http.StatusUnauthorized {
		repo, _, _ := splitPath(a.r.URL.Path)
		a.Header().Set("Www-Authenticate", a.upstream.challenge(repo))
	}
	a.mute = true
	if a.other == nil && status >= http.StatusBadRequest {
		a.Header().Set("Content-Type", "application/json")
		a.other = marshal(errorDocument{{Code: usualCode(status), Message: "injected fault"}})
	}
}

// replaceHeaders applies replacement to header. A deleted header stays as a key without values, since net/http adds some
// headers when their key is missing.
func replaceHeaders(header, replacement http.Header) {
	for name, values := range replacement {
		if len(values) == 0 || len(values) == 1 && values[0] == "" {
			values = nil
		}
		header[http.CanonicalHeaderKey(name)] = values
	}
}

// wantsRaw reports whether net/http would refuse to send such an answer.
func (a *answer) wantsRaw(length int64) bool {
	f := a.fault
	return f.CloseDelimited || f.HeaderRate > 0 || f.Header.Get("Content-Length") != "" || f.Extend > 0 && length >= 0 && !f.NoLength
}

// takeOver hijacks the connection from net/http and reports whether it could, which is impossible on HTTP/2. net/http no
// longer watches a hijacked connection, so takeOver does, and calls gone when the client has gone.
func (a *answer) takeOver(gone context.CancelFunc) bool {
	conn, _, err := http.NewResponseController(a.w).Hijack()
	if err != nil {
		return false
	}
	a.conn = conn
	go func() {
		defer gone()
		_, _ = io.Copy(io.Discard, conn) // ends when close closes the connection
	}()
	return true
}

func (a *answer) writeRawHeader(ctx context.Context, status int) {
	protocol := "HTTP/1.1"
	if a.fault.CloseDelimited {
		protocol = "HTTP/1.0"
	}
	header := a.Header().Clone()
	header.Set("Connection", "close")
	var text bytes.Buffer
	fmt.Fprintf(&text, "%s %d %s\r\n", protocol, status, http.StatusText(status))
	_ = header.Write(&text) // writing to a Buffer never fails
	text.WriteString("\r\n")
	rate := a.fault.HeaderRate
	if rate <= 0 {
		rate = math.MaxInt64
	}
	for text.Len() > 0 {
		portion := text.Next(int(min(max(1, rate/10), int64(text.Len()))))
		_, _ = a.conn.Write(portion) // if the client has gone, writing the body fails
		if a.fault.HeaderRate > 0 {
			sleep(ctx, takes(len(portion), rate))
		}
	}
}
