package dirstore

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
)

// reader is the disk as a [filing.Reader]. It does not look at contexts: a step on
// the disk is short, and the callers look between steps.
type reader struct{ s *Store }

// Read implements [filing.Reader].
func (r reader) Read(_ context.Context, name string, limit int64) ([]byte, error) {
	f, err := r.s.disk.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(content)) > limit {
		err = fmt.Errorf("%s is too long: %w", name, layout.ErrDamaged)
	}
	return content, err
}

// Content implements [filing.Reader].
func (r reader) Content(_ context.Context, name string, d digest.Digest) ([]byte, time.Time, error) {
	return r.s.readManifest(name, d)
}

// Touch implements [filing.Reader].
func (r reader) Touch(_ context.Context, name string) error { return r.s.disk.touch(name) }

// Lists implements [filing.Reader].
func (r reader) Lists(ctx context.Context, dir, name string) (listed bool, err error) {
	err = r.s.disk.list(dir, func(e fs.DirEntry) error {
		listed = listed || e.Name() == name
		return ctx.Err()
	})
	return listed, err
}

// Discard implements [filing.Reader].
func (r reader) Discard(name string, good func(content []byte) bool) {
	r.s.removeIf(name, func(name string) bool {
		content, err := r.Read(context.Background(), name, layout.MaxLink)
		return err != nil || !good(content)
	})
}

// readLink returns the digest in the link in dir; see [filing.ReadLink].
func (s *Store) readLink(dir string, d digest.Digest) (digest.Digest, error) {
	return filing.ReadLink(context.Background(), reader{s}, dir, d)
}
