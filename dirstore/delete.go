package dirstore

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"path"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/filelock"
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
		err = s.removing(func(r remover) error { return s.manifests.DeleteTag(ctx, r, at, repo, ref, "") })
		return during(err, "delete tag", repo, ref)
	}
	tags := names{}
	err = s.tags(ctx, at, tags.add)
	if err == nil {
		err = s.removing(func(r remover) error {
			return s.manifests.DeleteManifest(ctx, r, at, repo, digest.Digest(ref), tags.all)
		})
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
	had := false
	err = s.removing(func(r remover) (err error) {
		had, err = filing.Delete(ctx, r, at, func(dir string) ([]string, error) {
			all := names{}
			err := s.disk.list(dir, func(e fs.DirEntry) error { return all.add(e.Name()) })
			return all.all, err
		})
		return err
	})
	if err == nil && !had && !found {
		err = fs.ErrNotExist
	}
	for _, tree := range []layout.Tree{layout.Registry, layout.Own} {
		_ = s.disk.remove(layout.Repository{Tree: tree, Name: at.Name}.Root()) // it is empty, or others are below it
	}
	return during(err, "delete repository", repo, "")
}

// removing calls f, which removes names, while no process makes any, but where the file
// system has no locks. What f has moved aside is removed afterwards. A put has its tag's
// lock while it has that of the directory, so f takes a tag's lock as the second one, too.
func (s *Store) removing(f func(remover) error) error {
	r := remover{reader{s}, new([]string)}
	unlock, err := s.lockBoth(filelock.Alone)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	locked := err == nil
	err = f(r)
	s.safe.Clear() // it knows of what has gone
	if locked {
		unlock()
	}
	for _, aside := range *r.gone {
		err = errors.Join(err, s.disk.removeTree(aside))
	}
	return err
}

// remover is the disk as a [filing.Remover].
type remover struct {
	reader
	gone *[]string // what was moved aside
}

// RemoveDir implements [filing.Remover].
func (r remover) RemoveDir(_ context.Context, dir string) error {
	aside := path.Join(r.s.staging, rand.Text())
	err := r.s.disk.aside(dir, aside)
	if err == nil {
		*r.gone = append(*r.gone, aside)
	}
	return ignoreMissing(err)
}

// Remove implements [filing.Remover].
func (r remover) Remove(_ context.Context, name string) error {
	return ignoreMissing(r.s.disk.remove(name))
}
