package pullthroughtest_test

import (
	"bytes"
	"encoding/json"
	"io"
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestNewImage(t *testing.T) {
	arm := ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	subject := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 9})
	for _, c := range []struct {
		name              string
		o                 pullthroughtest.ImageOptions
		layers            int
		size              int64
		mediaType, config string
	}{
		{"zero", pullthroughtest.ImageOptions{}, 1, 1 << 10, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig},
		{"docker", pullthroughtest.ImageOptions{Docker: true, Layers: 3, LayerSize: 7}, 3, 7,
			"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.container.image.v1+json"},
		{"artifact", pullthroughtest.ImageOptions{ArtifactType: "application/x", Subject: subject}, 1, 1 << 10,
			ocispec.MediaTypeImageManifest, ocispec.MediaTypeEmptyJSON},
		{"sha512", pullthroughtest.ImageOptions{Algorithm: digest.SHA512}, 1, 1 << 10,
			ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig},
		{"no layers", pullthroughtest.ImageOptions{Layers: -1}, 0, 0,
			ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig},
		{"empty layers", pullthroughtest.ImageOptions{LayerSize: -1, Platform: arm}, 1, 0,
			ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := pullthroughtest.NewImage(c.o)
			assert.Equal(t, img, pullthroughtest.NewImage(c.o), "not the same again")
			algorithm := c.o.Algorithm
			if algorithm == "" {
				algorithm = digest.SHA256
			}
			assert.Equal(t, algorithm.FromBytes(img.Content), img.Digest)
			var manifest ocispec.Manifest
			require.NoError(t, json.Unmarshal(img.Content, &manifest))
			assert.Equal(t, c.mediaType, manifest.MediaType)
			assert.Equal(t, c.mediaType, img.MediaType)
			assert.Equal(t, c.config, manifest.Config.MediaType)
			assert.Equal(t, c.o.ArtifactType, manifest.ArtifactType)
			require.Len(t, manifest.Layers, c.layers)
			assert.Equal(t, c.o.Subject != nil, manifest.Subject != nil)
			blobs := img.Blobs()
			require.Len(t, blobs, 1+c.layers)
			for i, d := range append([]ocispec.Descriptor{manifest.Config}, manifest.Layers...) {
				data := content(t, blobs[i])
				assert.Equal(t, d, blobs[i].Descriptor())
				assert.Equal(t, algorithm.FromBytes(data), d.Digest)
				assert.Len(t, data, int(d.Size))
				if i > 0 {
					assert.Equal(t, c.size, d.Size)
				}
			}
		})
	}
}

func TestSeedsDiffer(t *testing.T) {
	seen := map[digest.Digest]bool{}
	for seed := range int64(3) {
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: seed, Layers: 2})
		for _, d := range []digest.Digest{img.Digest, img.Config.Digest, img.Layers[0].Digest, img.Layers[1].Digest} {
			assert.False(t, seen[d])
			seen[d] = true
		}
	}
}

func TestNewIndex(t *testing.T) {
	oci := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	docker := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Docker: true})
	list := "application/vnd.docker.distribution.manifest.list.v2+json"
	for _, c := range []struct {
		name      string
		children  []*pullthroughtest.Image
		mediaType string
	}{
		{"oci", []*pullthroughtest.Image{oci}, ocispec.MediaTypeImageIndex},
		{"docker", []*pullthroughtest.Image{docker, docker}, list},
		{"mixed", []*pullthroughtest.Image{docker, oci}, ocispec.MediaTypeImageIndex},
		{"empty", nil, ocispec.MediaTypeImageIndex},
		{"nested", []*pullthroughtest.Image{pullthroughtest.NewIndex(docker)}, list},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := pullthroughtest.NewIndex(c.children...)
			var index ocispec.Index
			require.NoError(t, json.Unmarshal(img.Content, &index))
			assert.Equal(t, c.mediaType, index.MediaType)
			assert.Equal(t, c.mediaType, img.MediaType)
			assert.Equal(t, digest.FromBytes(img.Content), img.Digest)
			require.Len(t, index.Manifests, len(c.children))
			for i, child := range c.children {
				assert.Equal(t, child.Descriptor(), index.Manifests[i])
			}
		})
	}
	require.NotNil(t, oci.Descriptor().Platform)
	assert.Equal(t, "amd64", oci.Descriptor().Platform.Architecture)
	assert.Nil(t, pullthroughtest.NewIndex(oci).Descriptor().Platform)
}

// Content that reads the same from any offset is what ranges, resumes and verification rest on.
func TestLargeLayersAreTheSameFromEveryOffset(t *testing.T) {
	const size = 3<<20 + 12345
	layer := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: size}).Layers[0]
	whole := content(t, layer)
	require.Len(t, whole, size)
	assert.False(t, bytes.Equal(whole[:1<<20], whole[1<<20:2<<20]), "blocks repeat")
	for _, offset := range []int64{0, 1, 1<<20 - 1, 1 << 20, 1<<20 + 3, 1<<20 + 8, 2<<20 - 5, 3 << 20, size - 1} {
		part := make([]byte, min(100, size-offset))
		_, err := layer.Open().ReadAt(part, offset)
		require.NoError(t, err)
		assert.Equal(t, whole[offset:offset+int64(len(part))], part, offset)
	}
}

func TestLargeLayersTakeNoMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	layer := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 64 << 20}).Layers[0]
	_, err := io.Copy(io.Discard, layer.Open())
	require.NoError(t, err)
	runtime.ReadMemStats(&after)
	assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(8<<20))
}

func BenchmarkPull(b *testing.B) {
	up := pullthroughtest.New(b, pullthroughtest.Config{})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 256 << 20})
	up.Push("a", "", img)
	b.SetBytes(img.Layers[0].Size)
	buf := make([]byte, 1<<20)
	for b.Loop() {
		resp, err := up.Client().Get(up.URL + "/v2/a/blobs/" + img.Layers[0].Digest.String())
		require.NoError(b, err)
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf)
		require.NoError(b, err)
		require.Equal(b, img.Layers[0].Size, n)
		require.NoError(b, resp.Body.Close())
	}
}

func BenchmarkNoise(b *testing.B) {
	layer := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 64 << 20}).Layers[0]
	b.SetBytes(layer.Size)
	for b.Loop() {
		_, err := io.Copy(struct{ io.Writer }{io.Discard}, layer.Open())
		require.NoError(b, err)
	}
}
