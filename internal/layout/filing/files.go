// Package filing reads and writes the files of package layout in the right order,
// for any store that has files or objects: a store brings a [Reader] and a
// [Writer], and what it finds in a link, what is a miss and what is remembered is
// decided here.
//
// A reader of a link finds all that the link leads to. So a put of a manifest
// writes
//
//  1. the content
//  2. the sidecar of the revision, then its link
//  3. the sidecar of the tag, then its link, then the note of what it was before
//
// each when what stands before it cannot be lost any more, and stops at the first
// failure. Whatever has been written by then is whole, it leads somewhere or nobody sees it, and
// the next put of the manifest goes on from there. A store that can name a whole directory
// in one step does that with a revision and with a new tag.
package filing

import (
	"context"
	"io"
	"path"
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
	// one, or put again what it leads to.
	Discard(name string, good func(content []byte) bool)
}

// File is a file of a [Tree].
type File struct {
	Name    string // below the directory
	Content []byte
	Note    bool // it may be lost: after a power failure it may be missing, or not whole
}

// Tree is a directory that is made in one step. The link is the last of its files.
type Tree struct {
	Dir   string
	Files []File
}

// Writer writes the files of one put.
type Writer interface {
	Reader
	// Write makes name a file with this content, in one step.
	Write(ctx context.Context, name string, content []byte) error
	// Note is Write for what may be lost: after a power failure the file may be missing,
	// or not whole.
	Note(ctx context.Context, name string, content []byte) error
	// Plant reports whether the store makes the directory in one step. Nobody sees it before
	// the next Name or Sync, and then not before all that was written earlier cannot be
	// lost. Otherwise the files are to be written one by one.
	Plant(ctx context.Context, tree Tree) (bool, error)
	// WriteContent stores the content of m as name. The manifest is new in the
	// repository at, and the repository may be new, too.
	WriteContent(ctx context.Context, at layout.Repository, name string, m *pullthrough.Manifest) error
	// Reuse is called in place of the writes of a revision that is there already. It notes
	// that its content is in use, and the next Name or Sync sees to it that the revision cannot
	// be lost. The error Is [io/fs.ErrNotExist] if the content is gone.
	Reuse(ctx context.Context, v Revision) error
	// Remove removes a file.
	Remove(ctx context.Context, name string) error
	// Name returns when what was planted is there.
	Name() error
	// Sync is Name, and returns when a power failure cannot undo what was written so far.
	Sync() error
}

// plant makes a directory, in one step or file by file.
func plant(ctx context.Context, w Writer, tree Tree) error {
	if whole, err := w.Plant(ctx, tree); whole || err != nil {
		return err
	}
	for i, f := range tree.Files {
		put := w.Write
		if f.Note {
			put = w.Note
		}
		if i > 0 && i == len(tree.Files)-1 { // whoever finds the link finds the others, too
			if err := w.Sync(); err != nil {
				return err
			}
		}
		if err := put(ctx, path.Join(tree.Dir, f.Name), f.Content); err != nil {
			return err
		}
	}
	return nil
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
