package diststore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

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
	reads := s.reads
	if p.size <= verify.Small {
		reads = s.small
	}
	err := reads.Do(ctx, p.digest, s.read(at, d, p))
	if err == nil && !s.sizes.WasRead(d, p.size) {
		err = fmt.Errorf("content of %s was replaced: %w", p.digest, fs.ErrNotExist)
	}
	return err
}

// read is a full read.
func (s *Store) read(at layout.Repository, d digest.Digest, p place) func(context.Context) error {
	return func(ctx context.Context) error {
		var err error
		if p.size, err = s.bucket.size(ctx, p.data); err == nil {
			err = s.hash(ctx, p)
		}
		if errors.Is(err, layout.ErrDamaged) { // the next put replaces it: another proxy may just be doing so
			s.sizes.NoteDamage(d, p.size)
		}
		if err != nil {
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
