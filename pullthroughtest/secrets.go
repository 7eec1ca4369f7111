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

// Secrets keeps track of a test's secrets. It knows which upstreams may receive each of them and searches everything
// that it is given for them. When a secret leaks, it fails the test. It names the secret by the line that made it, and
// never by its value:
//
//	secrets := pullthroughtest.NewSecrets(t)
//	up, elsewhere := pullthroughtest.New(t, ...), pullthroughtest.New(t, ...)
//	password := secrets.New(up) // only up may receive it
//	secrets.Watch(up, elsewhere)
//	logger := slog.New(slog.NewTextHandler(secrets.Writer(), nil))
//	... pull ...
//	secrets.Check(err)
//
// A secret is found as it is, percent-encoded, in base64 (and so in Basic credentials), in hexadecimal, and as fmt and
// encoding/json print strings and byte slices. The search for a secret begins when the Secrets learns of it. All methods
// are safe for concurrent use.
type Secrets struct {
	tb testing.TB

	mu        sync.Mutex
	closed    bool // the test has ended and must not be reported to any more
	known     map[string]*secret
	count     int      // secrets so far
	tokens    []string // keys of known, the oldest first
	index     index
	watched   []*Upstream
	sightings []*sighting // in order of arrival
}

// secret is one secret. The mu of Secrets guards it.
type secret struct {
	name    string
	allowed []*Upstream
	issuer  *Upstream // of a token, which the issuer and the upstreams that accept its tokens may receive; nil: not a token
}

func (s *secret) allows(u *Upstream) bool {
	return slices.Contains(s.allowed, u) || s.issuer != nil && (s.issuer == u || s.issuer == u.issuer())
}

// sighting records that an upstream received a secret. Whether it may is decided when the test ends, since Allow may be
// called later.
type sighting struct {
	secret   *secret
	upstream *Upstream
	where    string // where it was first seen
	times    int
}

// NewSecrets returns a Secrets that reports what upstreams have received when the test ends. Clean-ups run in reverse
// order, so call NewSecrets before you register the clean-ups that it must cover.
func NewSecrets(tb testing.TB) *Secrets {
	s := &Secrets{tb: tb, known: map[string]*secret{}}
	tb.Cleanup(s.close)
	return s
}

// New returns a new, unique secret: "canary-" and random letters. Only the allowed upstreams may receive it.
func (s *Secrets) New(allowed ...*Upstream) string {
	value := "canary-" + rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.learnLocked(value, "made at "+caller()).allowed = slices.Clone(allowed)
	return value
}

// Allow permits these upstreams to receive a secret, even if they have received it already. A value that the Secrets
// does not know becomes one of its secrets. It must have at least 8 bytes, since shorter values are found by chance.
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

// maxTokens is how many tokens are kept as secrets. It bounds the memory of tests with many tokens.
const maxTokens = 1000

// Watch searches every request that arrives at these upstreams from now on, whatever its answer, and even if their logs
// are reset. The last 1,000 tokens that these upstreams accept become secrets that only they may receive.
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

// Writer returns a writer whose input must not contain a secret. Use it for slog handlers and the like. It reports each
// secret once and discards its input. It also finds a secret that is spread over several writes.
func (s *Secrets) Writer() io.Writer { return &secretsWriter{secrets: s, reported: map[*secret]bool{}} }

// Check fails the test at once if a secret shows in any of the values. It looks at each value printed with %v, %+v and
// %#v, as JSON and as slog logs it. For an error, and for errors in exported fields of structs, it looks at each error
// of the tree that Unwrap spans.
func (s *Secrets) Check(values ...any) {
	s.tb.Helper()
	for _, v := range values {
		reported := map[*secret]bool{}
		for what, text := range prints(v) {
			s.report(text, reported, what)
		}
	}
}

// learnLocked returns the secret with this value. It adds one with this name if there is none.
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
	s.learnLocked(value, "a token of "+issuer.URL).issuer = issuer
	s.tokens = append(s.tokens, value)
	if len(s.tokens) > maxTokens {
		oldest := s.tokens[0]
		s.tokens = slices.Delete(s.tokens, 0, 1)
		s.index.remove(oldest, s.known[oldest])
		delete(s.known, oldest)
	}
}

// inspect records the secrets in a request that has just arrived at u.
func (s *Secrets) inspect(u *Upstream, r Request) {
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

// placeLocked describes a part of a request. It omits the path if there is a secret in it.
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

// report fails the test for each secret in text that was not reported before.
func (s *Secrets) report(text string, reported map[*secret]bool, what string) {
	s.tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, found := range s.index.find(text) {
		if s.closed || reported[found] {
			continue
		}
		reported[found] = true
		s.tb.Errorf("%s shows in %s: %s", found.name, what, s.index.redact(text))
	}
}

// close fails the test for each secret that an upstream received and may not have.
func (s *Secrets) close() {
	s.tb.Helper()
	s.mu.Lock()
	watched := s.watched
	s.mu.Unlock()
	for _, u := range watched { // an upstream may outlive this test
		u.watchers.remove(s)
		u.issuer().tokens.watchers.remove(s)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, n := range s.sightings {
		if !n.secret.allows(n.upstream) {
			s.tb.Errorf("%s was sent to %s, which may not see it: %d times, first in %s", n.secret.name, n.upstream.URL, n.times, n.where)
		}
	}
}

// caller returns the file and line of the first caller outside this file.
func caller() string {
	_, own, _, _ := runtime.Caller(0)
	for skip := 1; ; skip++ {
		_, file, line, ok := runtime.Caller(skip)
		if !ok || file != own {
			return fmt.Sprintf("%s:%d", filepath.Base(file), line)
		}
	}
}

// secretsWriter searches what is written to it for secrets.
type secretsWriter struct {
	secrets *Secrets

	mu       sync.Mutex
	tail     string // the end of what was written, in which a secret may begin
	reported map[*secret]bool
}

func (w *secretsWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := w.tail + string(p)
	w.secrets.report(text, w.reported, "what was written")
	w.tail = text[max(0, len(text)-w.secrets.longest()):]
	return len(p), nil
}

// longest returns the length of the longest spelling of a secret.
func (s *Secrets) longest() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index.longest
}

// watchers are the Secrets that watch an upstream or its tokens. Safe for concurrent use.
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

// list returns the watchers. Later changes do not affect the slice.
func (w *watchers) list() []*Secrets {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clip(w.all)
}
