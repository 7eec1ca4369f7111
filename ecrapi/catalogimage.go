package ecrapi

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// image is what is known about an image. It is a value: a change replaces it.
type image struct {
	Digest       digest.Digest   `json:"digest"`
	MediaType    string          `json:"mediaType,omitempty"`
	ArtifactType string          `json:"artifactType,omitempty"` // its artifactMediaType
	Subject      digest.Digest   `json:"subject,omitempty"`
	Size         int64           `json:"size,omitempty"`     // config and layers; 0 for a list
	Children     []digest.Digest `json:"children,omitempty"` // of a list
	PushedAt     time.Time       `json:"pushedAt,omitzero"`
	PulledAt     time.Time       `json:"pulledAt,omitzero"` // zero: never
	Tags         []string        `json:"tags,omitempty"`    // in a listing and in the file only; sorted
}

// describe reads an image out of its manifest. What the proxy stores is well-formed.
// The host may have stored anything else: then only the descriptor is known.
func describe(m *pullthrough.Manifest, pushed time.Time) image {
	img := image{Digest: m.Descriptor.Digest, MediaType: m.Descriptor.MediaType, PushedAt: pushed}
	info, err := manifest.Inspect(m.Descriptor.MediaType, m.Content, manifest.Stored)
	if err != nil {
		return img
	}
	for _, child := range info.Manifests {
		img.Children = append(img.Children, child.Digest)
	}
	img.Size = sizeOf(info.Blobs)
	var more struct {
		ArtifactType string              `json:"artifactType"`
		Config       *ocispec.Descriptor `json:"config"`
		Subject      *ocispec.Descriptor `json:"subject"`
	}
	if json.Unmarshal(m.Content, &more) != nil {
		return img
	}
	img.ArtifactType = more.ArtifactType
	if more.Config != nil {
		img.ArtifactType = cmp.Or(img.ArtifactType, more.Config.MediaType)
	}
	if more.Subject != nil && ocipath.ValidDigest(string(more.Subject.Digest)) {
		img.Subject = more.Subject.Digest
	}
	return img
}

// sizeOf returns the size of the blobs. It counts each once.
func sizeOf(blobs []ocispec.Descriptor) (size int64) {
	seen := map[digest.Digest]bool{}
	for _, d := range blobs {
		// What an upstream claims must not make the sum negative.
		if !seen[d.Digest] && size+d.Size >= size {
			size += d.Size
		}
		seen[d.Digest] = true
	}
	return size
}

// isGenuine reports whether the manifest has its digest. If the Store is damaged it has
// not, and the proxy fetches the manifest again.
func isGenuine(m *pullthrough.Manifest) bool {
	d := m.Descriptor.Digest
	return ocipath.ValidDigest(string(d)) && d.Algorithm().FromBytes(m.Content) == d
}

// note notes an image that the Store has, unless it is known, and returns what is known.
func (c *Catalog) note(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest, pushed time.Time) image {
	d := m.Descriptor.Digest
	if img, known := c.known(repo, d); known {
		return img
	}
	img := describe(m, pushed)
	c.mu.Lock()
	r := c.repos[repo]
	if r == nil {
		r = c.adoptLocked(repo)
	}
	key := imageKey{repo, d}
	img.PulledAt = c.early[key]
	delete(c.early, key)
	r.noteLocked(img)
	img = r.images[d]
	c.mu.Unlock()
	c.writeChange(ctx)
	return img
}

// known returns what is known about an image. It reports false if its manifest was not
// read yet.
func (c *Catalog) known(repo pullthrough.Repo, d digest.Digest) (image, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if r := c.repos[repo]; r != nil {
		img := r.images[d]
		return img, img.isRead()
	}
	return image{}, false
}

// isRead reports whether more is known of an image than when it was pulled.
func (i image) isRead() bool { return i.MediaType != "" }

// noteLocked notes an image unless it is known. The time of a pull stays.
func (r *repository) noteLocked(img image) {
	have := r.images[img.Digest]
	if have.isRead() {
		return
	}
	if img.PulledAt.Before(have.PulledAt) {
		img.PulledAt = have.PulledAt
	}
	r.images[img.Digest] = img
	r.change++
}

