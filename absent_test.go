package pullthrough_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A manifest of one repository says nothing of another's blobs.
func TestSizesThatAManifestTellsStayInItsRepository(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	good := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 3000})
	w.Up.Push("nginx", "1", good)
	d := good.Layers[0].Digest
	evil := &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageManifest}
	evil.Content = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"digest":%q,"size":5},"layers":[]}`, evil.MediaType, d)
	evil.Digest = digest.FromBytes(evil.Content)
	w.Up.Push("evil", "1", evil)
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("evil"), Ref: "1"})
	require.NoError(t, err)
	w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, NoLength: true})
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/nginx/blobs/*", NoLength: true})
	w.PullBlob(t, "nginx", d)
	_, err = w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: d.String(), Head: true})
	assert.ErrorIs(t, err, pullthrough.ErrNotFound)
	assert.Equal(t, 1, w.Up.Count("GET /v2/nginx/blobs/*"))
}

func TestASizeThatWasALieIsForgotten(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	layer := w.Layer(100_000)
	liar := &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageManifest}
	liar.Content = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"digest":%q,"size":5},"layers":[]}`, liar.MediaType, layer.Digest)
	liar.Digest = digest.FromBytes(liar.Content)
	w.Up.Push("a", "lie", liar)
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "lie"})
	require.NoError(t, err)
	w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, NoLength: true})
	_, err = w.Open(t.Context(), layer.Digest)
	require.ErrorIs(t, err, pullthrough.ErrDigest)
	w.Settled(t)
	w.PullBlob(t, "a", layer.Digest)
	assert.Equal(t, 2, w.Up.Count(testkit.Blobs))
}

func TestManyHeadsOfAColdBlobAreOneRequest(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	layer := w.Layer(1000)
	gate := make(chan struct{})
	w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Stall: gate})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			b, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: layer.Digest.String(), Head: true})
			if assert.NoError(t, err) {
				assert.EqualValues(t, 1000, b.Descriptor.Size)
			}
		})
	}
	require.NoError(t, w.Up.Wait(t.Context(), testkit.Blobs, 1))
	close(gate)
	wg.Wait()
	assert.Equal(t, 1, w.Up.Count(testkit.Blobs))
}

func TestSizesOfColdBlobsAreTold(t *testing.T) {
	for name, known := range map[string]bool{"from the manifest": true, "from upstream": false} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			layer := w.Layer(500_000)
			want := []string{"GET /v2/a/blobs/" + layer.Digest.String() + " 206"}
			if known {
				_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
				require.NoError(t, err)
				w.Up.Reset()
				want = nil
			}
			for range 2 {
				b, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: layer.Digest.String(), Head: true})
				require.NoError(t, err)
				assert.EqualValues(t, 500_000, b.Descriptor.Size)
			}
			assert.Equal(t, want, w.Up.Log(), "an existence check downloads nothing")
		})
	}
}
