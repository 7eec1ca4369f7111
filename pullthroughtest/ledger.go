package pullthroughtest

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
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
func (u *Upstream) Count(pattern string) int { return u.log.count(pattern) }

// Wait returns nil once Count(pattern) is n or more, and the context's error if that ends first. It is how a test
// knows that requests are there although a stall holds their answers. A request arrives before it meets its fault, so
// release a stall after Wait by closing its channel, not by healing the fault.
func (u *Upstream) Wait(ctx context.Context, pattern string, n int) error {
	for {
		changed := u.log.watch()
		have := u.log.count(pattern)
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
// of its body, plainly, percent-encoded or in Basic credentials. Reset makes it forget. Give every credential in a
// test a value of its own and Saw tells to whom it was disclosed.
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

// readBody records the beginning of the request's body and leaves the whole of it to be read again.
func (e *entry) readBody(r *http.Request) {
	if r.Body == nil || r.Body == http.NoBody {
		return
	}
	head, _ := io.ReadAll(io.LimitReader(r.Body, maxLoggedBody)) // the next reader meets the error again
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head), r.Body), r.Body}
	e.log.mu.Lock()
	defer e.log.mu.Unlock()
	e.request.Body = head
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
	e.answered = true
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

func (l *ledger) count(pattern string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, e := range l.entries {
		if e.request.matches(pattern) {
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
	texts := []string{r.Host, r.Path, r.Query, string(r.Body)}
	for name, values := range r.Header {
		texts = append(texts, name)
		texts = append(texts, values...)
	}
	return slices.ContainsFunc(texts, func(text string) bool { return hides(text, secret) })
}

// hides looks into the encodings in which credentials travel: none, percent encoding of paths and queries, and Basic.
func hides(text, secret string) bool {
	path, _ := url.PathUnescape(text) // empty if it is no such thing
	query, _ := url.QueryUnescape(text)
	credentials := ""
	if scheme, rest, _ := strings.Cut(text, " "); strings.EqualFold(scheme, "Basic") {
		plain, _ := base64.StdEncoding.DecodeString(strings.TrimSpace(rest))
		credentials = string(plain)
	}
	return slices.ContainsFunc([]string{text, path, query, credentials}, func(plain string) bool {
		return strings.Contains(plain, secret)
	})
}
