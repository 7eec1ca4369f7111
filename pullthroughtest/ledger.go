package pullthroughtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"net/http"
	"slices"
	"sync"
)

// maxLoggedBody is how much of a request's body is kept. Pulls have no body; a token request has a few hundred bytes.
const maxLoggedBody = 64 << 10

// Request is one request in an [Upstream]'s log, with the status and size of its answer. It is a copy: changing it does
// not change the log.
type Request struct {
	Method string
	Host   string      // the Host header
	Path   string      // as sent, with its percent encoding
	Query  string      // as sent, without the question mark
	Header http.Header // of the request
	Range  string      // the Range header; empty: none
	Body   []byte      // the first 64 KiB of the request's body; nil: none

	Status int   // of the answer; 0: the connection ended without an answer
	Bytes  int64 // how much of the answer's body has been handed to the network so far
}

// String returns the request's line in [Upstream.Log].
func (r Request) String() string { return fmt.Sprintf("%s %s %d", r.Method, r.Path, r.Status) }

// matches reports whether the request matches pattern, with or without its status.
func (r Request) matches(pattern string) bool {
	return matchPattern(pattern, r.Method+" "+r.Path) || r.Status != 0 && matchPattern(pattern, r.String())
}

// Requests returns the requests that were answered, in the order in which they arrived. A request is listed before the
// first byte of its answer is sent, so a client that has received any of the answer finds the request here. Requests
// does not wait for requests that have no answer yet or have not arrived.
func (u *Upstream) Requests() []Request { return u.log.answeredRequests() }

// Log returns the requests as lines like "GET /v2/library/alpine/manifests/latest 200".
func (u *Upstream) Log() []string {
	var lines []string
	for _, r := range u.log.answeredRequests() {
		lines = append(lines, r.String())
	}
	return lines
}

// Reset empties the log. Requests that have arrived but have no answer yet are dropped too.
func (u *Upstream) Reset() { u.log.reset() }

// Count returns the number of requests that match pattern, including those that have no answer yet. A pattern is
// compared with "METHOD PATH" and, once there is an answer, with "METHOD PATH STATUS". An asterisk stands for any run of
// characters, slashes included: "GET /v2/*/blobs/*", "* /token", "* 401". The empty pattern matches every request.
func (u *Upstream) Count(pattern string) int {
	return u.log.count(func(e *entry) bool { return e.request.matches(pattern) })
}

// Wait waits until n or more of the requests that Count(pattern) counts have been given their fault, if there is one for
// them, or have been handed to [Config.Handler]. It returns the context's error if the context ends first. A test uses
// it to know that requests have arrived although a stall holds their answers. Requests that arrive later get the next
// fault. To end a stall, close its channel: removing the fault affects other requests only.
func (u *Upstream) Wait(ctx context.Context, pattern string, n int) error {
	for {
		changed := u.log.watch()
		have := u.log.count(func(e *entry) bool { return e.settled && e.request.matches(pattern) })
		if have >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d requests like %q: %w", have, n, pattern, ctx.Err())
		}
	}
}

// Saw reports whether any request, answered or not, carried secret in its path, its query, its headers or the first
// 64 KiB of its body. It finds the secret as it is, percent-encoded and in Basic credentials. It finds a secret of 8
// bytes or more also in base64, in hexadecimal and quoted. Reset makes it forget. If every credential in a test has a
// value of its own, Saw shows which registry received it. [Secrets] does that for a whole test.
func (u *Upstream) Saw(secret string) bool { return u.log.saw(secret) }

// ledger keeps the requests in order of arrival. Safe for concurrent use.
type ledger struct {
	mu      sync.Mutex
	entries []*entry
	changed chan struct{} // closed at the next change; nil while nobody watches
}

// entry is one request in the ledger; the ledger's mu guards its fields.
type entry struct {
	log      *ledger
	request  Request
	settled  bool // its fault, if any, has been chosen; a fault installed now does not apply
	answered bool
}

func (l *ledger) arrive(r *http.Request) *entry {
	e := &entry{log: l, request: Request{
		Method: r.Method,
		Host:   r.Host,
		Path:   r.URL.EscapedPath(),
		Query:  r.URL.RawQuery,
		Header: r.Header.Clone(),
		Range:  r.Header.Get("Range"),
	}}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, e)
	l.changedLocked()
	return e
}

// readBody records the beginning of the request's body and reports whether there is one. The whole body can still be
// read afterwards.
func (e *entry) readBody(r *http.Request) (ok bool) {
	if r.Body == nil || r.Body == http.NoBody {
		return false
	}
	head, _ := io.ReadAll(io.LimitReader(r.Body, maxLoggedBody)) // whoever reads the body next gets the error again
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head), r.Body), r.Body}
	e.log.mu.Lock()
	defer e.log.mu.Unlock()
	e.request.Body = head
	return true
}

func (e *entry) setSettled(settled bool) {
	e.log.mu.Lock()
	defer e.log.mu.Unlock()
	e.settled = settled
	e.log.changedLocked()
}

func (e *entry) answer(status int) {
	e.log.mu.Lock()
	defer e.log.mu.Unlock()
	e.request.Status, e.answered = status, true
	e.log.changedLocked()
}

func (e *entry) addBytes(n int) {
	e.log.mu.Lock()
	defer e.log.mu.Unlock()
	e.request.Bytes += int64(n)
}

func (l *ledger) finish(e *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.settled, e.answered = true, true
	l.changedLocked()
}

func (l *ledger) changedLocked() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

func (l *ledger) watch() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed
}

func (l *ledger) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = nil
	l.changedLocked()
}

func (l *ledger) answeredRequests() []Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	var requests []Request
	for _, e := range l.entries {
		if e.answered {
			r := e.request
			r.Header, r.Body = r.Header.Clone(), slices.Clone(r.Body)
			requests = append(requests, r)
		}
	}
	return requests
}

func (l *ledger) count(counts func(*entry) bool) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, e := range l.entries {
		if counts(e) {
			n++
		}
	}
	return n
}

func (l *ledger) saw(secret string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.entries, func(e *entry) bool { return e.request.carries(secret) })
}

func (r Request) carries(secret string) bool {
	for _, text := range r.parts() {
		if reveals(text, secret) {
			return true
		}
	}
	return false
}

// parts returns the names and texts of everything that the client has sent.
func (r Request) parts() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		if !yield("host", r.Host) || !yield("path", r.Path) || !yield("query", r.Query) || !yield("body", string(r.Body)) {
			return
		}
		for name, values := range r.Header {
			for _, text := range append([]string{name}, values...) {
				if !yield("header "+name, text) {
					return
				}
			}
		}
	}
}
