package pullthroughtest

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Push stores the image in repo, with its config, layers and children, and points tag at it. A tag that exists moves.
// With an empty tag the image can be pulled by digest only. An empty Digest of an image is computed from its Content. A
// Digest that does not fit the Content is kept, so that a test can make the registry lie. The image must not be changed
// afterwards.
func (u *Upstream) Push(repo, tag string, img *Image) {
	u.content.mu.Lock()
	defer u.content.mu.Unlock()
	r := u.content.repositoryLocked(repo)
	d := r.push(img)
	if tag != "" {
		r.tags[tag] = d
	}
}

// PushBlob stores content in repo and returns its sha256 digest. The content must not be changed afterwards.
func (u *Upstream) PushBlob(repo string, content []byte) digest.Digest {
	blob := newBlob("application/octet-stream", digest.SHA256, content)
	u.content.mu.Lock()
	defer u.content.mu.Unlock()
	u.content.repositoryLocked(repo).blobs[blob.Digest] = blob
	return blob.Digest
}

// Delete removes ref from repo. ref is a tag, or the digest of a manifest or a blob. Deleting a manifest removes its tags
// and keeps its blobs. An empty ref removes the whole repository. Delete does nothing if there is no such thing.
func (u *Upstream) Delete(repo, ref string) {
	u.content.mu.Lock()
	defer u.content.mu.Unlock()
	r, ok := u.content.repositories[repo]
	if !ok {
		return
	}
	if ref == "" {
		delete(u.content.repositories, repo)
		return
	}
	delete(r.tags, ref)
	delete(r.manifests, digest.Digest(ref))
	delete(r.blobs, digest.Digest(ref))
	maps.DeleteFunc(r.tags, func(_ string, d digest.Digest) bool { return d == digest.Digest(ref) })
}

// content is the repositories of a registry. Safe for concurrent use.
type content struct {
	mu           sync.RWMutex
	repositories map[string]*repository
}

// repository is one repository. content's mu guards its maps. The images and blobs in them are never changed.
type repository struct {
	tags      map[string]digest.Digest
	manifests map[digest.Digest]*Image
	blobs     map[digest.Digest]*Blob
}

func (c *content) repositoryLocked(name string) *repository {
	if c.repositories == nil {
		c.repositories = map[string]*repository{}
	}
	r, ok := c.repositories[name]
	if !ok {
		r = &repository{
			tags:      map[string]digest.Digest{},
			manifests: map[digest.Digest]*Image{},
			blobs:     map[digest.Digest]*Blob{},
		}
		c.repositories[name] = r
	}
	return r
}

func (r *repository) push(img *Image) digest.Digest {
	stored := *img
	if stored.Digest == "" {
		stored.Digest = digest.FromBytes(img.Content)
	}
	r.manifests[stored.Digest] = &stored
	for _, blob := range img.Blobs() {
		r.blobs[blob.Digest] = blob
	}
	for _, child := range img.Children {
		r.push(child)
	}
	return stored.Digest
}

// manifest returns the manifest that ref, a tag or a digest, names in a repository; nil if there is none.
func (c *content) manifest(repo, ref string) *Image {
	c.mu.RLock()
	defer c.mu.RUnlock()
	r, ok := c.repositories[repo]
	if !ok {
		return nil
	}
	if d, ok := r.tags[ref]; ok {
		return r.manifests[d]
	}
	return r.manifests[digest.Digest(ref)]
}

func (c *content) blob(repo, ref string) *Blob {
	c.mu.RLock()
	defer c.mu.RUnlock()
	r, ok := c.repositories[repo]
	if !ok {
		return nil
	}
	return r.blobs[digest.Digest(ref)]
}

func (c *content) has(repo string) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.repositories[repo] != nil
}

func (c *content) tags(repo string) []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	r, ok := c.repositories[repo]
	if !ok {
		return nil
	}
	tags := slices.AppendSeq([]string{}, maps.Keys(r.tags)) // never nil, which JSON encodes as null
	slices.Sort(tags)
	return tags
}

// referrers returns the images in repo whose subject is d, sorted by digest.
func (c *content) referrers(repo string, d digest.Digest) []*Image {
	c.mu.RLock()
	defer c.mu.RUnlock()
	r, ok := c.repositories[repo]
	if !ok {
		return nil
	}
	var images []*Image
	for _, img := range r.manifests {
		if img.Subject == d && d != "" {
			images = append(images, img)
		}
	}
	slices.SortFunc(images, func(a, b *Image) int { return cmp.Compare(a.Digest, b.Digest) })
	return images
}
