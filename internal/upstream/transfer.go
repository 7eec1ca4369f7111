package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/contentrange"
	"github.com/ecr-pullthrough/pullthrough/internal/extent"
)

const (
	// A transfer goes on after every break for as long as it gets anywhere: until so
	// many answers together have not brought resumeProgress bytes, until there was no
	// answer for resumePatience, and so many times in all.
	maxIdleResumes = 4
	resumePatience = 30 * time.Second
	maxResumes     = 1000
	resumeProgress = 64 << 10
)

// Transfer is the body of one blob, over as many answers as it takes. It is for one
// goroutine at a time, but for Interrupt. Nothing is verified: the reader compares
// the digest.
//
// A body breaks when its connection does, when it ends short of the length that was
// announced, or when it is interrupted. Then:
//
//  1. If the Transfer's context has ended, or the tries are used up, Read fails. Else
//     it waits, the longer the more tries have been in vain. Tries that got no answer,
//     or one that says that the registry is not well (408, 429, 500, 502, 503, 504),
//     are not counted but timed: a registry that is restarted is away for a while.
//  2. It asks for the rest by Range. It asks the registry, and not the host that the
//     registry had redirected us to, since such URLs expire.
//  3. 206 goes on only if its one Content-Range begins at the offset where we are,
//     reaches to the end of the blob, or not further than was asked for where that is
//     a part, and is of a blob of the length announced before. A part that is shorter
//     than was asked for is a body that breaks.
//  4. 200 is the whole blob again: it is read up to the offset and thrown away, if
//     its length is not another one. However long that takes, it is progress.
//  5. 416, or 400 from object stores behind a CDN, refuses the Range. The blob is
//     asked for once more without, and skipped as in 4. If that breaks, too, Read
//     fails.
//  6. 401, 403 and 404 end the transfer, and so does an answer that 3 or 4 do not
//     let through. Any other status may pass, and so may a broken connection: the
//     next try begins at 1.
//
// So two objects are never spliced, unless they have the same length and the
// registry calls them by the same digest. It is for that case that the reader
// compares the digest of the whole.
type Transfer struct {
	client *Client
	target *Target
	digest digest.Digest
	ctx    context.Context
	body   io.ReadCloser
	off    int64
	end    int64 // where the body ends that was asked for; 0: with the blob
	total  int64 // -1: the registry did not say

	mark    int64 // off at the last break with progress
	idle    int   // answers since then
	resumes int
	whole   bool // a Range was refused: ask for all and skip

	mu        sync.Mutex
	interrupt context.CancelCauseFunc // ends the answer that is being read
	received  int64                   // bytes, with those that were skipped
	moved     time.Time               // when bytes came last, or a request was sent
	vain      int                     // requests since the last break with progress
}

// Transfer starts the download of a blob. It returns when the header of the answer
// is in. The caller closes the Transfer. There is no total timeout: ctx ends it.
func (c *Client) Transfer(ctx context.Context, t *Target, d digest.Digest) (*Transfer, error) {
	x := &Transfer{client: c, target: t, digest: d, ctx: ctx}
	resp, err := x.ask(nil, t.Options.attempts(Pull))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer drain(resp)
		return nil, statusError(t, resp)
	}
	x.body, x.total = resp.Body, resp.ContentLength
	return x, nil
}

// TransferPart is Transfer of the bytes of span, which is not empty, of a blob of that total
// length; -1: nobody knows it. [Transfer.Jump] goes on. A registry that does not give parts
// of blobs gives all: [Transfer.Offset] and [Transfer.Until] say so. What else it says to a
// question for a part is no answer to one for the blob.
func (c *Client) TransferPart(ctx context.Context, t *Target, d digest.Digest, span extent.Span, total int64) (*Transfer, error) {
	if c.sendsWhole(t) {
		return c.Transfer(ctx, t, d)
	}
	x := &Transfer{client: c, target: t, digest: d, ctx: ctx, off: span.From, mark: span.From, end: span.To, total: total}
	resp, err := x.ask(http.Header{"Range": {rangeOf(span.From, span.To)}}, t.Options.attempts(Pull))
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusOK:
		c.noRanges.Put(t.ID, time.Now())
		x.body, x.off, x.mark, x.end, x.total = resp.Body, 0, 0, 0, resp.ContentLength
		return x, nil
	case resp.StatusCode == http.StatusPartialContent && !isEncoded(resp) && x.checkPart(resp) == nil:
		x.body = resp.Body
		return x, nil
	}
	err = statusError(t, resp)
	drain(resp)
	if mayPassStatus(resp.StatusCode) {
		return nil, err
	}
	return c.Transfer(ctx, t, d)
}

