package diststore

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
)

// files are the objects of the bucket, as a [filing.Writer].
type files struct{ s *Store }

// Read implements [filing.Reader].
func (f files) Read(ctx context.Context, name string, limit int64) ([]byte, error) {
	return f.s.bucket.read(ctx, name, limit)
}

// Content implements [filing.Reader].
func (f files) Content(ctx context.Context, name string, d digest.Digest) ([]byte, time.Time, error) {
	content, err := f.s.bucket.read(ctx, name, layout.MaxManifest)
	if err == nil {
		err = layout.CheckContent(content, d)
	}
	return content, time.Time{}, err
}

// Touch implements [filing.Reader]. A bucket notes no uses.
func (f files) Touch(context.Context, string) error { return nil }

// Lists implements [filing.Reader].
func (f files) Lists(ctx context.Context, dir, name string) (bool, error) {
	names, err := f.s.bucket.list(ctx, dir)
	return slices.Contains(names, name), err
}

// Discard implements [filing.Reader]. The next put replaces what cannot be used:
// another proxy may just be doing so.
func (f files) Discard(string, func([]byte) bool) {}

// Write implements [filing.Writer].
func (f files) Write(ctx context.Context, name string, content []byte) error {
	return f.s.bucket.put(ctx, name, content)
}

// Note implements [filing.Writer]. Where objects are never cut, nothing is noted.
func (f files) Note(ctx context.Context, name string, content []byte) error {
	if !f.s.habits.files {
		return nil
	}
	return f.s.bucket.put(ctx, name, content)
}

// Plant implements [filing.Writer]. A bucket has no directories.
func (f files) Plant(context.Context, filing.Tree) (bool, error) { return false, nil }

// Reuse implements [filing.Writer].
func (f files) Reuse(context.Context, filing.Revision) error { return nil }

// Name implements [filing.Writer].
func (f files) Name() error { return nil }

// WriteContent implements [filing.Writer]. It writes the content even if another
// repository has it: these are the same bytes, and asking would be as much work.
func (f files) WriteContent(ctx context.Context, at layout.Repository, name string, m *pullthrough.Manifest) error {
	if err := f.s.makeRepo(ctx, at); err != nil {
		return err
	}
	return f.s.bucket.put(ctx, name, m.Content)
}

// Remove implements [filing.Writer].
func (f files) Remove(ctx context.Context, name string) error { return f.s.bucket.remove(ctx, name) }

// Sync implements [filing.Writer]. The drivers sync what they write.
func (f files) Sync() error { return nil }
