package diststore

import (
	"context"
	"errors"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// readLink returns the digest in the link in dir; see [layout.ParseLink]. What is
// no link is left for the next put to replace: another proxy may just be doing so.
func (s *Store) readLink(ctx context.Context, dir string, d digest.Digest) (digest.Digest, error) {
	content, err := s.bucket.read(ctx, layout.Link(dir), layout.MaxLink)
	if err != nil {
		return "", err
	}
	return layout.ParseLink(content, d)
}

func (s *Store) writeLink(ctx context.Context, dir string, d digest.Digest) error {
	return s.bucket.put(ctx, layout.Link(dir), []byte(d))
}

// readSidecar returns the sidecar of d in dir. None that can be used is no
// error: then it was not us who stored d there.
func (s *Store) readSidecar(ctx context.Context, dir string, d digest.Digest) (side layout.Sidecar, ok bool, err error) {
	content, err := s.bucket.read(ctx, layout.SidecarFile(dir, d), layout.MaxSidecar)
	if errors.Is(err, fs.ErrNotExist) {
		return layout.Sidecar{}, false, nil
	}
	if err != nil {
		return layout.Sidecar{}, false, err
	}
	side, ok = layout.ParseSidecar(content, d)
	return side, ok, nil
}

func (s *Store) writeSidecar(ctx context.Context, dir string, side layout.Sidecar) error {
	content, err := side.Encode()
	if err != nil {
		return err
	}
	return s.bucket.put(ctx, layout.SidecarFile(dir, side.Digest), content)
}
