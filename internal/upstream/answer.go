package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
)

const (
	drainTimeout = 2 * time.Second // for the rest of an answer that is not wanted
	maxErrorBody = 64 << 10
)

// errDrained is the cause with which the body of an unwanted answer is given up.
var errDrained = errors.New("the rest of the answer did not come")

// cancellingBody is the body of an answer whose request has a context of its own. The
// body may be that of a caller's own RoundTripper: a panic of it is an error.
type cancellingBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (b *cancellingBody) Read(p []byte) (n int, err error) {
	defer hostcall.Recover("the body of the Transport", &err)
	return b.ReadCloser.Read(p)
}

// Close closes the body and ends the context.
func (b *cancellingBody) Close() (err error) {
	defer b.cancel(nil)
	defer hostcall.Recover("the body of the Transport", &err)
	return b.ReadCloser.Close()
}

// drain ends an answer so that its connection can be used again, unless that
// costs more than a new one.
func drain(resp *http.Response) {
	if resp.ContentLength <= maxErrorBody {
		defer hurry(resp)()
		_, _ = io.CopyN(io.Discard, resp.Body, maxErrorBody)
	}
	_ = resp.Body.Close()
}

// keepBody takes the answer's body into memory, so that its connection is free
// although the answer may still be needed.
func keepBody(resp *http.Response) {
	stop := hurry(resp)
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // what has come of it
	stop()
	_ = resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(body))
}

// hurry gives the body of an unwanted answer a short time to come. The function it
// returns ends that.
func hurry(resp *http.Response) (stop func()) {
	body, ok := resp.Body.(*cancellingBody)
	if !ok {
		return func() {}
	}
	timer := time.AfterFunc(drainTimeout, func() { body.cancel(errDrained) })
	return func() { timer.Stop() }
}
