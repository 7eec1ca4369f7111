package pullthrough_test

import (
	"context"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestABlobIsVisibleOnlyWhereUpstreamHasIt(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("mine", "1", img)
	w.Pull(t, "mine", "1", img)
	w.Up.Reset()
	d := img.Blobs()[0].Digest
	_, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("theirs"), Ref: d.String()})
	assert.ErrorIs(t, err, pullthrough.ErrNotFound)
	assert.Equal(t, []string{"GET /v2/theirs/blobs/" + d.String() + " 404"}, w.Up.Log())
}

func TestDownloadsShowWhatIsOnItsWayAndWhoReads(t *testing.T) {
	up, enter := testkit.Piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		assert.Empty(t, w.Downloads())
		layer := w.Layer(4 << 20)
		stall := make(chan struct{})
		up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Stall: stall, StallAfter: new(int64(3 << 20))})
		open := func() *pullthrough.Blob {
			b, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: layer.Digest.String()})
			require.NoError(t, err)
			return b
		}
		first, second := open(), open()
		_, err := io.CopyN(io.Discard, first.Body, 1<<20)
		require.NoError(t, err)
		synctest.Wait()

		all := w.Downloads()
		require.Len(t, all, 1)
		assert.False(t, all[0].Began.IsZero())
		assert.Equal(t, testkit.Repo("a"), all[0].Repo)
		assert.Equal(t, layer.Digest, all[0].Digest)
		assert.Equal(t, "http://"+all[0].Upstream, up.URL)
		assert.EqualValues(t, 4<<20, all[0].Size)
		assert.EqualValues(t, 3<<20, all[0].Written)
		assert.Equal(t, []int64{0, 1 << 20}, all[0].Readers)

		require.NoError(t, first.Body.Close())
		assert.Equal(t, []int64{0}, w.Downloads()[0].Readers)
		close(stall)
		testkit.AssertBody(t, layer.Digest, second)
		w.Settled(t)
		assert.Empty(t, w.Downloads())
		assert.Equal(t, 1, up.Count(testkit.Blobs))
	})
}

// lateMiss is a Store whose look-up of a blob, the nth, answers when the gate is open: with
// what it saw before that.
type lateMiss struct {
	*memstore.Store
	nth   int64
	looks atomic.Int64
	seen  chan struct{}
	gate  *testkit.Gate
}

func (s *lateMiss) Blob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	b, err := s.Store.Blob(ctx, repo, d)
	if s.looks.Add(1) == s.nth {
		close(s.seen)
		<-s.gate.C
	}
	return b, err
}

// A cold pull looks into the Store once. Who has looked before a put, and comes to fetch
// after it, looks once more and fetches nothing.
func TestABlobIsLookedUpAgainAfterAPut(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	store := &lateMiss{Store: w.Mem, nth: 1, seen: make(chan struct{}), gate: testkit.NewGate(t)}
	w.Store = store
	layer := w.Layer(100_000)
	late := make(chan error, 1)
	go func() { late <- w.Whole(t.Context(), layer.Digest) }()
	<-store.seen
	require.NoError(t, w.Whole(t.Context(), layer.Digest))
	w.Settled(t)
	assert.EqualValues(t, 2, store.looks.Load(), "one for each")
	store.gate.Open()
	require.NoError(t, <-late)
	assert.EqualValues(t, 4, store.looks.Load(), "and two more, of which one is the hit")
	assert.Equal(t, 1, w.Up.Count(testkit.Blobs+layer.Digest.Encoded()+" 200"))
}

// An image whose layers are gone from the Store, such as one that a host has kept as JSON without them: the manifest is
// a hit, and a layer is a miss like any other.
func TestAStoredImageWhoseLayersAreGone(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 2, LayerSize: 100_000})
	lost := img.Layers[1]
	for name, c := range map[string]struct {
		rules pullthrough.StaticRules // nil: the rule is there
		fill  pullthrough.FillMode
		up    func(*pullthroughtest.Upstream)
		code  string // "": it is pulled
		asked []string
	}{
		"with the rule":                {asked: []string{"GET /v2/a/blobs/" + lost.Digest.String() + " 200"}},
		"with the rule, in background": {fill: pullthrough.FillBackground, asked: []string{"GET /v2/a/blobs/" + lost.Digest.String() + " 200"}},
		"with the rule, eagerly":       {fill: pullthrough.FillEager, asked: []string{"GET /v2/a/blobs/" + lost.Digest.String() + " 200"}},
		"without the rule":             {rules: pullthrough.StaticRules{}, code: "BLOB_UNKNOWN"},
		"with a rule of other names":   {rules: pullthrough.StaticRules{{Prefix: "other", UpstreamURL: "quay.io"}}, code: "BLOB_UNKNOWN"},
		"with the rule, and not upstream": {
			up:   func(up *pullthroughtest.Upstream) { up.Delete("a", lost.Digest.String()) },
			code: "BLOB_UNKNOWN", asked: []string{"GET /v2/a/blobs/" + lost.Digest.String() + " 404"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.Fill = c.fill
				if c.rules != nil {
					p.Rules = c.rules
				}
			})
			f.Up.Push("a", "1", img)
			if c.up != nil {
				c.up(f.Up)
			}
			keepWithout(t, f.Mem, testkit.Repo("a"), img, lost.Digest)
			testkit.AssertContent(t, f.Get(t, testkit.ManifestPath("a", "1")), img.Digest, img.MediaType, len(img.Content))
			testkit.AssertContent(t, f.Get(t, testkit.BlobPath("a", img.Layers[0].Digest)), img.Layers[0].Digest, testkit.OctetStream, 100_000)
			for range 2 {
				got := f.Get(t, testkit.BlobPath("a", lost.Digest))
				if c.code != "" {
					testkit.AssertOCI(t, got, 404, c.code)
					break
				}
				testkit.AssertContent(t, got, lost.Digest, testkit.OctetStream, 100_000)
				f.Settled(t)
			}
			assert.Equal(t, append([]string{}, c.asked...), append([]string{}, f.Up.Log()...), "once, and nothing but what is lost")
		})
	}
}

// keepWithout puts an image into a Store, but for one blob. Its tag is fresh.
func keepWithout(t *testing.T, s pullthrough.Store, repo pullthrough.Repo, img *pullthroughtest.Image, lost digest.Digest) {
	t.Helper()
	for _, b := range img.Blobs() {
		if b.Digest != lost {
			require.NoError(t, s.PutBlob(t.Context(), repo, ocispec.Descriptor{Digest: b.Digest, Size: b.Size}, b.Open()))
		}
	}
	require.NoError(t, s.PutManifest(t.Context(), repo, &pullthrough.Manifest{
		Descriptor: ocispec.Descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: int64(len(img.Content))}, Content: img.Content,
		Tag: "1", CheckedAt: time.Now(), Origin: "up.example",
	}))
}
