// Package filing reads and writes the files of package layout in the right order,
// for any store that has files or objects: a store brings a [Reader] and a
// [Writer], and what it finds in a link, what is a miss and what is remembered is
// decided here.
//
// A reader of a link finds all that the link leads to. So a put of a manifest
// writes
//
//  1. the content
//  2. the sidecar of the revision, then its link, then a sync
//  3. the sidecar of the tag, the note of its history, then a sync
//  4. the link of the tag, then a sync
//
// and stops at the first failure. Whatever has been written by then is whole, it
// leads somewhere or nobody sees it, and the next put of the manifest goes on from
// there.
package filing

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// Reader reads the files of a store. For a file that is not there the error Is
// [io/fs.ErrNotExist]; for one that cannot be used it Is [layout.ErrDamaged].
type Reader interface {
	// Read returns the content of a small file, which has limit bytes at most.
	Read(ctx context.Context, name string, limit int64) ([]byte, error)
	// Content returns the content of the manifest d, after a check of its digest. It
	// also returns when the content was last used, if the store notes that.
	Content(ctx context.Context, name string, d digest.Digest) (content []byte, used time.Time, err error)
	// Touch notes that content is in use, if the store notes that. The error Is
	// [io/fs.ErrNotExist] if the content is gone.
	Touch(ctx context.Context, name string) error
	// Lists reports whether the directory has an entry of this very name.
	Lists(ctx context.Context, dir, name string) (bool, error)
	// Discard is told of a link that leads nowhere. The store may remove the link. A
	// link whose content good accepts must stay: somebody has just replaced the old
	// one. A nil good accepts nothing.
	Discard(name string, good func(content []byte) bool)
}

// Writer writes the files of one put.
type Writer interface {
	Reader
	// Write makes name a file with this content, in one step.
	Write(ctx context.Context, name string, content []byte) error
	// Note is Write for what may be lost: after a power failure the file may be missing,
	// or not whole.
	Note(ctx context.Context, name string, content []byte) error
	// WriteContent stores the content of m as name. The manifest is new in the
	// repository at, and the repository may be new, too.
	WriteContent(ctx context.Context, at layout.Repository, name string, m *pullthrough.Manifest) error
	// Remove removes a file.
	Remove(ctx context.Context, name string) error
	// Sync returns when a power failure cannot undo what was written so far.
	Sync() error
}

// WithContext returns a reader that reads r until ctx ends.
func WithContext(ctx context.Context, r io.Reader) io.Reader { return contextReader{ctx, r} }

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements [io.Reader].
func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
