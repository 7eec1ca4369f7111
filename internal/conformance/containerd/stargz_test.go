package containerd_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/stargz-snapshotter/cache"
	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/fs/config"
	"github.com/containerd/stargz-snapshotter/fs/reader"
	"github.com/containerd/stargz-snapshotter/fs/remote"
	"github.com/containerd/stargz-snapshotter/metadata/memory"
	"github.com/containerd/stargz-snapshotter/service/resolver"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// lazyLayer is a layer that stargz can read in parts, with the files in it.
type lazyLayer struct {
	desc        ocispec.Descriptor
	toc, config digest.Digest
	files       map[string][]byte
}

// pushLazyLayer pushes an image that consists of such a layer.
func pushLazyLayer(t *testing.T, up *pullthroughtest.Upstream, repo, tag string) *lazyLayer {
	t.Helper()
	l := &lazyLayer{files: map[string][]byte{}}
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	for i := range 4 {
		name, data := "file"+strconv.Itoa(i), make([]byte, 700_000)
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(data)
		l.files[name] = data
		header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(0, 0)}
		require.NoError(t, tw.WriteHeader(header))
		_, err := tw.Write(data)
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	built, err := estargz.Build(io.NewSectionReader(bytes.NewReader(archive.Bytes()), 0, int64(archive.Len())), estargz.WithChunkSize(100_000))
	require.NoError(t, err)
	defer func() { assert.NoError(t, built.Close()) }()
	raw, err := io.ReadAll(built)
	require.NoError(t, err)

	l.toc = built.TOCDigest()
	l.desc = ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip, Digest: up.PushBlob(repo, raw), Size: int64(len(raw)),
		Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: l.toc.String()},
	}
	settings := []byte("{}")
	l.config = up.PushBlob(repo, settings)
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: l.config, Size: int64(len(settings))},
		Layers: []ocispec.Descriptor{l.desc},
	})
	require.NoError(t, err)
	up.Push(repo, tag, &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageManifest, Content: manifest})
	return l
}

// open is what the snapshotter does for each layer, when containerd has resolved the tag:
// it reads the table of contents at the layer's end, and then whatever a container reads.
// It has nothing in its own cache.
func (l *lazyLayer) open(t *testing.T, ref string) (remote.Blob, reader.Reader) {
	t.Helper()
	spec, err := reference.Parse(ref)
	require.NoError(t, err)
	plain := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))
	_, _, err = docker.NewResolver(docker.ResolverOptions{Hosts: plain}).Resolve(t.Context(), ref)
	require.NoError(t, err)
	hosts := resolver.RegistryHostsFromConfig(resolver.Config{})
	blob, err := remote.NewResolver(config.BlobConfig{}, nil).Resolve(t.Context(), hosts, spec, l.desc, cache.NewMemoryCache())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, blob.Close()) })
	assert.Equal(t, l.desc.Size, blob.Size())
	contents, err := memory.NewReader(io.NewSectionReader(readerAt{blob}, 0, blob.Size()))
	require.NoError(t, err)
	unverified, err := reader.NewReader(contents, cache.NewMemoryCache(), l.desc.Digest)
	require.NoError(t, err)
	files, err := unverified.VerifyTOC(l.toc)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, files.Close()) })
	return blob, files
}

type readerAt struct{ remote.Blob }

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return r.Blob.ReadAt(p, off) }

// assertRead reads a little of one file, all files at once, and the rest of the layer.
func (l *lazyLayer) assertRead(t *testing.T, ref, when string) {
	t.Helper()
	blob, files := l.open(t, ref)
	some := make([]byte, 1000)
	require.NoError(t, readFile(files, "file2", some, 350_000))
	assert.Equal(t, l.files["file2"][350_000:351_000], some, when)

	// Around what it has it asks for two ranges at once.
	around := make([]byte, 1_000_000)
	_, err := blob.ReadAt(around, 1_300_000)
	require.NoError(t, err)

	var all errgroup.Group
	for name, want := range l.files {
		all.Go(func() error {
			got := make([]byte, len(want))
			err := readFile(files, name, got, 0)
			assert.True(t, bytes.Equal(want, got), "%s, %s", name, when)
			return err
		})
	}
	require.NoError(t, all.Wait())
	require.NoError(t, blob.Cache(0, blob.Size()))
	whole, err := io.ReadAll(io.NewSectionReader(readerAt{blob}, 0, blob.Size()))
	require.NoError(t, err)
	assert.Equal(t, l.desc.Digest, digest.FromBytes(whole), when)
	assert.True(t, bytes.Equal(whole[1_300_000:2_300_000], around), when)
}

func readFile(files reader.Reader, name string, p []byte, off int64) error {
	id, _, err := files.Metadata().GetChild(files.Metadata().RootID(), name)
	if err != nil {
		return err
	}
	f, err := files.OpenFile(id)
	if err != nil {
		return err
	}
	_, err = f.ReadAt(p, off)
	return err
}

// stargz reads parts of a layer that nobody has pulled, from its end and from the middle,
// some of them by one request. What it reads is right, and upstream sends the layer once, but
// for what is far ahead.
func TestStargzReadsALayerInParts(t *testing.T) {
	t.Parallel()
	for mode, fill := range fills {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, pullthroughtest.Config{}, fill)
			l := pushLazyLayer(t, w.Up, "lazy", "esgz")
			layer := "GET /v2/lazy/blobs/" + l.desc.Digest.String() + " 200"
			want := []string{"GET /v2/lazy/manifests/esgz 200", layer}
			if fill != pullthrough.FillLazy {
				want = append(want, "GET /v2/lazy/blobs/"+l.config.String()+" 200")
			}
			ref := w.ref("lazy", "esgz")
			l.assertRead(t, ref, "cold")
			assert.True(t, slices.ContainsFunc(w.takeRanges(), func(r string) bool { return strings.Contains(r, ",") }))
			w.Settled(t)
			var sent int64
			for _, r := range w.Up.Requests() {
				if strings.HasSuffix(r.Path, l.desc.Digest.String()) {
					sent += r.Bytes
				}
			}
			assert.LessOrEqual(t, sent, l.desc.Size*102/100+4<<20)
			assert.ElementsMatch(t, want, withoutParts(w.takeLog(t)))
			l.assertRead(t, ref, "warm")
			assert.Empty(t, w.takeLog(t))
			w.Up.Close()
			l.assertRead(t, ref, "upstream gone")
		})
	}
}
