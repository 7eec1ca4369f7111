package diststore

import (
	"context"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
)

// Manifest implements [pullthrough.Store]. Where another proxy has moved a tag,
// that is seen after a second; that somebody has removed a manifest, after a
// minute.
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
	m, err := s.manifests.Read(ctx, files{s}, at, key)
	return m, during(err, "read manifest", repo, ref)
}

// PutManifest implements [pullthrough.Store]. The tag moves when all else is in
// the bucket.
func (s *Store) PutManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	at, err := s.owner().LocateManifest(ctx, repo, m)
	if err != nil {
		return err
	}
	err = s.manifests.Write(ctx, files{s}, at, repo, m)
	return during(err, "store manifest", repo, m.Descriptor.Digest.String())
}
