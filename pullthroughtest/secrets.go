package pullthroughtest

import (
	"crypto/rand"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
)

// Secrets is a ledger of a test's secrets. It knows who may see each of them, looks for them wherever it is told to,
// and fails the test that lets one out, naming the secret by the line that made it and never by its value:
//
//	secrets := pullthroughtest.NewSecrets(t)
//	up, elsewhere := pullthroughtest.New(t, ...), pullthroughtest.New(t, ...)
//	password := secrets.New(up) // up may see it, and nobody else
//	secrets.Watch(up, elsewhere)
//	logger := slog.New(slog.NewTextHandler(secrets.Writer(), nil))
//	... pull ...
//	secrets.Check(err)
//
// Secrets are found as they are, percent-encoded, in base64 (and so in Basic credentials), in hexadecimal, and in what
// fmt and encoding/json make of strings and byte slices. They are looked for from the moment on that they are known.
// All methods are safe for concurrent use.
type Secrets struct {
	tb testing.TB

	mu        sync.Mutex
	closed    bool // the test is over, and must not be told anything
	known     map[string]*secret
	count     int      // of secrets so far
	tokens    []string // in known, the oldest first
	index     index
	watched   []*Upstream
	sightings []*sighting // by upstreams, in order
}

// secret is one of them; the ledger's mu guards it.
type secret struct {
	name    string
	allowed []*Upstream
	issuer  *Upstream // of a token: this one and those that take its tokens may see it; nil: it is no token
}

func (s *secret) allows(u *Upstream) bool {
	return slices.Contains(s.allowed, u) || s.issuer != nil && (s.issuer == u || s.issuer == u.issuer())
}

// sighting is that an upstream was sent a secret. It is judged in the end, since Allow may come later.
type sighting struct {
	secret   *secret
	upstream *Upstream
	where    string // of the first
	times    int
}

// NewSecrets makes a ledger that gives its judgement when the test has ended. Call it before the clean-ups are
// registered that are to be watched too: they run in reverse order.
func NewSecrets(tb testing.TB) *Secrets {
	s := &Secrets{tb: tb, known: map[string]*secret{}}
	tb.Cleanup(s.close)
	return s
}

// New makes a secret unlike any other, "canary-" and some random letters, which only the allowed may be sent.
func (s *Secrets) New(allowed ...*Upstream) string {
	value := "canary-" + rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.learnLocked(value, "made at "+caller()).allowed = slices.Clone(allowed)
	return value
}

