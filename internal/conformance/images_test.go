package conformance_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"math/rand"
	randv2 "math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"
)

// image is something to pull. Its content is the same on every run.
type image struct {
	name      string // in the names of the tests
	repo, tag string
	opaque    bool // ggcr's validate does not know it: no image configuration, or not gzip
	large     bool // read once, not over and over
	push      func(t testing.TB, to ref)
}

var (
	single = &image{
		name: "single", repo: "library/single", tag: "1.27",
		push: func(t testing.TB, to ref) { pushImage(t, to, ociImage(t, 1, 100, 64<<10, 3<<20)) },
	}
	docker = &image{
		name: "docker-schema2", repo: "single-component", tag: "latest",
		push: func(t testing.TB, to ref) {
			img, err := random.Image(8<<10, 3, random.WithSource(rand.NewSource(2)))
			require.NoError(t, err)
			pushImage(t, to, img)
		},
	}
	multiArch = &image{
		name: "multi-arch", repo: "library/multi", tag: "v1",
		push: pushMultiArch,
	}
	// The repository's name has components that are also words of the API.
	thirtyLayers = &image{
		name: "thirty-layers", repo: "odd/manifests/blobs/thirty", tag: "v30",
		push: func(t testing.TB, to ref) {
			sizes := make([]int64, 30)
			for i := range sizes {
				sizes[i] = int64(1000 + 1000*i)
			}
			pushImage(t, to, ociImage(t, 3, sizes...))
		},
	}
	zstdLayers = &image{
		name: "zstd", repo: "library/zstd", tag: "v1", opaque: true,
		push: pushZstd,
	}
	artifact = &image{
		name: "artifact", repo: "charts/artifact", tag: "0.1.0", opaque: true,
		push: func(t testing.TB, to ref) { pushArtifact(t, to, digest.SHA256) },
	}
	sha512Layer = &image{
		name: "sha512-layer", repo: "charts/sha512", tag: "0.1.0", opaque: true,
		push: func(t testing.TB, to ref) { pushArtifact(t, to, digest.SHA512) },
	}
	large = &image{
		name: "large", repo: "library/large", tag: "v1", large: true,
		push: func(t testing.TB, to ref) {
			layer, err := newTarLayer(300<<20, 4)
			require.NoError(t, err)
			img, err := mutate.AppendLayers(emptyOCI(), layer)
			require.NoError(t, err)
			pushImage(t, to, img)
		},
	}
)

func emptyOCI() v1.Image {
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	return mutate.ConfigMediaType(img, types.OCIConfigJSON)
}

// ociImage has one layer of random bytes, gzipped, for each size.
func ociImage(t testing.TB, seed int64, sizes ...int64) v1.Image {
	t.Helper()
	source := rand.NewSource(seed)
	var layers []v1.Layer
	for _, size := range sizes {
		layer, err := random.Layer(size, types.OCILayer, random.WithSource(source))
		require.NoError(t, err)
		layers = append(layers, layer)
	}
	img, err := mutate.AppendLayers(emptyOCI(), layers...)
	require.NoError(t, err)
	return img
}

func pushImage(t testing.TB, to ref, img v1.Image) {
	t.Helper()
	tag, err := name.NewTag(to.String())
	require.NoError(t, err)
	require.NoError(t, remote.Write(tag, img, remote.WithContext(t.Context())))
}

// pushMultiArch writes the index as the specification's Go types do: older
// skopeo refuses one that it would write differently.
func pushMultiArch(t testing.TB, to ref) {
	t.Helper()
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for i, arch := range []string{"amd64", "arm64", "s390x"} {
		img := ociImage(t, int64(10+i), 5000, 50_000)
		config, err := img.ConfigFile()
		require.NoError(t, err)
		config.OS, config.Architecture = "linux", arch
		img, err = mutate.ConfigFile(img, config)
		require.NoError(t, err)
		raw, err := img.RawManifest()
		require.NoError(t, err)
		child, err := name.NewDigest(to.digest(digest.FromBytes(raw)))
		require.NoError(t, err)
		require.NoError(t, remote.Write(child, img, remote.WithContext(t.Context())))

		desc := content.NewDescriptorFromBytes(ocispec.MediaTypeImageManifest, raw)
		desc.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		index.Manifests = append(index.Manifests, desc)
	}
	raw, err := json.Marshal(index)
	require.NoError(t, err)
	desc := content.NewDescriptorFromBytes(index.MediaType, raw)
	require.NoError(t, orasRepository(t, to).PushReference(t.Context(), desc, bytes.NewReader(raw), to.tag))
}

