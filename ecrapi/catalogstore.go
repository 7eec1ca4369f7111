package ecrapi

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
)

// Around returns a Store that does what inner does, and notes when images go into it. A
// Catalog must be around one Store only. No lock is held while inner works.
//
// The Store creates repositories by the Catalog's templates ([pullthrough.RepoCreator]),
// lists what inner has and the repositories that were created here
// ([pullthrough.RepoLister], [pullthrough.TagLister], [pullthrough.ManifestLister]), and
// deletes where inner is a [pullthrough.ImageDeleter]. If the
// repository's settings say that a tag must not move, it refuses to move it with
// [pullthrough.ErrImmutable]. It is a [pullthrough.ReferrerStore] or a
// [pullthrough.BlobStager] if inner is one.
//
// To list images the Catalog asks what each tag names. A Store that has a method
//
//	Resolve(ctx context.Context, repo pullthrough.Repo, tag string) (digest.Digest, error)
//
// is asked by that, so that it neither reads the manifest nor counts that as a use.
func (c *Catalog) Around(inner pullthrough.Store) pullthrough.Store {
	s := &catalogStore{Store: inner, catalog: c}
	s.repos, _ = inner.(pullthrough.RepoLister)
	s.tags, _ = inner.(pullthrough.TagLister)
	s.manifests, _ = inner.(pullthrough.ManifestLister)
	c.mu.Lock()
	c.store = s
	c.mu.Unlock()
	// A Proxy finds out by type assertions what the Store can do, so each combination
	// needs a type of its own.
	referrers, keeps := inner.(pullthrough.ReferrerStore)
	stager, stages := inner.(pullthrough.BlobStager)
	switch {
	case keeps && stages:
		return struct {
			*catalogStore
			pullthrough.ReferrerStore
			pullthrough.BlobStager
		}{s, referrers, stager}
	case keeps:
		return struct {
			*catalogStore
			pullthrough.ReferrerStore
		}{s, referrers}
	case stages:
		return struct {
			*catalogStore
			pullthrough.BlobStager
		}{s, stager}
	}
	return s
}

// catalogStore is a Store whose changes the Catalog notes. It does not note blobs, since
// manifests name them.
type catalogStore struct {
	pullthrough.Store
	catalog *Catalog

	// What the Store lists; nil: it does not.
	repos     pullthrough.RepoLister
	tags      pullthrough.TagLister
	manifests pullthrough.ManifestLister
}

// around returns the Store that the Catalog is around. Before there is one it is empty.
func (c *Catalog) around() *catalogStore {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.store == nil {
		return &catalogStore{catalog: c}
	}
	return c.store
}

// ResumeBlob is what [pullthrough.BlobStager] says of Stores that keep downloads.
func (s *catalogStore) ResumeBlob(ctx context.Context, repo pullthrough.Repo, d digest.Digest, key string) (pullthrough.Stage, error) {
	keeper, ok := s.Store.(interface {
		ResumeBlob(context.Context, pullthrough.Repo, digest.Digest, string) (pullthrough.Stage, error)
	})
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return keeper.ResumeBlob(ctx, repo, d, key)
}

// Manifest implements [pullthrough.Store].
func (s *catalogStore) Manifest(ctx context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	if s.listsImages() {
		return s.Store.Manifest(ctx, repo, ref)
	}
	return s.watchManifest(ctx, repo, ref)
}

// PutManifest implements [pullthrough.Store].
func (s *catalogStore) PutManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	mustNotMove, release, err := s.catalog.claim(repo, m)
	if err != nil {
		return err
	}
	defer release()
	if mustNotMove {
		have, err := s.resolve(ctx, repo, m.Tag)
		if err == nil && have != m.Descriptor.Digest {
			err = errMustNotMove(repo, m.Tag)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := s.Store.PutManifest(ctx, repo, m); err != nil {
		return err
	}
	s.catalog.note(ctx, repo, m, s.catalog.now())
	if !s.listsImages() {
		s.catalog.seeTag(ctx, repo, m)
	}
	return nil
}

// claim reserves a tag that must not move for the manifest, until release is called. So
// only one of two manifests for the tag gets to the Store. mustNotMove says that the tag
// may be there with another digest, too.
func (c *Catalog) claim(repo pullthrough.Repo, m *pullthrough.Manifest) (mustNotMove bool, release func(), err error) {
	tag, d := m.Tag, m.Descriptor.Digest
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.repos[repo]
	if r == nil || tag == "" || m.Source == pullthrough.SourceRevalidated || !r.mustNotMove(tag) {
		return false, func() {}, nil
	}
	mine, claimed := r.claims[tag]
	if claimed && mine.digest != d {
		return true, nil, errMustNotMove(repo, tag)
	}
	r.claims[tag] = claim{d, mine.puts + 1}
	return true, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if mine := r.claims[tag]; mine.puts > 1 {
			r.claims[tag] = claim{d, mine.puts - 1}
			return
		}
		delete(r.claims, tag)
	}, nil
}

func errMustNotMove(repo pullthrough.Repo, tag string) error {
	return &pullthrough.Error{Kind: pullthrough.ErrImmutable, Repo: repo, Ref: tag}
}

// RepoExists implements [pullthrough.RepoCreator].
func (s *catalogStore) RepoExists(ctx context.Context, repo pullthrough.Repo) (bool, error) {
	if s.catalog.isCreated(repo) {
		return true, nil
	}
	switch inner := s.Store.(type) {
	case pullthrough.RepoCreator:
		return inner.RepoExists(ctx, repo)
	case pullthrough.RepoLister:
		names, err := inner.Repos(ctx, repo.Account, repo.Region)
		return slices.Contains(names, repo.Name), ignoreMissing(err)
	}
	return s.catalog.changes(repo) > 0, nil // it is known, since something has come by
}

