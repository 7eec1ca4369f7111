package containerd_test

import (
	"context"
	"errors"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/transfer/image"
	transferlocal "github.com/containerd/containerd/v2/core/transfer/local"
	transferregistry "github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// chunk is what containerd fetches of a layer by one request, as max_concurrent_downloads
// and concurrent_layer_fetch_buffer of its configuration say. Each request is for all that
// follows its first byte; containerd hangs up when it has its chunk.
const chunk = 256 << 10

// containerdPull pulls by containerd's transfer service into a content store of its own,
// which verifies digests.
func containerdPull(t *testing.T, from string) (got []digest.Digest) {
	t.Helper()
	dir := t.TempDir()
	blobs, err := local.NewStore(dir)
	require.NoError(t, err)
	file, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, &bolt.Options{NoSync: true})
	require.NoError(t, err)
	defer func() { assert.NoError(t, file.Close()) }()
	db := metadata.NewDB(file, blobs, nil)
	ctx := namespaces.WithNamespace(t.Context(), "conformance")
	require.NoError(t, db.Init(ctx))

	source, err := transferregistry.NewOCIRegistry(ctx, from, transferregistry.WithDefaultScheme("http"))
	require.NoError(t, err)
	service := transferlocal.NewTransferService(db.ContentStore(), metadata.NewImageStore(db), transferlocal.TransferConfig{
		MaxConcurrentDownloads: 6, ConcurrentLayerFetchBuffer: chunk,
	})
	require.NoError(t, service.Transfer(ctx, source, image.NewStore(from)))
	require.NoError(t, db.ContentStore().Walk(ctx, func(i content.Info) error {
		got = append(got, i.Digest)
		return rehash(ctx, db.ContentStore(), i)
	}))
	return got
}

// rehash reads what the content store has once more.
func rehash(ctx context.Context, store content.Provider, i content.Info) error {
	data, err := content.ReadBlob(ctx, store, ocispec.Descriptor{Digest: i.Digest, Size: i.Size})
	if err == nil && digest.FromBytes(data) != i.Digest {
		err = errors.New("other content under " + i.Digest.String())
	}
	return err
}

// upstreamTroubles are what may befall the download of each layer, as a step of an
// upstream's script, and the statuses of the requests that a download then takes.
var upstreamTroubles = map[string]struct {
	step     string
	statuses []string
}{
	"none":              {"ok", []string{"200"}},
	"slow":              {"trickle 8000000", []string{"200"}},
	"cut in the middle": {"after 900000 cut", []string{"200", "206"}},
}

// containerd fetches the chunks of a layer at once, and hangs up on most of its requests.
// Upstream is asked for each object once.
func TestContainerdFetchesLayersInParallel(t *testing.T) {
	t.Parallel()
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{
		Seed: 1, Layers: 3, LayerSize: 9*chunk + 1, Platform: ocispec.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH},
	})
	objects := []digest.Digest{img.Digest}
	for _, b := range img.Blobs() {
		objects = append(objects, b.Digest)
	}
	for name, trouble := range upstreamTroubles {
		for mode, fill := range fills {
			t.Run(name+"/"+mode, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, pullthroughtest.Config{}, fill)
				w.Up.Push("app", "v1", img)
				want := []string{"GET /v2/app/manifests/v1 200", "GET /v2/app/blobs/" + img.Config.Digest.String() + " 200"}
				for _, layer := range img.Layers {
					get := "GET /v2/app/blobs/" + layer.Digest.String() + " "
					w.Up.Script(t, get+"200", trouble.step)
					for _, status := range trouble.statuses {
						want = append(want, get+status)
					}
				}
				from := w.ref("app", "v1")
				pull := func(when string) {
					assert.ElementsMatch(t, objects, containerdPull(t, from), when)
					middle := slices.DeleteFunc(w.takeRanges(), func(r string) bool { return r == "bytes=0-" })
					assert.Len(t, middle, 9*len(img.Layers), when)
				}
				pull("cold")
				assert.ElementsMatch(t, withoutParts(want), withoutParts(w.takeLog(t)))
				pull("warm")
				assert.Empty(t, w.takeLog(t))
				w.Up.Close()
				pull("upstream gone")
			})
		}
	}
}
