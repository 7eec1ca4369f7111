package dirstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
)

// Blob implements [pullthrough.Store]. The Body is an [*os.File], unless nobody knows
// yet whether the content is right: then reads of its last 64 KiB wait until it has been
// read in full, or until ctx ends. Content of up to 1 MiB is read before Blob returns.
func (s *Store) Blob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	at, err := s.owner().LocateDigest(ctx, repo, d)
	if err != nil {
		return nil, err
	}
	c, err := s.openContent(at, d)
	if err != nil {
		return nil, during(err, "read blob", repo, d.String())
	}
	body, err := s.check(ctx, c)
	if err != nil {
		return nil, during(errors.Join(err, c.file.Close()), "read blob", repo, d.String())
	}
	if time.Since(c.info.ModTime()).Abs() >= filing.MarkEvery {
		_ = s.disk.touch(c.name) // what has gone since can still be read
	}
	desc := ocispec.Descriptor{MediaType: layout.BlobType, Digest: d, Size: c.info.Size()}
	return &pullthrough.Blob{Descriptor: desc, Body: body}, nil
}

// opened is the open file of a blob.
type opened struct {
	digest digest.Digest // that was asked for
	link   string        // the directory of its link
	target digest.Digest // what the link says: the content's own digest
	name   string
	file   *os.File
	info   fs.FileInfo
}

// openContent opens the link first: without a link the content is not the repository's,
// even if other repositories have it.
func (s *Store) openContent(at layout.Repository, d digest.Digest) (c opened, err error) {
	c = opened{digest: d, link: at.Layer(d)}
	if c.target, err = s.readLink(c.link, d); err != nil {
		return c, err
	}
	c.name = layout.Registry.Data(c.target)
	if c.file, err = s.disk.open(c.name); err != nil {
		return c, err
	}
	if c.info, err = c.file.Stat(); err != nil {
		err = errors.Join(err, c.file.Close())
	}
	return c, err
}

// PutBlob implements [pullthrough.Store]. It does not read r if the blob is here.
func (s *Store) PutBlob(ctx context.Context, repo pullthrough.Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	at, err := s.owner().LocateDigest(ctx, repo, desc.Digest)
	if err != nil {
		return err
	}
	return during(s.putBlob(ctx, at, desc, r), "store blob", repo, desc.Digest.String())
}

func (s *Store) putBlob(ctx context.Context, at layout.Repository, desc ocispec.Descriptor, r io.Reader) error {
	here, _, err := s.have(ctx, at, desc)
	if err != nil {
		return err
	}
	if here {
		if err = s.attach(ctx, at, desc, ""); !errors.Is(err, errSwept) {
			return err
		}
	}
	temp, err := s.spillContent(ctx, r, desc.Size)
	if err != nil {
		return err
	}
	return s.attach(ctx, at, desc, temp)
}

// errSwept says that content which was here a moment ago has been evicted.
var errSwept = errors.New("evicted meanwhile")

// attach makes the blob the repository's. temp is a finished file with the
// content, "" if it should be here; it is gone afterwards.
func (s *Store) attach(ctx context.Context, at layout.Repository, desc ocispec.Descriptor, temp string) error {
	fresh, named := false, false // the content was not here; it has got its name
	err := s.put(ctx, func(w *writer) error {
		here, linked, err := s.have(ctx, at, desc)
		if err != nil {
			return err
		}
		fresh = fresh || !here
		err = s.attachLocked(ctx, w, at, desc, temp, here, linked && !fresh)
		named = w.added > 0
		return err
	})
	if temp != "" && !named {
		s.dropContent(temp)
	}
	return err
}

func (s *Store) attachLocked(ctx context.Context, w *writer, at layout.Repository, desc ocispec.Descriptor, temp string, here, linked bool) (err error) {
	name := layout.Registry.Data(desc.Digest)
	switch {
	case !here && temp == "":
		return errSwept
	case !here:
		err = w.adopt(temp, name, desc.Size)
	case linked:
		if err = s.disk.touch(name); errors.Is(err, fs.ErrNotExist) { // a sweep that has seen it unused lets it be
			err = nil // the link is an alias
		}
	default:
		err = w.reuseContent(name)
	}
	if err != nil || here && linked {
		return err
	}
	if err := w.makeRepo(at); err != nil {
		return err
	}
	if err := filing.WriteBlobLink(ctx, w, at, desc); err != nil {
		return err
	}
	if err := w.Sync(); err != nil {
		return err
	}
	s.sizes.Note(desc.Digest, desc.Size)
	return nil
}

// have reports whether the content is here, in full, and whether the repository
// has a link to it.
func (s *Store) have(ctx context.Context, at layout.Repository, desc ocispec.Descriptor) (here, linked bool, err error) {
	return filing.HaveBlob(ctx, reader{s}, at, desc, func(ctx context.Context, name string, _ bool) (int64, error) { return s.size(ctx, name) })
}

// size is the size of the file. What is no file is a miss.
func (s *Store) size(_ context.Context, name string) (int64, error) {
	info, err := s.disk.stat(name)
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is no file: %w", name, layout.ErrDamaged)
	}
	return info.Size(), nil
}
