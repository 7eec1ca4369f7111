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

// maxLoggedBody is how much of a request's body is kept. Pulls have none; a token request has a few hundred bytes.
const maxLoggedBody = 64 << 10

// Request is one request in an [Upstream]'s log and what it was answered. It is a copy: changing it changes no log.
type Request struct {
	Method string
	Host   string      // the Host header
	Path   string      // as sent, that is with its percent encoding
	Query  string      // as sent, without the question mark
	Header http.Header // of the request
	Range  string      // the Range header; empty: none
	Body   []byte      // the first 64 KiB of the request's body; nil: none

	Status int   // of the answer; 0: the connection ended without one
	Bytes  int64 // of the answer's body handed to the network so far
}

// String is the request's line in [Upstream.Log].
func (r Request) String() string { return fmt.Sprintf("%s %s %d", r.Method, r.Path, r.Status) }

// matches reports whether the request fits pattern with or without its status.
func (r Request) matches(pattern string) bool {
	return matchPattern(pattern, r.Method+" "+r.Path) || r.Status != 0 && matchPattern(pattern, r.String())
}

// Requests are the requests that were answered, in the order in which they arrived. A request is listed before the
// first byte of its answer leaves, so a client that has seen any of its answer finds it here. Requests that are still
// waiting for their answer, or still on their way, are not waited for.
func (u *Upstream) Requests() []Request { return u.log.answered() }

// Log is Requests as lines like "GET /v2/library/alpine/manifests/latest 200".
func (u *Upstream) Log() []string {
	var lines []string
	for _, r := range u.log.answered() {
		lines = append(lines, r.String())
	}
	return lines
}

// Reset empties the log. Requests that have arrived but were not answered yet will not appear in it either.
func (u *Upstream) Reset() { u.log.reset() }

// Count is the number of requests that match pattern, those still waiting for their answer included. A pattern is
// compared with "METHOD PATH" and, once there is an answer, with "METHOD PATH STATUS"; * in it stands for any run of
// characters, slashes included: "GET /v2/*/blobs/*", "* /token", "* 401". The empty pattern matches every request.
func (u *Upstream) Count(pattern string) int {
	return u.log.count(func(e *entry) bool { return e.request.matches(pattern) })
}

// Wait returns nil once n or more of the requests that Count(pattern) counts have met their fault, if there was one
// for them, or are with [Config.Handler], and the context's error if that ends first. It is how a test knows that
// requests are there although a stall holds their answers: what comes after it meets the next fault. A stall ends when
// its channel is closed; healing the fault is for other requests.
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

// Saw reports whether any request, answered or not, carried secret in its path, query, headers or in the first 64 KiB
// of its body, plainly, percent-encoded or in Basic credentials; one of 8 bytes or more in any base64, in hexadecimal
// or quoted, too. Reset makes it forget. Give every credential in a test a value of its own and Saw tells to whom it
// was disclosed; [Secrets] does that for the whole of a test.
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
	settled  bool // no fault that comes now will meet it
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

// readBody records the beginning of the request's body, if it has one, and leaves the whole of it to be read again.
func (e *entry) readBody(r *http.Request) (ok bool) {
	if r.Body == nil || r.Body == http.NoBody {
		return false
	}
	head, _ := io.ReadAll(io.LimitReader(r.Body, maxLoggedBody)) // the next reader meets the error again
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head), r.Body), r.Body}
	e.log.mu.Lock()
	defer e.log.mu.Unlock()
	e.request.Body = head
	return true
}

func (e *entry) settle(settled bool) {
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

func (l *ledger) answered() []Request {
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
		if hides(text, secret) {
			return true
		}
	}
	return false
}

// parts are all that a client has sent, by what it is called.
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
