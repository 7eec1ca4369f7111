package ecrapi

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// Around returns a Store that is inner and notes what goes into it. One Catalog
// belongs around one Store. What inner has been given by others is noted when it is
// read, as what it has lost is forgotten. A list of images leaves out what an inner that
// is an [ImageChecker] has evicted. No lock is held while inner works.
//
// The Store makes repositories ([pullthrough.RepoCreator]) by the Catalog's templates
// and lists ([pullthrough.TagLister], [pullthrough.RepoLister]). It refuses to move
// tags that the repository's settings fix, [pullthrough.ErrImmutable]. It is a
// [pullthrough.ReferrerStore] or a [pullthrough.BlobStager] if inner is one.
func (c *Catalog) Around(inner pullthrough.Store) pullthrough.Store {
	s := &catalogStore{inner, c}
	c.mu.Lock()
	c.checker, _ = inner.(ImageChecker)
	c.mu.Unlock()
	// A Proxy asks the Store itself what it is: each kind needs a type of its own.
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

// ImageChecker is a Store that evicts images of its own accord: [Catalog] asks it before
// it tells of one, image by image on each request. The Stores of memstore and dirstore
// are such.
type ImageChecker interface {
	// HasManifest reports whether the manifest with this digest is stored in the
	// repository. Unlike Manifest it does not count as a use.
	HasManifest(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (bool, error)
}

// catalogStore is a Store whose changes are noted. Blobs are not: manifests tell of
// them.
type catalogStore struct {
	pullthrough.Store
	catalog *Catalog
}

// Manifest implements [pullthrough.Store].
func (s *catalogStore) Manifest(ctx context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	known, change := s.catalog.known(repo, ref)
	m, err := s.Store.Manifest(ctx, repo, ref)
	switch {
	case err == nil && m != nil:
		if m.Descriptor.Digest != known && genuine(m) {
			s.catalog.adopt(ctx, repo, ref, m, change)
		}
	case known != "" && errors.Is(err, fs.ErrNotExist):
		s.catalog.forget(ctx, repo, ref, change)
	}
	return m, err
}

// known is what ref stands for, "" if that is not known, and the repository's change.
func (c *Catalog) known(repo pullthrough.Repo, ref string) (d digest.Digest, change uint64) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	r := c.repos[repo]
	if r == nil {
		return "", 0
	}
	if !ocipath.IsDigest(ref) {
		return r.tags[ref], r.change
	}
	return r.images[digest.Digest(ref)].Digest, r.change
}

// adopt notes what the Store turned out to have, unless something has changed since
// it was asked: then its answer may be old.
func (c *Catalog) adopt(ctx context.Context, repo pullthrough.Repo, ref string, m *pullthrough.Manifest, change uint64) {
	tag := ref
	if ocipath.IsDigest(ref) {
		tag = ""
	}
	pushed := m.CheckedAt
	if pushed.IsZero() {
		pushed = c.now()
	}
	c.edit(ctx, repo, change, func(r *repository) { r.noteLocked(describe(m, pushed), tag) })
}

func (c *Catalog) forget(ctx context.Context, repo pullthrough.Repo, ref string, change uint64) {
	c.edit(ctx, repo, change, func(r *repository) { r.forgetLocked(ref) })
}

// edit changes a repository that has not changed since, and reports whether that was so.
func (c *Catalog) edit(ctx context.Context, repo pullthrough.Repo, change uint64, f func(*repository)) bool {
	c.mu.Lock()
	r := c.repos[repo]
	var now uint64
	if r != nil {
		now = r.change
	}
	if now != change {
		c.mu.Unlock()
		return false
	}
	if r == nil {
		r = c.addLocked(repo, c.made(Template{}))
	}
	f(r)
	c.mu.Unlock()
	c.changed(ctx)
	return true
}

// PutManifest implements [pullthrough.Store].
func (s *catalogStore) PutManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	release, err := s.catalog.claim(repo, m)
	if err != nil {
		return err
	}
	defer release()
	if err := s.Store.PutManifest(ctx, repo, m); err != nil {
		return err
	}
	s.catalog.note(ctx, repo, m)
	return nil
}

