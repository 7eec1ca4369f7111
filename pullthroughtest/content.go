package pullthroughtest

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Push stores the image in repo, with its config, layers and children, and lets tag name it. A tag that exists moves.
// An empty tag: by digest only. An empty Digest of an image is computed from its Content; one that does not fit the
// Content is believed, so that a registry can be made to lie. The image must not be changed afterwards.
func (u *Upstream) Push(repo, tag string, img *Image) {
	u.content.mu.Lock()
	defer u.content.mu.Unlock()
	r := u.content.repositoryLocked(repo)
	d := r.push(img)
	if tag != "" {
		r.tags[tag] = d
	}
}

// PushBlob stores content in repo under its sha256, which it returns. The content must not be changed afterwards.
func (u *Upstream) PushBlob(repo string, content []byte) digest.Digest {
	blob := newBlob("application/octet-stream", digest.SHA256, content)
	u.content.mu.Lock()
	defer u.content.mu.Unlock()
	u.content.repositoryLocked(repo).blobs[blob.Digest] = blob
	return blob.Digest
}

// Delete removes from repo the tag, or the manifest or blob with the digest, that ref is; tags of a deleted manifest go
// with it, its blobs stay. An empty ref removes the whole repository. Deleting what is not there does nothing.
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

// content is what a registry holds. Safe for concurrent use.
type content struct {
	mu           sync.RWMutex
	repositories map[string]*repository
}

// repository is one repository; content's mu guards it, while the images and blobs in it are never changed.
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

// manifest is what ref, a tag or a digest, names in a repository. Nil: nothing.
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
	tags := slices.AppendSeq([]string{}, maps.Keys(r.tags)) // never nil: JSON would make null of it
	slices.Sort(tags)
	return tags
}

// referrers are the images in repo whose subject is d, in the order of their digests.
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