// CreateRepo implements [pullthrough.RepoCreator].
func (s *catalogStore) CreateRepo(ctx context.Context, repo pullthrough.Repo, rule pullthrough.Rule, r pullthrough.Request) error {
	var t Template
	if s.catalog.Template != nil {
		var err error
		if t, _, err = s.catalog.Template(ctx, repo); err != nil {
			return err
		}
	}
	if inner, ok := s.Store.(pullthrough.RepoCreator); ok {
		if err := inner.CreateRepo(ctx, repo, rule, r); err != nil {
			return err
		}
	}
	if s.catalog.add(repo, s.catalog.complete(fromTemplate(t))) {
		s.catalog.writeChange(ctx)
	}
	return nil
}

// Repos implements [pullthrough.RepoLister].
func (s *catalogStore) Repos(ctx context.Context, account, region string) ([]string, error) {
	return s.catalog.Repositories(ctx, account, region)
}

// Tags implements [pullthrough.TagLister].
func (s *catalogStore) Tags(ctx context.Context, repo pullthrough.Repo) ([]string, error) {
	if s.tags == nil {
		tags := s.catalog.seenTags(repo)
		if tags == nil {
			return nil, errNoRepository
		}
		return slices.Collect(maps.Keys(tags)), nil
	}
	tags, err := s.tags.Tags(ctx, repo)
	if errors.Is(err, fs.ErrNotExist) && s.catalog.isCreated(repo) {
		return []string{}, nil // it is empty: nothing has come yet, or all is evicted
	}
	return tags, err
}

// Manifests implements [pullthrough.ManifestLister].
func (s *catalogStore) Manifests(ctx context.Context, repo pullthrough.Repo) iter.Seq2[digest.Digest, error] {
	if s.manifests == nil {
		return s.catalog.seenManifests(repo)
	}
	return func(yield func(digest.Digest, error) bool) {
		for d, err := range s.manifests.Manifests(ctx, repo) {
			if errors.Is(err, fs.ErrNotExist) && s.catalog.isCreated(repo) {
				return // as in Tags
			}
			if !yield(d, err) {
				return
			}
		}
	}
}

// digests are what Manifests yields. There are none in a repository that does not exist.
func (s *catalogStore) digests(ctx context.Context, repo pullthrough.Repo) (map[digest.Digest]struct{}, error) {
	all := map[digest.Digest]struct{}{}
	for d, err := range s.Manifests(ctx, repo) {
		if err != nil {
			return all, ignoreMissing(err)
		}
		all[d] = struct{}{}
	}
	return all, nil
}

// tagged returns what the tags name.
func (s *catalogStore) tagged(ctx context.Context, repo pullthrough.Repo) (map[string]digest.Digest, error) {
	if s.tags == nil {
		return s.catalog.seenTags(repo), nil
	}
	tags, err := s.Tags(ctx, repo)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	digests := make([]digest.Digest, len(tags))
	err = eachOf(ctx, tags, func(i int) (err error) {
		digests[i], err = s.resolve(ctx, repo, tags[i])
		return err
	})
	named := make(map[string]digest.Digest, len(tags))
	for i, d := range digests {
		if d != "" {
			named[tags[i]] = d
		}
	}
	return named, err
}

// resolver is a Store that tells what a tag names for less than Manifest.
type resolver interface {
	Resolve(ctx context.Context, repo pullthrough.Repo, tag string) (digest.Digest, error)
}

func (s *catalogStore) resolve(ctx context.Context, repo pullthrough.Repo, tag string) (digest.Digest, error) {
	if inner, ok := s.Store.(resolver); ok {
		return inner.Resolve(ctx, repo, tag)
	}
	m, err := s.Manifest(ctx, repo, tag)
	if err != nil || m == nil {
		return "", err
	}
	return m.Descriptor.Digest, nil
}

// DeleteImage implements [pullthrough.ImageDeleter].
func (s *catalogStore) DeleteImage(ctx context.Context, repo pullthrough.Repo, ref string) error {
	inner, ok := s.Store.(pullthrough.ImageDeleter)
	if !ok {
		return errors.ErrUnsupported
	}
	err := inner.DeleteImage(ctx, repo, ref)
	if err == nil {
		s.catalog.forget(ctx, repo, ref)
	}
	return err
}

// DeleteRepo implements [pullthrough.ImageDeleter].
func (s *catalogStore) DeleteRepo(ctx context.Context, repo pullthrough.Repo) error {
	err := errors.ErrUnsupported
	if inner, ok := s.Store.(pullthrough.ImageDeleter); ok {
		err = inner.DeleteRepo(ctx, repo)
	}
	if errors.Is(err, fs.ErrNotExist) && s.catalog.isCreated(repo) {
		err = nil // it was empty
	}
	if err == nil {
		s.catalog.remove(ctx, repo)
	}
	return err
}

// atATime is how many look-ups of one list a Store gets at a time.
const atATime = 16

// eachOf calls f for each of the items, some at a time. What is missing is no error: it
// was deleted a moment ago.
func eachOf(ctx context.Context, items []string, f func(i int) error) error {
	workers := min(atATime, len(items))
	failed := make(chan error, workers)
	for w := range workers {
		go func() {
			var err error
			for i := w; i < len(items) && err == nil; i += workers {
				if err = ctx.Err(); err == nil {
					err = ignoreMissing(hostcall.Guard("Store", func() error { return f(i) }))
				}
			}
			failed <- err
		}()
	}
	var err error
	for range workers {
		err = errors.Join(err, <-failed)
	}
	return err
}
