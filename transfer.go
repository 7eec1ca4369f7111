package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/contentrange"
)

const (
	// A transfer goes on after every cut for as long as it gets anywhere: so many
	// times in a row without resumeProgress bytes, and so many times in all.
	maxIdleResumes = 4
	maxResumes     = 1000
	resumeProgress = 64 << 10

	resumeBackoff = 200 * time.Millisecond
)

// transfer is the body of one blob, over as many answers as it takes. When one
// breaks off, the rest is asked for by Range, from the registry and not from
// where it had redirected us to: such URLs expire.
type transfer struct {
	u      *upstream
	rt     *route
	digest digest.Digest
	ctx    context.Context
	body   io.ReadCloser
	off    int64
	total  int64 // -1: upstream did not say

	mark    int64 // off at the break before
	idle    int   // breaks in a row without progress
	resumes int
	whole   bool // a Range was refused: ask for all and skip

	mu        sync.Mutex
	interrupt context.CancelCauseFunc // ends the answer that is being read
}

// transfer starts the download of a blob. The caller closes it.
func (u *upstream) transfer(ctx context.Context, rt *route, d digest.Digest) (*transfer, error) {
	t := &transfer{u: u, rt: rt, digest: d, ctx: ctx}
	resp, err := t.ask(nil, rt.policy.effort())
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer drain(resp)
		return nil, statusError(rt, resp)
	}
	t.body, t.total = resp.Body, resp.ContentLength
	return t, nil
}

// ask sends one request for the blob, which Interrupt can end.
func (t *transfer) ask(header http.Header, tries effort) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(t.ctx)
	t.mu.Lock()
	t.interrupt = cancel
	t.mu.Unlock()
	resp, err := t.u.get(ctx, t.rt, question{http.MethodGet, "blobs", t.digest.String(), header, tries, ""})
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = &cancellingBody{resp.Body, cancel}
	return resp, nil
}

// Interrupt ends the answer that is being read, and the transfer goes on with
// another. It may be called at any time.
func (t *transfer) Interrupt(cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.interrupt(cause)
}

// Read reads on, over any number of breaks.
func (t *transfer) Read(p []byte) (int, error) {
	for {
		n, err := t.body.Read(p)
		t.off += int64(n)
		switch {
		case n > 0, err == nil:
			return n, nil // an error shows again at the next call
		case err == io.EOF && (t.total < 0 || t.off >= t.total):
			return 0, io.EOF
		case err == io.EOF:
			err = io.ErrUnexpectedEOF
		}
		if err := t.resume(err); err != nil {
			return 0, err
		}
	}
}

// Close ends the transfer.
func (t *transfer) Close() error { return t.body.Close() }

// resume replaces the body that broke off.
func (t *transfer) resume(cause error) error {
	_ = t.body.Close()
	if t.off-t.mark >= resumeProgress {
		t.idle = 0
	}
	t.mark = t.off
	restarted := t.whole
	for {
		if err := context.Cause(t.ctx); err != nil {
			return err
		}
		if restarted || t.idle >= maxIdleResumes || t.resumes >= maxResumes {
			return t.rt.error(ErrUnavailable, fmt.Errorf("after %d bytes: %w", t.off, redacted(cause)))
		}
		if err := t.pause(); err != nil {
			return err
		}
		t.idle++
		t.resumes++
		retry, err := t.reopen()
		if err == nil {
			return nil
		}
		if !retry {
			// Not wrapped: that the rest is "not found" or "denied" does not make the
			// blob so.
			return t.rt.error(ErrUnavailable, fmt.Errorf("after %d bytes: %v", t.off, err))
		}
		cause = err
	}
}

// pause waits longer and longer, unless the transfer was getting somewhere.
func (t *transfer) pause() error {
	if t.idle == 0 {
		return nil
	}
	limit := resumeBackoff << (t.idle - 1)
	timer := time.NewTimer(limit/2 + rand.N(limit/2))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-t.ctx.Done():
		return context.Cause(t.ctx)
	}
}

// reopen asks for the rest. retry reports whether an error may pass.
func (t *transfer) reopen() (retry bool, err error) {
	var header http.Header
	if t.off > 0 && !t.whole {
		header = http.Header{"Range": {"bytes=" + strconv.FormatInt(t.off, 10) + "-"}}
	}
	resp, err := t.ask(header, resuming)
	if err != nil {
		return mayResume(err), err
	}
	switch resp.StatusCode {
	case http.StatusPartialContent:
		err = t.checkPart(resp)
	case http.StatusOK:
		retry, err = t.skip(resp)
	case http.StatusRequestedRangeNotSatisfiable, http.StatusBadRequest: // the latter from object stores behind a CDN
		retry, err = !t.whole, statusError(t.rt, resp)
		t.whole = true
	default:
		err = statusError(t.rt, resp)
		retry = !errors.Is(err, ErrDenied) && !errors.Is(err, ErrNotFound)
	}
	if err != nil {
		_ = resp.Body.Close()
		return retry, err
	}
	t.body = resp.Body
	return false, nil
}

// mayResume reports whether the rest of a blob may be had a little later,
// although it could not be asked for now.
func mayResume(err error) bool {
	for _, passing := range []error{errNoAnswer, errStalled, syscall.ECONNREFUSED} {
		if errors.Is(err, passing) {
			return true
		}
	}
	if _, ok := errors.AsType[*brokenError](err); ok {
		return true
	}
	e, ok := errors.AsType[*Error](err)
	return ok && mayPassStatus(e.Status)
}

// checkPart makes sure that a 206 continues exactly where we are, in the
// object that we began with.
func (t *transfer) checkPart(resp *http.Response) error {
	ranges := resp.Header.Values("Content-Range")
	if len(ranges) != 1 {
		return t.rt.error(ErrUnavailable, fmt.Errorf("resume answered with %d Content-Range headers", len(ranges)))
	}
	first, last, total, ok := contentrange.Parse(ranges[0])
	if !ok || first != t.off || last != total-1 || t.total >= 0 && total != t.total {
		return t.rt.error(ErrUnavailable, fmt.Errorf("asked for byte %d on of %d, got Content-Range %.100q", t.off, t.total, ranges[0]))
	}
	t.total = total
	return nil
}

// skip passes over what we have: upstream sends all of it again.
func (t *transfer) skip(resp *http.Response) (retry bool, err error) {
	if t.total >= 0 && resp.ContentLength >= 0 && resp.ContentLength != t.total {
		return false, t.rt.error(ErrUnavailable, fmt.Errorf("the blob of %d bytes has become one of %d", t.total, resp.ContentLength))
	}
	_, err = io.CopyN(io.Discard, resp.Body, t.off)
	return true, err
}
