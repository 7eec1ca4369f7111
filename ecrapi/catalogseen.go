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
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// Of a Store that does not list its tags and manifests, the Catalog remembers what comes
// by: what is put, what is read, and what is not found any more.

// listsImages reports whether the Store lists its tags and manifests.
func (s *catalogStore) listsImages() bool { return s.tags != nil && s.manifests != nil }

// watchManifest is Manifest of a Store that lists nothing.
func (s *catalogStore) watchManifest(ctx context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	c := s.catalog
	known, change := c.lookUp(repo, ref)
	m, err := s.Store.Manifest(ctx, repo, ref)
	switch {
	case err == nil && m != nil:
		if m.Descriptor.Digest != known && isGenuine(m) {
			img := describe(m, c.pushTime(m))
			c.edit(ctx, repo, change, func(r *repository) {
				r.noteLocked(img)
				r.seeLocked(ref, img.Digest)
			})
		}
	case known != "" && errors.Is(err, fs.ErrNotExist):
		c.edit(ctx, repo, change, func(r *repository) { r.forgetLocked(ref) })
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

// edit changes a repository if the count of its changes is still change. Otherwise what
// the Store has answered may be old.
func (c *Catalog) edit(ctx context.Context, repo pullthrough.Repo, change uint64, f func(*repository)) {
	c.mu.Lock()
	r := c.repos[repo]
	if r == nil && change == 0 {
		r = c.adoptLocked(repo)
		change = r.change
	}
	if r == nil || r.change != change {
		c.mu.Unlock()
		return
	}
	f(r)
	c.mu.Unlock()
	c.writeChange(ctx)
}

// seeTag notes the tag of a manifest that was put. One that a check has only confirmed
// does not move a tag: the check may have ended late.
func (c *Catalog) seeTag(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) {
	c.mu.Lock()
	r := c.repos[repo]
	if r == nil || m.Tag == "" || r.tags[m.Tag] != "" && m.Source == pullthrough.SourceRevalidated {
		c.mu.Unlock()
		return
	}
	r.seeLocked(m.Tag, m.Descriptor.Digest)
	c.mu.Unlock()
	c.writeChange(ctx)
}

// seeLocked notes what a tag names. A digest is no tag.
func (r *repository) seeLocked(ref string, d digest.Digest) {
	if !ocipath.IsDigest(ref) && r.tags[ref] != d {
		r.tags[ref] = d
		r.change++
	}
}

// forget forgets a tag, or an image with its tags: it is deleted.
func (c *Catalog) forget(ctx context.Context, repo pullthrough.Repo, ref string) {
	c.mu.Lock()
	if r := c.repos[repo]; r != nil {
		r.forgetLocked(ref)
	}
	c.mu.Unlock()
	c.writeChange(ctx)
}

func (r *repository) forgetLocked(ref string) {
	r.change++
	if !ocipath.IsDigest(ref) {
		delete(r.tags, ref)
		return
	}
	delete(r.images, digest.Digest(ref))
	maps.DeleteFunc(r.tags, func(_ string, d digest.Digest) bool { return d == digest.Digest(ref) })
}

// seenTags returns what the tags name, nil if the repository is not known.
func (c *Catalog) seenTags(repo pullthrough.Repo) map[string]digest.Digest {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if r := c.repos[repo]; r != nil {
		return maps.Clone(r.tags)
	}
	return nil
}

func (c *Catalog) seenManifests(repo pullthrough.Repo) iter.Seq2[digest.Digest, error] {
	return func(yield func(digest.Digest, error) bool) {
		c.mu.RLock()
		r := c.repos[repo]
		var all []digest.Digest
		if r != nil {
			all = slices.Collect(maps.Keys(r.images))
		}
		c.mu.RUnlock()
		if r == nil {
			yield("", errNoRepository)
			return
		}
		for _, d := range all {
			if !yield(d, nil) {
				return
			}
		}
	}
}
