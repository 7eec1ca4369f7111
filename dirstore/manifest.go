package dirstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
)

// Manifest implements [pullthrough.Store]. What another process has changed is
// seen after a second at the latest.
func (s *Store) Manifest(ctx context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	key := filing.Object{Repo: repo, Ref: ref}
	if m := s.manifests.Fresh(key); m != nil {
		return m, nil
	}
	at, err := s.owner().Locate(ctx, repo, ref)
	if err != nil {
		return nil, err
	}
	m, err := s.manifests.Read(ctx, reader{s}, at, key)
	return m, during(err, "read manifest", repo, ref)
}

// readManifest returns content that has the digest d. Other content is removed.
func (s *Store) readManifest(name string, d digest.Digest) (content []byte, used time.Time, err error) {
	f, err := s.disk.open(name)
	if err != nil {
		return nil, used, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, used, err
	}
	content, err = readChecked(f, info, d)
	if errors.Is(err, layout.ErrDamaged) {
		s.discard(name, info, err)
	}
	return content, info.ModTime(), err
}

func readChecked(f io.Reader, info fs.FileInfo, d digest.Digest) ([]byte, error) {
	if !info.Mode().IsRegular() || info.Size() > layout.MaxManifest {
		return nil, fmt.Errorf("content of %s: %w", d, layout.ErrDamaged)
	}
	content := make([]byte, info.Size())
	if _, err := io.ReadFull(f, content); err != nil {
		return nil, err
	}
	return content, layout.CheckContent(content, d)
}

// PutManifest implements [pullthrough.Store]. The tag moves when all else is on
// the disk.
func (s *Store) PutManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	at, err := s.owner().LocateManifest(ctx, repo, m)
	if err != nil {
		return err
	}
	err = s.put(ctx, func(w *writer) error { return s.manifests.Write(ctx, w, at, repo, m) })
	return during(err, "store manifest", repo, m.Descriptor.Digest.String())
}

// touchReferences notes that all that a new manifest refers to, and that is here,
// is in use: a sweep that has not seen the manifest lets it be.
func (s *Store) touchReferences(at layout.Repository, content []byte) error {
	for _, d := range layout.References(content) {
		target := d
		if d.Algorithm() != digest.SHA256 { // it may be an alias
			if linked, err := s.readLink(at.Layer(d), d); err == nil {
				target = linked
			}
		}
		for _, tree := range []layout.Tree{layout.Registry, layout.Own} {
			if err := s.disk.touch(tree.Data(target)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
