package ecrapi_test

import (
	"context"
	"errors"
	"iter"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// What the Store has evicted is not listed.
func TestEvictedImagesAreNotListed(t *testing.T) {
	one, two, three := image(1), image(2), image(3)
	limit := 2*wholeSize(one) + wholeSize(one)/2
	for name, open := range map[string]func(t *testing.T) (store pullthrough.Store, sweep func()){
		"memory": func(*testing.T) (pullthrough.Store, func()) {
			return &memstore.Store{MaxBytes: limit + limit/wholeSize(one)*512*int64(2+len(one.Blobs())) + 256*int64(2+len(one.Blobs()))}, func() {} // it counts tags and links, too
		},
		"directory": func(t *testing.T) (pullthrough.Store, func()) {
			dir, err := dirstore.Open(t.TempDir())
			require.NoError(t, err)
			t.Cleanup(func() { assert.NoError(t, dir.Close()) })
			dir.MaxBytes = limit
			return dir, func() { require.NoError(t, dir.Sweep(t.Context())) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			store, sweep := open(t)
			r := newRegistry(t, store, nil)
			for tag, img := range map[string]*pullthroughtest.Image{"v1": one, "v2": two, "v3": three} {
				r.up.Push("a", tag, img)
			}
			r.bring(t, "a", "v1")
			r.bring(t, "a", "v2")
			require.Equal(t, map[string][]string{"v1": {one.Digest.String()}, "v2": {two.Digest.String()}}, r.tagged(t))
			r.pull(t, "a", "v2")
			r.bring(t, "a", "v3")
			sweep()
			assert.Equal(t, map[string][]string{"v2": {two.Digest.String()}, "v3": {three.Digest.String()}}, r.tagged(t))
			out, err := r.api.DescribeImages(t.Context(), pullthrough.Identity{}, ecrapi.DescribeImagesInput{RepositoryName: new("hub/a")})
			require.NoError(t, err)
			assert.Len(t, out.ImageDetails, 2)
			r.fails(t, "DescribeImages", `{`+hubA+`,"imageIds":[{"imageTag":"v1"}]}`, "ImageNotFoundException",
				"The image with imageId {imageDigest:'null', imageTag:'v1'} does not exist within the repository with name 'hub/a' in the registry with id '123456789012'")

			r.wait(time.Hour)
			r.bring(t, "a", "v1")
			assert.Contains(t, r.tagged(t), "v1", "it is imported once more")
		})
	}
}

// The repository stays, as ECR's does when the last image expires.
func TestARepositoryStaysWhenAllIsEvicted(t *testing.T) {
	img, other := image(1), image(2)
	// Room for one image, its tag and its three links, also after an eighth was freed.
	store := &memstore.Store{MaxBytes: (wholeSize(img) + 4<<9) * 4 / 3}
	r := newRegistry(t, store, nil)
	r.up.Push("a", "v1", img)
	r.up.Push("b", "v1", other)
	r.bring(t, "a", "v1")
	r.bring(t, "b", "v1")
	_, err := store.Tags(t.Context(), repo("a"))
	require.Error(t, err, "the Store has dropped the repository")
	assert.Empty(t, r.tagged(t))
	assert.Equal(t, 200, r.request("GET", "/v2/hub/a/tags/list"))
	tags, err := r.proxy.Store.(pullthrough.TagLister).Tags(t.Context(), repo("a"))
	require.NoError(t, err)
	assert.Empty(t, tags)
	r.ok(t, "DescribeImages", `{`+hubA+`}`, `{"imageDetails":[]}`)
}

// A Store that cannot say what it has is not taken for one that has nothing.
func TestAStoreThatCannotBeAsked(t *testing.T) {
	store := &brokenLister{Store: memstore.New()}
	r := newRegistry(t, store, nil)
	r.up.Push("a", "v1", image(1))
	r.pull(t, "a", "v1")
	store.err = errors.New("the disk is gone")
	_, err := r.api.DescribeImages(t.Context(), pullthrough.Identity{}, ecrapi.DescribeImagesInput{RepositoryName: new("hub/a")})
	assert.ErrorIs(t, err, store.err)
	store.err = nil
	assert.Len(t, r.tagged(t), 1)
}

type brokenLister struct {
	*memstore.Store
	err error
}

func (s *brokenLister) Manifests(ctx context.Context, repo pullthrough.Repo) iter.Seq2[digest.Digest, error] {
	if s.err != nil {
		return func(yield func(digest.Digest, error) bool) { yield("", s.err) }
	}
	return s.Store.Manifests(ctx, repo)
}

// wholeSize is what a Store keeps of an image.
func wholeSize(img *pullthroughtest.Image) int64 { return sizeOf(img) + int64(len(img.Content)) }
