package diststore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

const (
	// maxListed is how much is listed at most.
	maxListed = 100_000
	// maxListers is how many directories are listed at a time.
	maxListers = 16
)

// listable refuses more than can be listed.
func listable(n int) error {
	if n > maxListed {
		return fmt.Errorf("more than %d to list: %w", maxListed, pullthrough.ErrTooLarge)
	}
	return nil
}

// Tags implements [pullthrough.TagLister]. More than 100,000 are an error that Is
// [pullthrough.ErrTooLarge].
func (s *Store) Tags(ctx context.Context, repo pullthrough.Repo) ([]string, error) {
	at, err := s.owner().Locate(ctx, repo)
	if err != nil {
		return nil, err
	}
	names, err := s.bucket.list(ctx, at.Tags())
	if errors.Is(err, fs.ErrNotExist) {
		names, err = nil, s.exists(ctx, at)
	}
	if err != nil {
		return nil, during(err, "list tags", repo, "")
	}
	return slices.DeleteFunc(names, func(name string) bool { return !ocipath.ValidTag(name) }), nil
}

// Resolve returns the digest that a tag names. It makes fewer requests than Manifest.
func (s *Store) Resolve(ctx context.Context, repo pullthrough.Repo, tag string) (digest.Digest, error) {
	at, err := s.owner().Locate(ctx, repo, tag)
	if err != nil {
		return "", err
	}
	d, _, err := s.manifests.ReadTag(ctx, files{s}, at, tag)
	return d, during(err, "look for tag", repo, tag)
}

// Manifests implements [pullthrough.ManifestLister]. It lists directories and reads
// nothing, so it yields links that lead nowhere, too. More than 100,000 manifests are an
// error that Is [pullthrough.ErrTooLarge].
func (s *Store) Manifests(ctx context.Context, repo pullthrough.Repo) iter.Seq2[digest.Digest, error] {
	return func(yield func(digest.Digest, error) bool) {
		at, err := s.owner().Locate(ctx, repo)
		var all []digest.Digest
		if err == nil {
			all, err = s.revisions(ctx, at)
		}
		if err != nil {
			yield("", during(err, "list manifests", repo, ""))
			return
		}
		slices.Sort(all)
		for _, d := range slices.Compact(all) {
			if !yield(d, nil) {
				return
			}
		}
	}
}

// revisions are the digests of the repository's manifests.
func (s *Store) revisions(ctx context.Context, at layout.Repository) (all []digest.Digest, err error) {
	for _, home := range at.Homes() {
		for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			names, err := s.bucket.list(ctx, path.Join(home.Revisions(), algorithm.String()))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			for _, name := range names {
				if d := digest.NewDigestFromEncoded(algorithm, name); ocipath.ValidDigest(string(d)) {
					all = append(all, d)
				}
			}
		}
	}
	if len(all) == 0 {
		return nil, s.exists(ctx, at)
	}
	return all, nil
}

// Repos implements [pullthrough.RepoLister]. It lists each directory above and of
// a repository, 16 at a time; more than 100,000 of them are an error that Is
// [pullthrough.ErrTooLarge].
func (s *Store) Repos(ctx context.Context, account, region string) ([]string, error) {
	prefixes, err := s.owner().Prefixes(account, region)
	if err != nil {
		return nil, err
	}
	found := make(map[string]struct{})
	for _, tree := range []layout.Tree{layout.Registry, layout.Own} {
		for _, prefix := range prefixes {
			paths, err := s.walk(ctx, tree, prefix)
			if err != nil {
				return nil, fmt.Errorf("diststore: list repositories: %w", err)
			}
			for _, p := range paths {
				if repo, ok := s.owner().Repo(p); ok && repo.Account == account && repo.Region == region {
					found[repo.Name] = struct{}{}
				}
			}
		}
	}
	names := make([]string, 0, len(found))
	for name := range found {
		names = append(names, name)
	}
	return names, nil
}

// walk returns the path names of the repositories below prefix. Where that is "",
// it leaves out what is other accounts'.
func (s *Store) walk(ctx context.Context, tree layout.Tree, prefix string) (repos []string, err error) {
	level := []string{prefix}
	for seen := 0; len(level) > 0; {
		if seen += len(level); listable(seen) != nil {
			return nil, listable(seen)
		}
		listed, err := s.listAll(ctx, tree, level)
		if err != nil {
			return nil, err
		}
		var next []string
		for i, names := range listed {
			if slices.Contains(names, layout.LayersDir) || slices.Contains(names, layout.ManifestsDir) {
				repos = append(repos, level[i])
			}
			for _, name := range names {
				if !strings.HasPrefix(name, "_") && (level[i] != "" || !layout.IsAccount(name)) {
					next = append(next, path.Join(level[i], name))
				}
			}
		}
		level = next
	}
	return repos, nil
}

// listAll lists directories, some at a time. One that is not there is empty.
func (s *Store) listAll(ctx context.Context, tree layout.Tree, dirs []string) ([][]string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	listed := make([][]string, len(dirs))
	var wg sync.WaitGroup
	for worker := range min(maxListers, len(dirs)) {
		wg.Go(func() {
			defer func() {
				if r := recover(); r != nil { // the driver's: nothing above this goroutine catches it
					cancel(fmt.Errorf("the driver panicked: %v", r))
				}
			}()
			for i := worker; i < len(dirs) && ctx.Err() == nil; i += maxListers {
				names, err := s.bucket.list(ctx, path.Join(tree.Repositories(), dirs[i]))
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					cancel(err)
				}
				listed[i] = names
			}
		})
	}
	wg.Wait()
	return listed, context.Cause(ctx)
}
