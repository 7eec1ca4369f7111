package diststore

import (
	"context"
	"errors"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// DeleteImage implements [pullthrough.ImageDeleter]. It removes names and leaves content,
// which the registry's garbage collection removes. Other proxies see that a tag is gone
// after a second, and that a manifest is, after a minute.
func (s *Store) DeleteImage(ctx context.Context, repo pullthrough.Repo, ref string) error {
	at, err := s.owner().Locate(ctx, repo, ref)
	if err != nil {
		return err
	}
	if !ocipath.IsDigest(ref) {
		err = s.manifests.DeleteTag(ctx, remover{files{s}}, at, repo, ref, "")
		return during(err, "delete tag", repo, ref)
	}
	tags, err := s.bucket.list(ctx, at.Tags())
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = s.manifests.DeleteManifest(ctx, remover{files{s}}, at, repo, digest.Digest(ref), tags)
	}
	return during(err, "delete manifest", repo, ref)
}

// DeleteRepo implements [pullthrough.ImageDeleter]. Content stays as it does with
// DeleteImage. Other proxies see that the repository is gone after a minute.
func (s *Store) DeleteRepo(ctx context.Context, repo pullthrough.Repo) error {
	at, err := s.owner().Locate(ctx, repo)
	if err != nil {
		return err
	}
	found, err := filing.Delete(ctx, remover{files{s}}, at, func(dir string) ([]string, error) { return s.bucket.list(ctx, dir) })
	s.manifests.ForgetAll()
	s.places.clear()
	if err == nil && !found {
		err = fs.ErrNotExist
	}
	if err == nil && s.habits.emptyDirs {
		s.removeEmpty(ctx, at)
	}
	return during(err, "delete repository", repo, "")
}

// removeEmpty removes the repository's directories, unless others are below them.
func (s *Store) removeEmpty(ctx context.Context, at layout.Repository) {
	for _, tree := range []layout.Tree{layout.Registry, layout.Own} {
		root := layout.Repository{Tree: tree, Name: at.Name}.Root()
		if left, err := s.bucket.list(ctx, root); err == nil && len(left) == 0 {
			_ = s.bucket.remove(ctx, root) // an empty directory shows to nobody
		}
	}
}

// remover is the bucket as a [filing.Remover].
type remover struct{ files }

// RemoveDir implements [filing.Remover]. Drivers remove what is below a path with it.
func (r remover) RemoveDir(ctx context.Context, dir string) error { return r.Remove(ctx, dir) }

// Remove implements [filing.Remover].
func (r remover) Remove(ctx context.Context, name string) error {
	err := r.s.bucket.remove(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
