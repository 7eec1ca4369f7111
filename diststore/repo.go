package diststore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

// RepoExists implements [pullthrough.RepoCreator]. A repository is there since
// something was put into it.
func (s *Store) RepoExists(ctx context.Context, repo pullthrough.Repo) (bool, error) {
	at, err := s.owner().Locate(ctx, repo)
	if err != nil {
		return false, err
	}
	err = s.exists(ctx, at)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, during(err, "look for repository", repo, "")
}

// CreateRepo implements [pullthrough.RepoCreator]. The rule and the request make
// no difference.
func (s *Store) CreateRepo(ctx context.Context, repo pullthrough.Repo, _ pullthrough.Rule, _ pullthrough.Request) error {
	at, err := s.owner().Locate(ctx, repo)
	if err != nil {
		return err
	}
	return during(s.makeRepo(ctx, at), "make repository", repo, "")
}

// exists is nil if the repository is there.
func (s *Store) exists(ctx context.Context, at layout.Repository) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.places.exists(at) {
		return nil
	}
	for _, dir := range []string{at.Layers(), path.Join(at.Root(), layout.ManifestsDir)} {
		err := s.bucket.exists(ctx, dir)
		if err == nil && dir == at.Layers() {
			s.places.keepRepo(at)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("repository %s: %w", at.Name, fs.ErrNotExist)
}

// makeRepo makes the directory without which the registry's garbage collection
// ends with an error.
func (s *Store) makeRepo(ctx context.Context, at layout.Repository) error {
	if s.places.exists(at) {
		return nil
	}
	err := error(fs.ErrNotExist)
	if s.habits.emptyDirs { // elsewhere to ask would be as much work as to note it again
		err = s.bucket.exists(ctx, at.Layers())
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = s.makeLayers(ctx, at)
	}
	if err == nil {
		s.places.keepRepo(at)
	}
	return err
}

func (s *Store) makeLayers(ctx context.Context, at layout.Repository) error {
	name := at.LayersNote()
	if err := s.bucket.put(ctx, name, nil); err != nil || !s.habits.emptyDirs {
		return err
	}
	err := s.bucket.remove(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // somebody else made the directory, too
	}
	return err
}
