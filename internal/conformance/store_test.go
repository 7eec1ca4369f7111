package conformance_test

import (
	"testing"
)

// store is what all the registries of a test serve: one directory, and one
// open, writable registry over it, which takes the pushes and answers the
// direct pulls.
type store struct {
	dir    string
	origin *registry
}

func newStore(t testing.TB, images ...*image) *store {
	t.Helper()
	s := &store{dir: t.TempDir()}
	s.origin = startRegistry(t, s.dir, true, authOpen, nil)
	for _, img := range images {
		img.push(t, s.ref(img))
	}
	return s
}

// ref is the image's name at the origin.
func (s *store) ref(img *image) ref {
	return ref{host: s.origin.addr, repo: img.repo, tag: img.tag}
}
