package serve

import (
	"io"
	"maps"
	"net/http"
)

// Sieve is the ResponseWriter for a handler whose answer may not be what the client gets.
// It decides once, when the handler has written the header: the answer goes to the client
// as it is written, or all of it is dropped. Nothing is buffered. Optional methods of the
// client's ResponseWriter are reached by way of [http.ResponseController].
type Sieve struct {
	client http.ResponseWriter
	decide func(status int, h http.Header) bool
	before http.Header // what was set before the handler was called
	status int         // 0: not decided yet
	passes bool
}

// NewSieve returns a Sieve before the client's w. decide says whether an answer passes,
// and may change its header.
func NewSieve(w http.ResponseWriter, decide func(status int, h http.Header) bool) *Sieve {
	return &Sieve{client: w, decide: decide, before: w.Header().Clone()}
}

// End ends the answer when the handler has returned. It reports whether the client has
// got it; where it has not, w is as it was before.
func (s *Sieve) End() (passed bool) {
	s.WriteHeader(http.StatusOK)
	if !s.passes {
		h := s.client.Header()
		clear(h)
		maps.Copy(h, s.before)
	}
	return s.passes
}

// Header implements [http.ResponseWriter].
func (s *Sieve) Header() http.Header { return s.client.Header() }

// WriteHeader implements [http.ResponseWriter]. Informational answers are dropped.
func (s *Sieve) WriteHeader(status int) {
	if s.status != 0 || status < http.StatusOK && status != http.StatusSwitchingProtocols {
		return
	}
	s.status = status
	if s.passes = s.decide(status, s.client.Header()); s.passes {
		s.client.WriteHeader(status)
	}
}

// Write implements [http.ResponseWriter].
func (s *Sieve) Write(p []byte) (int, error) {
	s.WriteHeader(http.StatusOK)
	if !s.passes {
		return len(p), nil
	}
	return s.client.Write(p)
}

// ReadFrom keeps the kernel's way from a file to the connection open.
func (s *Sieve) ReadFrom(src io.Reader) (int64, error) {
	s.WriteHeader(http.StatusOK)
	if !s.passes {
		return io.Copy(io.Discard, src)
	}
	return io.Copy(s.client, src)
}

// Flush implements [http.Flusher].
func (s *Sieve) Flush() { _ = s.FlushError() }

// FlushError is Flush for [http.ResponseController].
func (s *Sieve) FlushError() error {
	s.WriteHeader(http.StatusOK)
	if !s.passes {
		return nil
	}
	return http.NewResponseController(s.client).Flush()
}

// Unwrap is for [http.ResponseController].
func (s *Sieve) Unwrap() http.ResponseWriter { return s.client }
