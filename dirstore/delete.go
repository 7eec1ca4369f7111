package dirstore

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"path"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// DeleteImage implements [pullthrough.ImageDeleter]. It removes names and leaves content:
// that goes with a [Store.Sweep], when there is too much of it, or with the registry's
// garbage collection. Another process may serve what it has read a second ago. After a
// power failure a tag may be there again.
func (s *Store) DeleteImage(ctx context.Context, repo pullthrough.Repo, ref string) error {
	at, err := s.owner().Locate(ctx, repo, ref)
	if err != nil {
		return err
	}
	if !ocipath.IsDigest(ref) {
		err = s.manifests.DeleteTag(ctx, remover{reader{s}}, at, repo, ref, "")
		return during(err, "delete tag", repo, ref)
	}
	tags := names{}
	err = s.tags(ctx, at, tags.add)
	if err == nil {
		err = s.manifests.DeleteManifest(ctx, remover{reader{s}}, at, repo, digest.Digest(ref), tags.all)
	}
	return during(err, "delete manifest", repo, ref)
}

// DeleteRepo implements [pullthrough.ImageDeleter]. Content stays as it does with
// DeleteImage.
func (s *Store) DeleteRepo(ctx context.Context, repo pullthrough.Repo) error {
	at, err := s.owner().Locate(ctx, repo)
	if err != nil {
		return err
	}
	defer s.manifests.ForgetAll()
	_, found := s.created.Get(at)
	s.created.RemoveIf(at, func(struct{}) bool { return true })
	had, err := filing.Delete(ctx, remover{reader{s}}, at, func(dir string) ([]string, error) {
		all := names{}
		err := s.disk.list(dir, func(e fs.DirEntry) error { return all.add(e.Name()) })
		return all.all, err
	})
	if err == nil && !had && !found {
		err = fs.ErrNotExist
	}
	for _, tree := range []layout.Tree{layout.Registry, layout.Own} {
		_ = s.disk.remove(layout.Repository{Tree: tree, Name: at.Name}.Root()) // it is empty, or others are below it
	}
	return during(err, "delete repository", repo, "")
}

// remover is the disk as a [filing.Remover].
type remover struct{ reader }

// RemoveDir implements [filing.Remover]. No process makes names meanwhile, but where the
// file system has no locks.
func (r remover) RemoveDir(_ context.Context, dir string) error {
	aside := path.Join(r.s.staging, rand.Text())
	move := func() error { return r.s.disk.aside(dir, aside) }
	err := r.s.alone(move)
	if errors.Is(err, errors.ErrUnsupported) {
		err = move()
	}
	r.s.safe.Clear() // it knows of what has gone
	if err == nil {
		err = r.s.disk.removeTree(aside)
	}
	return ignoreMissing(err)
}

// Remove implements [filing.Remover].
func (r remover) Remove(_ context.Context, name string) error {
	return ignoreMissing(r.s.disk.remove(name))
}