// sizesOf returns the size of each image. The size of a list is that of the largest image
// in it that is stored. So the largest images come first, and give their size to all lists
// that they are in and that have none yet: each image is visited once, however many lists
// it is in, and however deep.
func sizesOf(images map[digest.Digest]image) map[digest.Digest]int64 {
	lists := map[digest.Digest][]digest.Digest{} // that an image is in
	for d, img := range images {
		for _, child := range img.Children {
			lists[child] = append(lists[child], d)
		}
	}
	sizes := make(map[digest.Digest]int64, len(images))
	for _, img := range slices.SortedFunc(maps.Values(images), func(x, y image) int { return cmp.Compare(y.Size, x.Size) }) {
		for todo := []digest.Digest{img.Digest}; len(todo) > 0; {
			d := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			if _, done := sizes[d]; !done {
				sizes[d] = img.Size
				todo = append(todo, lists[d]...)
			}
		}
	}
	return sizes
}

// images returns the images that the Store has in a repository, with their tags and
// sizes, in no order.
func (c *Catalog) images(ctx context.Context, repo pullthrough.Repo) ([]image, error) {
	if err := c.find(ctx, repo); err != nil {
		return nil, err
	}
	s, change := c.around(), c.changes(repo)
	stored, err := s.digests(ctx, repo)
	if err != nil {
		return nil, err
	}
	tagged, err := s.tagged(ctx, repo)
	if err != nil {
		return nil, err
	}
	for _, d := range tagged {
		stored[d] = struct{}{} // it came after the manifests were listed
	}
	images, err := c.described(ctx, repo, stored)
	if err != nil {
		return nil, err
	}
	c.prune(ctx, repo, change, images)
	tags, sizes := tagsOf(tagged), sizesOf(images)
	all := make([]image, 0, len(images))
	for d, img := range images {
		img.Size, img.Tags = sizes[d], tags[d]
		all = append(all, img)
	}
	return all, nil
}

// described returns the images with these digests. It reads the manifests of those that
// are not known, and leaves out what the Store does not have any more.
func (c *Catalog) described(ctx context.Context, repo pullthrough.Repo, stored map[digest.Digest]struct{}) (map[digest.Digest]image, error) {
	images := make(map[digest.Digest]image, len(stored))
	unknown := []string{}
	c.mu.RLock()
	r := c.repos[repo]
	for d := range stored {
		var img image
		if r != nil {
			img = r.images[d]
		}
		if !img.isRead() {
			unknown = append(unknown, string(d))
			continue
		}
		images[d] = img
	}
	c.mu.RUnlock()
	read := make([]*pullthrough.Manifest, len(unknown))
	err := eachOf(ctx, unknown, func(i int) (err error) {
		read[i], err = c.around().Store.Manifest(ctx, repo, unknown[i])
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, m := range read {
		if m != nil && isGenuine(m) {
			images[m.Descriptor.Digest] = c.note(ctx, repo, m, c.pushTime(m))
		}
	}
	return images, nil
}

// pushTime is when a manifest was pushed that the Store has got in another way, as far
// as anybody knows.
func (c *Catalog) pushTime(m *pullthrough.Manifest) time.Time {
	if m.CheckedAt.IsZero() {
		return c.now()
	}
	return m.CheckedAt
}

// prune forgets the notes on images that the Store does not have any more. It does
// nothing if there are new ones since the Store was asked.
func (c *Catalog) prune(ctx context.Context, repo pullthrough.Repo, change uint64, stored map[digest.Digest]image) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.repos[repo]
	if r == nil || r.change != change || len(r.images) == len(stored) {
		return
	}
	maps.DeleteFunc(r.images, func(d digest.Digest, _ image) bool {
		_, has := stored[d]
		return !has
	})
}

// changes counts the changes of the repository.
func (c *Catalog) changes(repo pullthrough.Repo) uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if r := c.repos[repo]; r != nil {
		return r.change
	}
	return 0
}

// tagsOf returns the tags of each image.
func tagsOf(tagged map[string]digest.Digest) map[digest.Digest][]string {
	tags := map[digest.Digest][]string{}
	for tag, d := range tagged {
		tags[d] = append(tags[d], tag)
	}
	for _, list := range tags {
		slices.Sort(list)
	}
	return tags
}
