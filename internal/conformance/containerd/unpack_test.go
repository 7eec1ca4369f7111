package containerd_test

import (
	"archive/tar"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/transfer/image"
	transferlocal "github.com/containerd/containerd/v2/core/transfer/local"
	transferregistry "github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/core/unpack"
	decompress "github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// containerdUnpack pulls by containerd's transfer service, lets it unpack the image of a
// platform, and returns the root filesystem. containerd compares what it has unpacked with
// what the config lists, and mounts each snapshot, which takes root.
func containerdUnpack(t *testing.T, from string, platform ocispec.Platform) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may mount")
	}
	dir := t.TempDir()
	blobs, err := local.NewStore(filepath.Join(dir, "content"))
	require.NoError(t, err)
	snapshotter, err := native.NewSnapshotter(filepath.Join(dir, "native"))
	require.NoError(t, err)
	file, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, &bolt.Options{NoSync: true})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, file.Close()) })
	db := metadata.NewDB(file, blobs, map[string]snapshots.Snapshotter{"native": snapshotter})
	ctx := namespaces.WithNamespace(t.Context(), "conformance")
	require.NoError(t, db.Init(ctx))

	source, err := transferregistry.NewOCIRegistry(ctx, from, transferregistry.WithDefaultScheme("http"))
	require.NoError(t, err)
	only := platforms.OnlyStrict(platform)
	service := transferlocal.NewTransferService(db.ContentStore(), metadata.NewImageStore(db), transferlocal.TransferConfig{
		MaxConcurrentDownloads: 3,
		UnpackPlatforms: []unpack.Platform{{
			Platform: only, SnapshotterKey: "native", Snapshotter: db.Snapshotter("native"), Applier: apply.NewFileSystemApplier(db.ContentStore()),
		}},
	})
	to := image.NewStore(from, image.WithPlatforms(platform), image.WithUnpack(platform, "native"))
	require.NoError(t, service.Transfer(ctx, source, to))

	stored, err := metadata.NewImageStore(db).Get(ctx, from)
	require.NoError(t, err)
	layers, err := stored.RootFS(ctx, db.ContentStore(), only)
	require.NoError(t, err)
	mounts, err := db.Snapshotter("native").View(ctx, "view", identity.ChainID(layers).String())
	require.NoError(t, err)
	require.Len(t, mounts, 1)
	return mounts[0].Source
}

// containerd unpacks the images of pullthroughtest, in every form. What it asks upstream
// for is each object once.
func TestContainerdUnpacks(t *testing.T) {
	t.Parallel()
	files := fstest.MapFS{
		"etc":         {Mode: fs.ModeDir | 0o755},
		"etc/name":    {Data: []byte("unpacked"), Mode: 0o640},
		"etc/link":    {Data: []byte("name"), Mode: fs.ModeSymlink | 0o777},
		"large/zeros": {Data: make([]byte, 300<<10), Mode: 0o600},
	}
	arm := ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
	for name, o := range map[string]pullthroughtest.ImageOptions{
		"gzip":                {Compression: "gzip"},
		"zstd":                {Compression: "zstd"},
		"uncompressed":        {Compression: "none"},
		"Docker":              {Docker: true},
		"Docker zstd":         {Docker: true, Compression: "zstd"},
		"Docker uncompressed": {Docker: true, Compression: "none"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o.Files, o.Layers, o.LayerSize, o.Platform = files, 3, 2<<20+1, arm
			img := pullthroughtest.NewImage(o)
			w := newWorld(t, pullthroughtest.Config{}, pullthrough.FillLazy)
			w.Up.Push("app", "v1", pullthroughtest.NewIndex(img, pullthroughtest.NewAttestation(img)))
			root := os.DirFS(containerdUnpack(t, w.ref("app", "v1"), arm))

			content, err := fs.ReadFile(root, "etc/link")
			require.NoError(t, err)
			assert.Equal(t, "unpacked", string(content))
			content, err = fs.ReadFile(root, "large/zeros")
			require.NoError(t, err)
			assert.Equal(t, files["large/zeros"].Data, content)
			for name, mode := range map[string]fs.FileMode{"etc": fs.ModeDir | 0o755, "etc/name": 0o640, "layer-1": 0o644, "layer-2": 0o644} {
				info, err := fs.Stat(root, name)
				require.NoError(t, err)
				assert.Equal(t, mode, info.Mode(), name)
			}
			log := withoutParts(w.takeLog(t))
			slices.Sort(log)
			assert.Equal(t, slices.Compact(slices.Clone(log)), log, "each object once")
		})
	}
}

func TestContainerdUnpacksHelloWhichRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t, pullthroughtest.Config{}, pullthrough.FillLazy)
	w.Up.Push("hello", "v1", pullthroughtest.NewHello())
	for _, architecture := range []string{"amd64", "arm64"} {
		root := containerdUnpack(t, w.ref("hello", "v1"), ocispec.Platform{OS: "linux", Architecture: architecture})
		if architecture != runtime.GOARCH {
			assert.FileExists(t, filepath.Join(root, "hello"))
			continue
		}
		out, err := exec.CommandContext(t.Context(), filepath.Join(root, "hello")).Output()
		require.NoError(t, err)
		assert.Equal(t, pullthroughtest.HelloOutput, string(out))
	}
	assert.Equal(t, 1, w.Up.Count("GET /v2/hello/manifests/v1 200"))
	assert.Equal(t, 2, w.Up.Count("GET /v2/hello/manifests/sha256:* 200"), "both platforms")
	assert.Equal(t, 4, w.Up.Count("GET /v2/hello/blobs/* 200"))
}

// Layers of any size are what their config says when containerd has decompressed them.
func TestLayersOfAnySizeDecompress(t *testing.T) {
	t.Parallel()
	for compression, least := range map[string]int64{"gzip": 220, "zstd": 220, "none": 1536} {
		sizes := []int64{least, least + 1000, 128<<10 - 1, 3 << 20}
		for near := int64(128<<10 - 5); near < 128<<10+400; near += 7 {
			sizes = append(sizes, near)
		}
		for _, size := range sizes {
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: size, Compression: compression})
			layer := img.Layers[0]
			require.Equal(t, size, layer.Size)
			r, err := decompress.DecompressStream(layer.Open())
			require.NoError(t, err)
			hash := digest.SHA256.Digester()
			list := tar.NewReader(io.TeeReader(r, hash.Hash()))
			header, err := list.Next()
			require.NoError(t, err)
			require.Equal(t, "layer-0", header.Name)
			_, err = list.Next()
			require.ErrorIs(t, err, io.EOF)
			_, err = io.Copy(hash.Hash(), r)
			require.NoError(t, err)
			require.NoError(t, r.Close())
			var config ocispec.Image
			require.NoError(t, json.NewDecoder(img.Config.Open()).Decode(&config))
			require.Equal(t, []digest.Digest{hash.Digest()}, config.RootFS.DiffIDs, "%s, %d", compression, size)
		}
	}
}
