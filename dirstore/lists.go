package dirstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"slices"
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

// Resolve returns the digest that a tag names. Unlike Manifest it does not count as a
// use, and reads no content.
func (s *Store) Resolve(ctx context.Context, repo pullthrough.Repo, tag string) (digest.Digest, error) {
	at, err := s.owner().Locate(ctx, repo, tag)
	if err != nil {
		return "", err
	}
	d, _, err := s.manifests.ReadTag(ctx, reader{s}, at, tag)
	return d, during(err, "look for tag", repo, tag)
}

// Manifests implements [pullthrough.ManifestLister]. It yields what the links of the
// directory lead to. More than a million manifests are an error that Is
// [pullthrough.ErrTooLarge].
func (s *Store) Manifests(ctx context.Context, repo pullthrough.Repo) iter.Seq2[digest.Digest, error] {
	return func(yield func(digest.Digest, error) bool) {
		at, err := s.owner().Locate(ctx, repo)
		var found names
		if err == nil {
			err = during(s.revisions(ctx, at, found.add), "list manifests", repo, "")
		}
		if err != nil {
			yield("", err)
			return
		}
		slices.Sort(found.all)
		for _, d := range slices.Compact(found.all) {
			if !yield(digest.Digest(d), nil) {
				return
			}
		}
	}
}

// revisions calls f with the digest of each manifest of the repository that can be read.
func (s *Store) revisions(ctx context.Context, at layout.Repository, f func(d string) error) error {
	seen := false
	for _, home := range at.Homes() {
		for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			err := s.disk.list(path.Join(home.Revisions(), algorithm.String()), func(e fs.DirEntry) error {
				seen = true
				d := digest.NewDigestFromEncoded(algorithm, e.Name())
				if err := ctx.Err(); err != nil || !e.IsDir() || !ocipath.ValidDigest(string(d)) {
					return err
				}
				has, err := s.hasRevision(home, d)
				if has {
					err = f(string(d))
				}
				return err
			})
			if ignoreMissing(err) != nil {
				return err
			}
		}
	}
	if seen {
		return nil
	}
	exists, err := s.exists(at)
	if err == nil && !exists {
		err = fs.ErrNotExist
	}
	return err
}

// hasRevision reports whether the link of the manifest leads to content.
func (s *Store) hasRevision(home layout.Repository, d digest.Digest) (bool, error) {
	target, err := s.readLink(home.Revision(d), d)
	if err == nil {
		_, err = s.disk.stat(home.Tree.Data(target))
	}
	return err == nil, ignoreMissing(err)
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
