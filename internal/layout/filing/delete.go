package filing

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"path"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// Remover removes names. What is not there is no error.
type Remover interface {
	Reader
	// RemoveDir removes a directory with all that is in it: at once, as far as readers see.
	RemoveDir(ctx context.Context, dir string) error
	// Remove removes a file.
	Remove(ctx context.Context, name string) error
}

// lockTag has this process change the tag by one call at a time.
func (f *Manifests) lockTag(at layout.Repository, tag string) (unlock func()) {
	lock := &f.tags[maphash.String(f.seed, at.Tag(tag))%uint64(len(f.tags))]
	lock.Lock()
	return lock.Unlock
}

// DeleteTag removes the tag, if d is "" or what it names. The error Is [fs.ErrNotExist] if
// it is not there.
func (f *Manifests) DeleteTag(ctx context.Context, r Remover, at layout.Repository, repo pullthrough.Repo, tag string, d digest.Digest) error {
	defer f.lockTag(at, tag)()
	defer f.memory.forget(repo, tag)
	named, _, err := f.ReadTag(ctx, r, at, tag)
	if err != nil || d != "" && named != d {
		return err
	}
	return r.RemoveDir(ctx, path.Dir(at.Tag(tag)))
}

// DeleteManifest removes the manifest d from the repository, after those of its tags that
// name it: what is left leads somewhere. Content stays, for it may be others', too. The
// error Is [fs.ErrNotExist] if the manifest is not there.
func (f *Manifests) DeleteManifest(ctx context.Context, r Remover, at layout.Repository, repo pullthrough.Repo, d digest.Digest, tags []string) error {
	defer f.memory.forget(repo, string(d))
	for _, tag := range tags {
		if err := f.DeleteTag(ctx, r, at, repo, tag, d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	found := false
	for _, home := range at.Homes() {
		_, err := ReadLink(ctx, r, home.Revision(d), d)
		if err == nil {
			found = true
			err = r.RemoveDir(ctx, home.Revision(d))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if !found {
		return fmt.Errorf("manifest %s: %w", d, fs.ErrNotExist)
	}
	return r.Remove(ctx, at.Referrers(d))
}

// ForgetAll is called after a repository was removed.
func (f *Manifests) ForgetAll() { f.memory.forgetAll() }

// Delete removes what is in the repository at: its directories, but not those of
// repositories below it. names lists a directory.
func Delete(ctx context.Context, r Remover, at layout.Repository, names func(dir string) ([]string, error)) (found bool, err error) {
	for _, tree := range []layout.Tree{layout.Registry, layout.Own} {
		place := layout.Repository{Tree: tree, Name: at.Name}
		all, err := names(place.Root())
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return found, err
		}
		for _, name := range all {
			if name[0] != '_' {
				continue
			}
			found = true
			if err := r.RemoveDir(ctx, path.Join(place.Root(), name)); err != nil {
				return found, err
			}
		}
	}
	return found, nil
}
