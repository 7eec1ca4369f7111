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

// Around returns a Store that does what inner does and notes what goes into it. A Catalog
// must be around one Store only. An image that inner got in another way is noted when it
// is read, and an image that inner has lost is forgotten then. If inner is an
// [ImageChecker], a list of images leaves out what inner has evicted. No lock is held
// while inner works.
//
// The Store creates repositories by the Catalog's templates ([pullthrough.RepoCreator])
// and lists tags and repositories ([pullthrough.TagLister], [pullthrough.RepoLister]). If
// the repository's settings say that a tag must not move, it refuses to move it with
// [pullthrough.ErrImmutable]. It is a [pullthrough.ReferrerStore] or a
// [pullthrough.BlobStager] if inner is one.
func (c *Catalog) Around(inner pullthrough.Store) pullthrough.Store {
	s := &catalogStore{inner, c}
	c.mu.Lock()
	c.checker, _ = inner.(ImageChecker)
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

// ImageChecker is a Store that evicts images of its own accord. On each request for a
// list a [Catalog] asks it for every image in the list. The Stores of memstore and
// dirstore are ImageCheckers.
type ImageChecker interface {
	// HasManifest reports whether the manifest with this digest is stored in the
	// repository. Unlike Manifest it does not count as a use.
	HasManifest(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (bool, error)
}

// catalogStore is a Store whose changes the Catalog notes. It does not note blobs, since
// manifests name them.
type catalogStore struct {
	pullthrough.Store
	catalog *Catalog
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
	known, change := s.catalog.lookUp(repo, ref)
	m, err := s.Store.Manifest(ctx, repo, ref)
	switch {
	case err == nil && m != nil:
		if m.Descriptor.Digest != known && isGenuine(m) {
			s.catalog.adopt(ctx, repo, ref, m, change)
		}
	case known != "" && errors.Is(err, fs.ErrNotExist):
		s.catalog.forget(ctx, repo, ref, change)
	}
	return m, err
}

// lookUp returns the digest that ref stands for, and the count of the repository's
// changes. The digest is "" if it is not known.
func (c *Catalog) lookUp(repo pullthrough.Repo, ref string) (d digest.Digest, change uint64) {
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

// adopt notes what the Store has. It does nothing if the repository has changed since
// the Store was asked: then the Store's answer may be old.
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

// forget is adopt for what the Store does not have any more.
func (c *Catalog) forget(ctx context.Context, repo pullthrough.Repo, ref string, change uint64) {
	c.edit(ctx, repo, change, func(r *repository) { r.forgetLocked(ref) })
}

// edit changes a repository if the count of its changes is still change. It reports
// whether it did.
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
		r = c.addLocked(repo, c.newSettings(Template{}))
	}
	f(r)
	c.mu.Unlock()
	c.writeChange(ctx)
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

// claim reserves a tag that must not move for the manifest, until release is called. So
// only one of two manifests for the tag gets to the Store.
func (c *Catalog) claim(repo pullthrough.Repo, m *pullthrough.Manifest) (release func(), err error) {
	tag, d := m.Tag, m.Descriptor.Digest
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.repos[repo]
	if r == nil || tag == "" || m.Source == pullthrough.SourceRevalidated || !r.mustNotMove(tag) {
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

// note notes a manifest that the Store has got. One that a check has only confirmed does
// not move a tag: the check may have ended late.
func (c *Catalog) note(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) {
	d, tag := m.Descriptor.Digest, m.Tag
	if known, _ := c.lookUp(repo, cmp.Or(tag, d.String())); known == d {
		return
	}
	img := describe(m, c.now())
	c.mu.Lock()
	r := c.repos[repo]
	if r == nil {
		r = c.addLocked(repo, c.newSettings(Template{}))
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
		c.writeChange(ctx)
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
	if s.catalog.add(repo, s.catalog.newSettings(t)) {
		s.catalog.writeChange(ctx)
	}
	return nil
}

// Tags implements [pullthrough.TagLister].
func (s *catalogStore) Tags(ctx context.Context, repo pullthrough.Repo) ([]string, error) {
	s.catalog.await(ctx, repo)
	if inner, ok := s.Store.(pullthrough.TagLister); ok {
		tags, err := inner.Tags(ctx, repo)
		if errors.Is(err, fs.ErrNotExist) && s.catalog.has(repo) {
			return []string{}, nil // the repository exists and is empty: nothing has come yet, or all is evicted
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