// claim makes sure that of two manifests for one tag that must not move only one gets
// to the Store.
func (c *Catalog) claim(repo pullthrough.Repo, m *pullthrough.Manifest) (release func(), err error) {
	tag, d := m.Tag, m.Descriptor.Digest
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.repos[repo]
	if r == nil || tag == "" || m.Source == pullthrough.SourceRevalidated || !r.fixed(tag) {
		return func() {}, nil
	}
	have, there := r.tags[tag]
	mine, claimed := r.claims[tag]
	if there && have != d || claimed && mine.digest != d {
		return nil, &pullthrough.Error{Kind: pullthrough.ErrImmutable, Repo: repo, Ref: tag}
	}
	r.claims[tag] = claim{d, mine.puts + 1}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if mine := r.claims[tag]; mine.puts > 1 {
			r.claims[tag] = claim{d, mine.puts - 1}
			return
		}
		delete(r.claims, tag)
	}, nil
}

// note notes what the Store has been given. A check that ends late does not move a
// tag.
func (c *Catalog) note(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) {
	d, tag := m.Descriptor.Digest, m.Tag
	if known, _ := c.known(repo, cmp.Or(tag, d.String())); known == d {
		return
	}
	img := describe(m, c.now())
	c.mu.Lock()
	r := c.repos[repo]
	if r == nil {
		r = c.addLocked(repo, c.made(Template{}))
	}
	if _, moved := r.tags[tag]; moved && m.Source == pullthrough.SourceRevalidated {
		tag = ""
	}
	key := imageKey{repo, d}
	img.PulledAt = c.early[key]
	delete(c.early, key)
	before := r.change
	r.noteLocked(img, tag)
	changed := r.change != before
	c.mu.Unlock()
	if changed {
		c.changed(ctx)
	}
}

// RepoExists implements [pullthrough.RepoCreator].
func (s *catalogStore) RepoExists(ctx context.Context, repo pullthrough.Repo) (bool, error) {
	switch inner := s.Store.(type) {
	case pullthrough.RepoCreator:
		return inner.RepoExists(ctx, repo)
	case pullthrough.RepoLister:
		if s.catalog.has(repo) {
			return true, nil
		}
		names, err := inner.Repos(ctx, repo.Account, repo.Region)
		return slices.Contains(names, repo.Name), err
	}
	return s.catalog.has(repo), nil
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
	if s.catalog.add(repo, s.catalog.made(t)) {
		s.catalog.changed(ctx)
	}
	return nil
}

// Tags implements [pullthrough.TagLister].
func (s *catalogStore) Tags(ctx context.Context, repo pullthrough.Repo) ([]string, error) {
	s.catalog.await(ctx, repo)
	if inner, ok := s.Store.(pullthrough.TagLister); ok {
		tags, err := inner.Tags(ctx, repo)
		if errors.Is(err, fs.ErrNotExist) && s.catalog.has(repo) {
			return []string{}, nil // it is there, and empty: nothing has come yet, or all is evicted
		}
		return tags, err
	}
	c := s.catalog
	c.mu.RLock()
	defer c.mu.RUnlock()
	r := c.repos[repo]
	if r == nil {
		return nil, &fs.PathError{Op: "list", Path: repo.Name, Err: fs.ErrNotExist}
	}
	return slices.Collect(maps.Keys(r.tags)), nil
}

// Repos implements [pullthrough.RepoLister].
func (s *catalogStore) Repos(ctx context.Context, account, region string) ([]string, error) {
	s.catalog.awaitNew(ctx, account, region)
	names := s.catalog.names(account, region)
	if inner, ok := s.Store.(pullthrough.RepoLister); ok {
		more, err := inner.Repos(ctx, account, region)
		if err != nil {
			return nil, err
		}
		names = append(names, more...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