// Allow lets these upstreams see a secret too, also those that have seen it already. A value that the ledger does not
// know becomes a secret of the ledger; it must have 8 bytes at least, lest it is found by chance.
func (s *Secrets) Allow(value string, up ...*Upstream) {
	s.tb.Helper()
	if len(value) < minSecret {
		s.tb.Fatalf("pullthroughtest: a secret of %d bytes would be found by chance", len(value))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.learnLocked(value, "named at "+caller())
	known.allowed = append(known.allowed, up...)
}

// maxTokens is how many tokens are secrets at a time, so that tests with many tokens stay small.
const maxTokens = 1000

// Watch looks at every request that arrives at these upstreams from now on, whatever becomes of it and whether or not
// their logs are reset. The tokens that they take, the last 1,000 of them, become secrets for them alone.
func (s *Secrets) Watch(up ...*Upstream) {
	s.mu.Lock()
	s.watched = append(s.watched, up...)
	s.mu.Unlock()
	for _, u := range up {
		u.watchers.add(s)
		for _, token := range u.issuer().tokens.watch(s) {
			s.learnToken(token, u.issuer())
		}
	}
}

// Writer returns a writer whose input must hold no secret, for slog handlers and the like. It reports each secret once
// and keeps nothing; a secret that is spread over several writes is found too.
func (s *Secrets) Writer() io.Writer { return &secretsWriter{secrets: s, told: map[*secret]bool{}} }

// Check fails the test at once if a secret shows in any of the values: printed with %v, %+v and %#v, as JSON, as slog
// logs it, and, of errors and of the errors in fields of structs, in any error of the tree that Unwrap spans.
func (s *Secrets) Check(values ...any) {
	s.tb.Helper()
	for _, v := range values {
		told := map[*secret]bool{}
		for what, text := range prints(v) {
			s.tell(text, told, what)
		}
	}
}

// learnLocked returns the secret with this value, which gets the name if it is new.
func (s *Secrets) learnLocked(value, name string) *secret {
	if known := s.known[value]; known != nil {
		return known
	}
	s.count++
	known := &secret{name: fmt.Sprintf("secret %d (%s)", s.count, name)}
	s.known[value] = known
	s.index.add(value, known)
	return known
}

func (s *Secrets) learnToken(value string, issuer *Upstream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.known[value]; known != nil {
		known.issuer = issuer
		return
	}
	s.learnLocked(value, "a token of "+issuer.url).issuer = issuer
	s.tokens = append(s.tokens, value)
	if len(s.tokens) > maxTokens {
		oldest := s.tokens[0]
		s.tokens = slices.Delete(s.tokens, 0, 1)
		s.index.remove(oldest, s.known[oldest])
		delete(s.known, oldest)
	}
}

// see notes the secrets in a request that has just arrived at u.
func (s *Secrets) see(u *Upstream, r Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for part, text := range r.parts() {
		for _, found := range s.index.find(text) {
			if !found.allows(u) {
				s.noteLocked(&sighting{secret: found, upstream: u, where: s.placeLocked(r, part), times: 1})
			}
		}
	}
}

// placeLocked names the request and the part of it, without its path if there is a secret in that.
func (s *Secrets) placeLocked(r Request, part string) string {
	path := r.Path
	if len(s.index.find(path)) > 0 {
		path = "..."
	}
	return fmt.Sprintf("the %s of %s %s", part, r.Method, path)
}

func (s *Secrets) noteLocked(n *sighting) {
	for _, before := range s.sightings {
		if before.secret == n.secret && before.upstream == n.upstream {
			before.times++
			return
		}
	}
	s.sightings = append(s.sightings, n)
}

// tell fails the test for each secret in text that was not told of yet.
func (s *Secrets) tell(text string, told map[*secret]bool, what string) {
	s.tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, found := range s.index.find(text) {
		if s.closed || told[found] {
			continue
		}
		told[found] = true
		s.tb.Errorf("%s shows in %s: %s", found.name, what, s.index.redact(text))
	}
}

// close judges what the upstreams have seen.
func (s *Secrets) close() {
	s.tb.Helper()
	s.mu.Lock()
	watched := s.watched
	s.mu.Unlock()
	for _, u := range watched { // they may go on after this test
		u.watchers.remove(s)
		u.issuer().tokens.watchers.remove(s)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, n := range s.sightings {
		if !n.secret.allows(n.upstream) {
			s.tb.Errorf("%s was sent to %s, which may not see it: %d times, first in %s", n.secret.name, n.upstream.url, n.times, n.where)
		}
	}
}

// caller is the file and line outside of this file that called into it.
func caller() string {
	_, own, _, _ := runtime.Caller(0)
	for skip := 1; ; skip++ {
		_, file, line, ok := runtime.Caller(skip)
		if !ok || file != own {
			return fmt.Sprintf("%s:%d", filepath.Base(file), line)
		}
	}
}

// secretsWriter looks through what is written to it.
type secretsWriter struct {
	secrets *Secrets

	mu   sync.Mutex
	tail string // of what was written, in which a secret may begin
	told map[*secret]bool
}

func (w *secretsWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := w.tail + string(p)
	w.secrets.tell(text, w.told, "what was written")
	w.tail = text[max(0, len(text)-w.secrets.longest()):]
	return len(p), nil
}

// longest is the length that a text has at most if only its end is missing for a secret in it.
func (s *Secrets) longest() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index.longest
}

// watchers are the ledgers that look at something. Safe for concurrent use.
type watchers struct {
	mu  sync.Mutex
	all []*Secrets
}

func (w *watchers) add(s *Secrets) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Contains(w.all, s) {
		w.all = append(w.all, s)
	}
}

func (w *watchers) remove(s *Secrets) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = slices.DeleteFunc(slices.Clone(w.all), func(other *Secrets) bool { return other == s })
}

// list is a slice that nobody changes.
func (w *watchers) list() []*Secrets {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clip(w.all)
}
