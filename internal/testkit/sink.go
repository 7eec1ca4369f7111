package testkit

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"reflect"
)

// Sink is a ResponseWriter like net/http's: it takes files by ReadFrom, and
// remembers from what.
type Sink struct {
	Headers http.Header
	Status  int
	Body    bytes.Buffer
	Sources []string // types that came by ReadFrom
	Plain   int64    // bytes that came by Write
	Aborted bool
}

// Header returns Headers.
func (s *Sink) Header() http.Header { return s.Headers }

// Flush does nothing.
func (s *Sink) Flush() {}

// WriteHeader notes the first status.
func (s *Sink) WriteHeader(status int) {
	if s.Status == 0 {
		s.Status = status
	}
}

// Write appends to Body.
func (s *Sink) Write(p []byte) (int, error) {
	s.WriteHeader(http.StatusOK)
	s.Plain += int64(len(p))
	return s.Body.Write(p)
}

// ReadFrom appends to Body and notes what it was given.
func (s *Sink) ReadFrom(r io.Reader) (int64, error) {
	s.WriteHeader(http.StatusOK)
	source := "no LimitedReader"
	if l, ok := r.(*io.LimitedReader); ok {
		source = reflect.TypeOf(l.R).String()
	}
	s.Sources = append(s.Sources, source)
	return s.Body.ReadFrom(r)
}

// ServeSink has h answer a GET of path.
func ServeSink(ctx context.Context, h http.Handler, path string) (s *Sink) {
	s = &Sink{Headers: http.Header{}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://registry.test"+path, nil)
	if err != nil {
		return s
	}
	defer func() {
		if p := recover(); p != nil {
			s.Aborted = true
		}
	}()
	h.ServeHTTP(s, r)
	return s
}
