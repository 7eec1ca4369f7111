package diststore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
	"github.com/ecr-pullthrough/pullthrough/internal/verify"
)

// doubt has the object read in full. It waits for a small one. The error is a miss if the
// object is not the blob's, or does not look like it.
func (s *Store) doubt(ctx context.Context, at layout.Repository, d digest.Digest, p place, verdict filing.Verdict) error {
	if p.size <= verify.Small && verdict != filing.Damaged {
		return s.verify(ctx, at, d, p)
	}
	if verdict != filing.Damaged {
		s.reads.Start(p.digest, s.read(at, d, p))
	}
	if verdict != filing.Doubtful {
		return fmt.Errorf("content of %s, %d bytes: %w", p.digest, p.size, layout.ErrDamaged)
	}
	return nil
}

// verify waits until the object has been read in full, and is nil if it has its digest
// and the size of p.
func (s *Store) verify(ctx context.Context, at layout.Repository, d digest.Digest, p place) error {
	if s.sizes.WasRead(d, p.size) {
		return nil
	}
	err := s.reads.Do(ctx, p.digest, s.read(at, d, p))
	if err == nil && !s.sizes.WasRead(d, p.size) {
		err = fmt.Errorf("content of %s was replaced: %w", p.digest, fs.ErrNotExist)
	}
	return err
}

// read is a full read.
func (s *Store) read(at layout.Repository, d digest.Digest, p place) func(context.Context) error {
	return func(ctx context.Context) error {
		info, err := s.bucket.stat(ctx, p.data)
		if err != nil {
			return err
		}
		p.size = info.Size()
		if err := s.hash(ctx, p); errors.Is(err, layout.ErrDamaged) {
			s.discard(ctx, d, p, info)
			return err
		} else if err != nil {
			return err
		}
		s.sizes.NoteRead(d, p.size)
		if noted, err := filing.ReadSize(ctx, files{s}, at.Layer(d)); err != nil || noted != p.size {
			_ = files{s}.Note(ctx, layout.BlobSize(at.Layer(d)), layout.EncodeBlobSize(p.size)) // it is read again without
		}
		return nil
	}
}

// hash reads the object. The error Is [layout.ErrDamaged] if it does not have its digest.
func (s *Store) hash(ctx context.Context, p place) error {
	body := newBody(ctx, s.bucket, p, func() {})
	defer func() { _ = body.Close() }()
	verifier := p.digest.Verifier()
	if _, err := io.CopyBuffer(verifier, filing.WithContext(ctx, body), make([]byte, copyBuffer)); err != nil {
		return err
	}
	if !verifier.Verified() {
		return fmt.Errorf("content of %s: %w", p.digest, layout.ErrDamaged)
	}
	return nil
}

// discard removes an object that is not what its name says, so that the next put stores
// it again. Another proxy may have done so just now: an object that has changed since info
// was had stays. One that cannot be removed is remembered.
func (s *Store) discard(ctx context.Context, d digest.Digest, p place, info storagedriver.FileInfo) {
	now, err := s.bucket.stat(ctx, p.data)
	if err != nil || now.Size() != info.Size() || !now.ModTime().Equal(info.ModTime()) {
		return
	}
	if s.bucket.remove(ctx, p.data) != nil {
		s.sizes.NoteDamage(d, p.size)
	}
}
