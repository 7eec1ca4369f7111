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

// image is what is known of an image. It is a value: one that changes is replaced.
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

// describe reads an image out of its manifest. What the proxy stores is well-formed;
// of anything else that a host stores only the descriptor is known.
func describe(m *pullthrough.Manifest, pushed time.Time) image {
	img := image{Digest: m.Descriptor.Digest, MediaType: m.Descriptor.MediaType, PushedAt: pushed}
	info, err := manifest.Inspect(m.Descriptor.MediaType, m.Content)
	if err != nil {
		return img
	}
	for _, child := range info.Manifests {
		img.Children = append(img.Children, child.Digest)
	}
	img.Size = stored(info.Blobs)
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

// stored is the size of the blobs, each counted once.
func stored(blobs []ocispec.Descriptor) (size int64) {
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

// genuine reports whether the manifest is what its digest says. The Store may be
// damaged, and then the proxy fetches anew.
func genuine(m *pullthrough.Manifest) bool {
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

// maxDepth is how many lists may stand in each other, as far as sizes go.
const maxDepth = 4

// sizeLocked is the size of an image: of a list, the largest of those images in it that
// are here.
func (r *repository) sizeLocked(img image, depth int) int64 {
	size := img.Size
	if depth < maxDepth {
		for _, d := range img.Children {
			size = max(size, r.sizeLocked(r.images[d], depth+1))
		}
	}
	return size
}

// errNoRepository is why there are no images.
var errNoRepository = errors.New("the repository does not exist")

// maxTidies is how often a repository is gone through that changes meanwhile.
const maxTidies = 3

// stored returns the images of a repository, as images does. Those that the Store has
// lost since they were noted are forgotten first.
func (c *Catalog) stored(ctx context.Context, repo pullthrough.Repo) ([]image, error) {
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

// tidy forgets images that are lost, and reports whether it could: the repository may
// have changed.
func (c *Catalog) tidy(ctx context.Context, repo pullthrough.Repo) (done bool, err error) {
	store, change, noted := c.noted(repo)
	if store == nil {
		return true, nil
	}
	var lost []digest.Digest
	for _, d := range noted {
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

// noted are the digests of the repository's images, and whom to ask whether they are
// stored; nil: there is nobody.
func (c *Catalog) noted(repo pullthrough.Repo) (store ImageChecker, change uint64, noted []digest.Digest) {
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
	c.mu.RLock()
	defer c.mu.RUnlock()
	r := c.repos[repo]
	if r == nil {
		return nil, errNoRepository
	}
	tags := r.tagsLocked()
	all := make([]image, 0, len(r.images))
	for d, img := range r.images {
		img.Size, img.Tags = r.sizeLocked(img, 0), tags[d]
		all = append(all, img)
	}
	return all, nil
}

// tagsLocked are the tags of each image.
func (r *repository) tagsLocked() map[digest.Digest][]string {
	tags := map[digest.Digest][]string{}
	for tag, d := range r.tags {
		tags[d] = append(tags[d], tag)
	}
	for _, list := range tags {
		slices.Sort(list)
	}
	return tags
}
