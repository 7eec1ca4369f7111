package dirstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

const (
	// maxNames is how many names a list may have.
	maxNames = 1_000_000
	// maxPathName is longer than a repository's path name can be. There is no
	// looking for repositories below longer ones.
	maxPathName = 512
	// plainNames is a prefix of no repository.
	plainNames = "_plain"
)

// RepoExists implements [pullthrough.RepoCreator]. A repository is there since
// something was put into it, also when that was evicted.
func (s *Store) RepoExists(ctx context.Context, repo pullthrough.Repo) (bool, error) {
	at, err := s.owner().Locate(ctx, repo)
	if err != nil {
		return false, err
	}
	exists, err := s.exists(at)
	return exists, during(err, "look for repository", repo, "")
}

func (s *Store) exists(at layout.Repository) (bool, error) {
	if _, created := s.created.Get(at); created {
		return true, nil
	}
	info, err := s.disk.stat(at.Layers())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && info.IsDir(), err
}

// maxCreated is how many repositories are remembered that were created, and in which
// nothing is yet.
const maxCreated = 4096

// CreateRepo implements [pullthrough.RepoCreator]. The rule and the request make
// no difference. The repository is there from now on for this Store, of the last 4,096, and
// for other processes and for [Store.Repos] when something is put into it: nothing is
// done to the disk.
func (s *Store) CreateRepo(ctx context.Context, repo pullthrough.Repo, _ pullthrough.Rule, _ pullthrough.Request) error {
	at, err := s.owner().Locate(ctx, repo)
	if err != nil {
		return err
	}
	at.Name = strings.Clone(at.Name) // it may be a part of a request
	s.created.Put(at, struct{}{})
	return nil
}

// HasManifest reports whether the manifest is stored in the repository. Unlike Manifest
// it does not count as a use, and reads no content.
func (s *Store) HasManifest(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (bool, error) {
	at, err := s.owner().Locate(ctx, repo, string(d))
	if err != nil {
		return false, err
	}
	for _, home := range at.Homes() {
		target, err := s.readLink(home.Revision(d), d)
		if err == nil {
			_, err = s.disk.stat(home.Tree.Data(target))
		}
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err == nil, during(err, "look for manifest", repo, string(d))
		}
	}
	return false, nil
}

// Tags implements [pullthrough.TagLister]. More than a million tags are an error
// that Is [pullthrough.ErrTooLarge].
func (s *Store) Tags(ctx context.Context, repo pullthrough.Repo) ([]string, error) {
	at, err := s.owner().Locate(ctx, repo)
	if err != nil {
		return nil, err
	}
	tags := names{}
	err = s.tags(ctx, at, tags.add)
	if err == nil && len(tags.all) == 0 {
		var exists bool
		if exists, err = s.exists(at); err == nil && !exists {
			err = fs.ErrNotExist
		}
	}
	if err != nil {
		return nil, during(err, "list tags", repo, "")
	}
	return tags.all, nil
}

func (s *Store) tags(ctx context.Context, at layout.Repository, f func(tag string) error) error {
	return s.disk.list(at.Tags(), func(e fs.DirEntry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !e.IsDir() || !ocipath.ValidTag(e.Name()) {
			return nil
		}
		return f(e.Name())
	})
}

// Repos implements [pullthrough.RepoLister]. It reads the directories of all
// repositories of the account in the Region. More than a million are an error that
// Is [pullthrough.ErrTooLarge].
func (s *Store) Repos(ctx context.Context, account, region string) ([]string, error) {
	prefixes, err := s.owner().Prefixes(account, region)
	if err != nil {
		return nil, err
	}
	found := names{}
	for _, prefix := range prefixes {
		prefix = cmp.Or(prefix, plainNames)
		for _, tree := range []layout.Tree{layout.Registry, layout.Own} {
			err := s.repositories(ctx, tree, prefix, func(name string) error {
				repo, ok := s.owner().Repo(name)
				if !ok || repo.Account != account || repo.Region != region || layout.NewRepository(name).Tree != tree {
					return nil
				}
				return found.add(repo.Name)
			})
			if err != nil {
				return nil, fmt.Errorf("dirstore: list repositories of %s in %s: %w", account, region, err)
			}
		}
	}
	return found.all, nil
}

// names are names, not too many.
type names struct{ all []string }

func (n *names) add(name string) error {
	if len(n.all) == maxNames {
		return fmt.Errorf("more than %d names: %w", maxNames, pullthrough.ErrTooLarge)
	}
	n.all = append(n.all, name)
	return nil
}

// repositories calls f with the path name of each repository in the tree that
// begins with the components of prefix; "" is for all of them, and plainNames for
// those that begin with no account.
func (s *Store) repositories(ctx context.Context, tree layout.Tree, prefix string, f func(pathName string) error) error {
	plain := prefix == plainNames
	if plain {
		prefix = ""
	}
	pending := []string{prefix}
	for len(pending) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := pending[len(pending)-1]
		pending = pending[:len(pending)-1]
		isRepository := false
		err := s.disk.list(path.Join(tree.Repositories(), name), func(e fs.DirEntry) error {
			switch below := path.Join(name, e.Name()); {
			case !e.IsDir(), plain && name == "" && layout.IsAccount(e.Name()):
			case strings.HasPrefix(e.Name(), "_"):
				isRepository = true
			case len(below) <= maxPathName:
				pending = append(pending, below)
			}
			return nil
		})
		if err == nil && isRepository && name != "" {
			err = f(name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
