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

// Blob implements [pullthrough.Store]. The Body is an [*os.File].
func (s *Store) Blob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	at, err := s.owner().LocateDigest(ctx, repo, d)
	if err != nil {
		return nil, err
	}
	f, size, err := s.openBlob(ctx, at, d)
	if err != nil {
		return nil, during(err, "read blob", repo, d.String())
	}
	desc := ocispec.Descriptor{MediaType: layout.BlobType, Digest: d, Size: size}
	return &pullthrough.Blob{Descriptor: desc, Body: f}, nil
}

// openBlob opens the link first: without a link the content is not the repository's,
// even if other repositories have it.
func (s *Store) openBlob(ctx context.Context, at layout.Repository, d digest.Digest) (*os.File, int64, error) {
	target, err := s.readLink(at.Layer(d), d)
	if err != nil {
		return nil, 0, err
	}
	name := layout.Registry.Data(target)
	f, err := s.disk.open(name)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil {
		err = s.check(ctx, name, info, target)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	if time.Since(info.ModTime()).Abs() >= filing.MarkEvery {
		_ = s.disk.touch(name) // what has gone since can still be read
	}
	return f, info.Size(), nil
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
	temp, err := s.spill(ctx, r, desc.Size)
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
	var added int64
	err := s.commit(ctx, func() (err error) {
		added, err = s.attachLocked(ctx, at, desc, temp)
		return err
	})
	if temp != "" && (err != nil || added == 0) {
		_ = s.disk.remove(temp) // it is swept if it stays
	}
	s.grow(added)
	return err
}

func (s *Store) attachLocked(ctx context.Context, at layout.Repository, desc ocispec.Descriptor, temp string) (added int64, err error) {
	here, linked, err := s.have(ctx, at, desc)
	if err != nil {
		return 0, err
	}
	w := &writer{reader: reader{s}}
	switch {
	case !here && temp == "":
		return 0, errSwept
	case !here:
		added, err = desc.Size, s.disk.publish(temp, layout.Registry.Data(desc.Digest), &w.changes)
	default:
		err = s.disk.touch(layout.Registry.Data(desc.Digest)) // a sweep that has seen it unused lets it be
		if linked && errors.Is(err, fs.ErrNotExist) {
			err = nil // the link is an alias
		}
	}
	if err != nil {
		return 0, err
	}
	if !linked {
		if err := filing.WriteLink(ctx, w, at.Layer(desc.Digest), desc.Digest); err != nil {
			return added, err
		}
	}
	return added, w.Sync()
}

// have reports whether the content is here, in full, and whether the repository
// has a link to it.
func (s *Store) have(ctx context.Context, at layout.Repository, desc ocispec.Descriptor) (here, linked bool, err error) {
	return filing.HaveBlob(ctx, reader{s}, at, desc, s.size)
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
