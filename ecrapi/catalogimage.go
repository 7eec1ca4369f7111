package ecrapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
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

// noteLocked notes an image, unless it is known, and moves the tag, unless it is "".
func (r *repository) noteLocked(img image, tag string) {
	if _, known := r.images[img.Digest]; !known {
		r.images[img.Digest] = img
		r.change++
	}
	if tag != "" && r.tags[tag] != img.Digest {
		r.tags[tag] = img.Digest
		r.change++
	}
}

// forgetLocked forgets a tag, or an image with its tags.
func (r *repository) forgetLocked(ref string) {
	r.change++
	if !ocipath.IsDigest(ref) {
		delete(r.tags, ref)
		return
	}
	delete(r.images, digest.Digest(ref))
	for tag, d := range r.tags {
		if d == digest.Digest(ref) {
			delete(r.tags, tag)
		}
	}
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

// errNoRepository says that there are no images since there is no repository.
var errNoRepository = errors.New("the repository does not exist")

// maxTidies is how often tidy is tried for a repository that changes meanwhile.
const maxTidies = 3

// storedImages returns the images of a repository, as images does. Before that it waits
// for what was just pulled, and forgets the images that the Store has lost.
func (c *Catalog) storedImages(ctx context.Context, repo pullthrough.Repo) ([]image, error) {
	c.await(ctx, repo)
	for range maxTidies {
		done, err := c.tidy(ctx, repo)
		if err != nil {
			return nil, err
		}
		if done {
			break
		}
	}
	return c.images(repo)
}

// tidy forgets the images that the Store has lost. It reports false if the repository
// has changed meanwhile: then it has forgotten nothing.
func (c *Catalog) tidy(ctx context.Context, repo pullthrough.Repo) (done bool, err error) {
	store, change, all := c.digests(repo)
	if store == nil {
		return true, nil
	}
	var lost []digest.Digest
	for _, d := range all {
		has, err := store.HasManifest(ctx, repo, d)
		if err != nil {
			return false, err
		}
		if !has {
			lost = append(lost, d)
		}
	}
	if len(lost) == 0 {
		return true, nil
	}
	return c.edit(ctx, repo, change, func(r *repository) {
		for _, d := range lost {
			r.forgetLocked(string(d))
		}
	}), nil
}

// digests returns the digests of the repository's images, and the Store that tells
// whether it still has them. store is nil if there is nothing to ask.
func (c *Catalog) digests(repo pullthrough.Repo) (store ImageChecker, change uint64, all []digest.Digest) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	r := c.repos[repo]
	if c.checker == nil || r == nil {
		return nil, 0, nil
	}
	return c.checker, r.change, slices.Collect(maps.Keys(r.images))
}

// images returns the images of a repository with their tags and sizes, in no order.
func (c *Catalog) images(repo pullthrough.Repo) ([]image, error) {
	images, tagged := c.snapshot(repo)
	if images == nil {
		return nil, errNoRepository
	}
	tags, sizes := tagsOf(tagged), sizesOf(images)
	all := make([]image, 0, len(images))
	for d, img := range images {
		img.Size, img.Tags = sizes[d], tags[d]
		all = append(all, img)
	}
	return all, nil
}

// snapshot returns copies of a repository's images and tags, so that no lock is held while
// they are looked at. They are nil if there is no such repository.
func (c *Catalog) snapshot(repo pullthrough.Repo) (map[digest.Digest]image, map[string]digest.Digest) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	r := c.repos[repo]
	if r == nil {
		return nil, nil
	}
	return maps.Clone(r.images), maps.Clone(r.tags)
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