func pushZstd(t testing.TB, to ref) {
	t.Helper()
	var layers []v1.Layer
	for i := range int64(2) {
		plain, err := random.Layer(200_000, types.OCIUncompressedLayer, random.WithSource(rand.NewSource(20+i)))
		require.NoError(t, err)
		layer, err := tarball.LayerFromOpener(plain.Uncompressed,
			tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd))
		require.NoError(t, err)
		layers = append(layers, layer)
	}
	img, err := mutate.AppendLayers(emptyOCI(), layers...)
	require.NoError(t, err)
	pushImage(t, to, img)
}

// pushArtifact pushes one layer, named by alg, with OCI's empty configuration.
func pushArtifact(t testing.TB, to ref, alg digest.Algorithm) {
	t.Helper()
	ctx, repo := t.Context(), orasRepository(t, to)
	data := make([]byte, 100_000)
	_, _ = randv2.NewChaCha8([32]byte{5}).Read(data)
	layer := ocispec.Descriptor{
		MediaType: "application/vnd.conformance.data", Digest: alg.FromBytes(data), Size: int64(len(data)),
	}
	require.NoError(t, repo.Push(ctx, layer, bytes.NewReader(data)))

	root, manifest := packArtifact(t, layer)
	empty := ocispec.DescriptorEmptyJSON
	require.NoError(t, repo.Push(ctx, empty, bytes.NewReader(empty.Data)))
	require.NoError(t, repo.PushReference(ctx, root, bytes.NewReader(manifest), to.tag))
}

// packArtifact returns a manifest with one layer, and its descriptor. The
// configuration has no inline data: everybody must ask for it.
func packArtifact(t testing.TB, layer ocispec.Descriptor) (ocispec.Descriptor, []byte) {
	t.Helper()
	scratch := memory.New()
	config := ocispec.DescriptorEmptyJSON
	config.Data = nil
	root, err := oras.PackManifest(t.Context(), scratch, oras.PackManifestVersion1_1, "application/vnd.conformance.thing",
		oras.PackManifestOptions{
			ConfigDescriptor:    &config,
			Layers:              []ocispec.Descriptor{layer},
			ManifestAnnotations: map[string]string{ocispec.AnnotationCreated: "2026-01-01T00:00:00Z"},
		})
	require.NoError(t, err)
	rc, err := scratch.Fetch(t.Context(), root)
	require.NoError(t, err)
	defer func() { _ = rc.Close() }()
	manifest, err := io.ReadAll(rc)
	require.NoError(t, err)
	return root, manifest
}

// tarLayer is a tar with one file of random bytes, made anew at each reading:
// nothing is compressed, stored or kept in memory.
type tarLayer struct {
	size   int64 // of the file
	seed   byte
	digest v1.Hash
	length int64 // of the tar
}

func newTarLayer(size int64, seed byte) (*tarLayer, error) {
	l := &tarLayer{size: size, seed: seed}
	rc, err := l.Uncompressed()
	if err != nil {
		return nil, err
	}
	l.digest, l.length, err = v1.SHA256(rc)
	return l, err
}

func (l *tarLayer) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l *tarLayer) DiffID() (v1.Hash, error)            { return l.digest, nil }
func (l *tarLayer) Size() (int64, error)                { return l.length, nil }
func (l *tarLayer) MediaType() (types.MediaType, error) { return types.OCIUncompressedLayer, nil }
func (l *tarLayer) Compressed() (io.ReadCloser, error)  { return l.Uncompressed() }
func (l *tarLayer) Uncompressed() (io.ReadCloser, error) {
	header := &tar.Header{
		Typeflag: tar.TypeReg, Name: "random", Mode: 0o644, Size: l.size, ModTime: time.Unix(0, 0),
	}
	var head bytes.Buffer
	if err := tar.NewWriter(&head).WriteHeader(header); err != nil {
		return nil, err
	}
	body := io.LimitReader(randv2.NewChaCha8([32]byte{l.seed}), l.size)
	end := make([]byte, 512-1-(l.size+511)%512+1024) // to a whole block, and two empty ones
	return io.NopCloser(io.MultiReader(&head, body, bytes.NewReader(end))), nil
}