// Total is the length of the blob that the registry has announced; -1: none yet.
func (x *Transfer) Total() int64 { return x.total }

// Interrupt ends the answer that is being read, or waited for, and the transfer goes
// on with another, as after any other break. The cause shows in the error if that
// was one break too many. It may be called at any time.
func (x *Transfer) Interrupt(cause error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.interrupt(&interruption{cause})
}

// Progress returns how many bytes have come so far, with those that were passed over
// because they were there already; when the last of them came, or the last request was
// sent; and how many requests have been in vain since the registry broke off. It may be
// called at any time.
func (x *Transfer) Progress() (received int64, moved time.Time, tries int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.received, x.moved, x.vain
}

// note counts bytes that have come.
func (x *Transfer) note(n int) {
	if n == 0 {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.received += int64(n)
	x.moved = time.Now()
}

// Read reads on, over any number of breaks. Its error is io.EOF at the end of the
// blob, the cause of the Transfer's context if that has ended, or an [*Error].
func (x *Transfer) Read(p []byte) (int, error) {
	for {
		n, err := x.body.Read(p)
		x.off += int64(n)
		x.note(n)
		switch {
		case n > 0, err == nil:
			return n, nil // an error shows again at the next call
		case err == io.EOF && (x.total < 0 || x.off >= x.Until()):
			return 0, io.EOF
		case err == io.EOF:
			err = io.ErrUnexpectedEOF
		}
		if err := x.resume(err); err != nil {
			return 0, err
		}
	}
}

// Offset is where the next byte belongs.
func (x *Transfer) Offset() int64 { return x.off }

// Until is where the body ends, if all goes well; -1: nobody knows.
func (x *Transfer) Until() int64 {
	if x.end > 0 && (x.total < 0 || x.end < x.total) {
		return x.end
	}
	return x.total
}

// Jump goes on at the offset off, and ends at the offset end, for somebody who has what is
// between. The registry is asked for these bytes. Where it does not give them by Range, the
// blob is read on as after a break.
func (x *Transfer) Jump(off, end int64) error {
	if x.whole && off >= x.off { // what is open goes to the end of the blob
		n, err := io.Copy(io.Discard, io.LimitReader(x, off-x.off))
		if err == nil && n == 0 && x.off < off {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	_ = x.body.Close()
	x.off, x.mark, x.end = off, off, end
	again, err := x.reopen()
	if err != nil && (x.whole || !again) { // it has given parts, and does not give this one: then all of it
		x.whole = true
		_, err = x.reopen()
		x.whole = err == nil
	}
	if err != nil {
		return x.resume(err)
	}
	return nil
}

// Close ends the transfer.
func (x *Transfer) Close() error { return x.body.Close() }

// ask sends one request for the blob, which Interrupt can end.
func (x *Transfer) ask(header http.Header, tries attempts) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(x.ctx)
	x.mu.Lock()
	x.interrupt, x.moved = cancel, time.Now()
	x.mu.Unlock()
	blob := object{method: http.MethodGet, kind: "blobs", ref: x.digest.String(), header: header, attempts: tries}
	resp, err := x.client.get(ctx, x.target, blob)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = &cancellingBody{resp.Body, cancel}
	return resp, nil
}

// resume replaces the body that broke off, because of cause.
func (x *Transfer) resume(cause error) error {
	_ = x.body.Close()
	if x.off-x.mark >= resumeProgress {
		x.mark, x.idle = x.off, 0
		x.count(-x.vain)
	}
	restarted, broke := x.whole, time.Now()
	for {
		if err := context.Cause(x.ctx); err != nil {
			return err
		}
		gone := x.vain >= maxIdleResumes && time.Since(broke) >= resumePatience
		if restarted || gone || x.idle >= maxIdleResumes || x.resumes >= maxResumes {
			return x.target.fail(ErrUnavailable, fmt.Errorf("after %d bytes: %w", x.off, redact(x.ctx, cause)))
		}
		if err := x.pause(); err != nil {
			return err
		}
		x.resumes++
		traceOf(x.ctx).countResume()
		x.count(1)
		again, err := x.reopen()
		if !isAway(err) {
			x.idle++
			broke = time.Now()
		}
		if err == nil {
			return nil
		}
		if !again {
			// Not wrapped: that the rest is "not found" or "denied" does not make the
			// blob so.
			return x.target.fail(ErrUnavailable, fmt.Errorf("after %d bytes: %v", x.off, err))
		}
		cause = err
	}
}

// count adds to the requests in vain.
func (x *Transfer) count(n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.vain += n
}

// pause waits longer and longer, unless the transfer was getting somewhere.
func (x *Transfer) pause() error {
	if x.vain == 0 {
		return nil
	}
	limit := retryCap
	if x.vain < 6 {
		limit = min(retryCap, retryBase<<(x.vain-1))
	}
	return sleep(x.ctx, limit/2+rand.N(limit/2))
}

// reopen asks for the rest. again reports whether an error may pass.
func (x *Transfer) reopen() (again bool, err error) {
	var header http.Header
	if x.off > 0 && !x.whole {
		header = http.Header{"Range": {rangeOf(x.off, x.end)}}
	}
	resp, err := x.ask(header, resuming)
	if err != nil {
		_, ended := errors.AsType[*interruption](err) // it has had its time
		return ended || isAway(err), err
	}
	switch resp.StatusCode {
	case http.StatusPartialContent:
		err = x.checkPart(resp)
	case http.StatusOK:
		again, err = x.skip(resp)
	case http.StatusRequestedRangeNotSatisfiable, http.StatusBadRequest:
		again, err = !x.whole, statusError(x.target, resp)
		x.whole = true
	default:
		err = statusError(x.target, resp)
		again = !errors.Is(err, ErrDenied) && !errors.Is(err, ErrNotFound)
	}
	if err != nil {
		_ = resp.Body.Close()
		return again, err
	}
	x.body = resp.Body
	return false, nil
}

// rangeOf is a Range header for the bytes from from to to, to excluded; 0: to the end.
func rangeOf(from, to int64) string {
	if to == 0 {
		return fmt.Sprintf("bytes=%d-", from)
	}
	return fmt.Sprintf("bytes=%d-%d", from, to-1)
}

// isAway reports whether the rest of a blob may be had a little later, although it
// could not be asked for now: the registry was not there, or was not well.
func isAway(err error) bool {
	_, broken := errors.AsType[*brokenError](err)
	dns, resolved := errors.AsType[*net.DNSError](err)
	if broken || resolved && dns.IsNotFound || errors.Is(err, syscall.ECONNREFUSED) {
		return true
	}
	e, ok := errors.AsType[*Error](err)
	return ok && mayPassStatus(e.Status)
}

// checkPart makes sure that a 206 continues exactly where we are, in the object
// that we began with.
func (x *Transfer) checkPart(resp *http.Response) error {
	ranges := resp.Header.Values("Content-Range")
	if len(ranges) != 1 {
		return x.target.fail(ErrUnavailable, fmt.Errorf("resume answered with %d Content-Range headers", len(ranges)))
	}
	first, last, total, ok := contentrange.Parse(ranges[0])
	reaches := last == total-1 || x.end > 0 && last < x.end
	if !ok || first != x.off || !reaches || x.total >= 0 && total != x.total {
		return x.target.fail(ErrUnavailable, fmt.Errorf("asked for byte %d on of %d, got Content-Range %.100q", x.off, x.total, ranges[0]))
	}
	x.total = total
	return nil
}

// skip passes over what we have: the registry sends all of it again.
func (x *Transfer) skip(resp *http.Response) (again bool, err error) {
	if x.total >= 0 && resp.ContentLength >= 0 && resp.ContentLength != x.total {
		return false, x.target.fail(ErrUnavailable, fmt.Errorf("the blob of %d bytes has become one of %d", x.total, resp.ContentLength))
	}
	_, err = io.CopyN(skipped{x}, resp.Body, x.off)
	x.end = 0 // it goes to the end
	return true, err
}

// skipped counts what is passed over, and keeps nothing.
type skipped struct{ transfer *Transfer }

func (s skipped) Write(p []byte) (int, error) {
	s.transfer.note(len(p))
	return len(p), nil
}
