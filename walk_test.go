package pullthrough_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// importBehaviours are about whole images.
var importBehaviours = []row{
	{"A76", "does not have a part of an image, or keeps it back (404, 400, 401, 403, a redirect that leads nowhere)",
		"an import brings in all else; its error, its progress and an event name what is missing. With `FillEager` the image is stored if that is missing for good (404)", testAnImportGoesOnBesideWhatIsMissing},
	{"A77", "does not have a foreign layer",
		"it is named in an event; the image is stored, and whole", testForeignLayersAreNotMissed},
	{"A78", "has indexes of layers, as a build cache is",
		"the media type of a descriptor decides: what is no manifest is a blob. The cache is there when upstream is gone", testABuildCacheIsThereWhenUpstreamIsGone},
	{"A79", "has indexes in indexes, at any depth",
		"each object is visited once, up to 10,000 of an image", testAnImportVisitsEachObjectOnce},
	{"A80", "fails in passing while an image is imported",
		"an object is tried again, up to 5 times within 2 minutes, and then by the next pull of the image", testAnImportTriesAgainWhatFailsInPassing},
	{"A81", "is slow while many images are imported",
		"clients go before parts, and parts wait as long as it takes: all of them arrive", testImportsInTheBackgroundStarveNoClient},
}

func TestUpstreamImports(t *testing.T) { testkit.RunRows(t, importBehaviours) }

// imports are the ways to bring in a whole image.
var imports = map[string]pullthrough.FillMode{"background": pullthrough.FillBackground, "eager": pullthrough.FillEager}

func filling(mode pullthrough.FillMode, heard *testkit.Events) func(*pullthrough.Proxy) {
	return func(p *pullthrough.Proxy) {
		p.Fill = mode
		if heard != nil {
			p.OnEvent = heard.On
		}
	}
}

// policy sets the Policy of all rules.
func policy(p *pullthrough.Proxy, pol pullthrough.Policy) {
	p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy { return pol }
}

// hasBlob reports whether the Store has the blob in the repository a.
func hasBlob(t *testing.T, w *testkit.World, d digest.Digest) bool {
	t.Helper()
	_, err := w.Mem.Blob(t.Context(), testkit.Repo("a"), d)
	return err == nil
}

// hasManifest reports whether the Store has the manifest in the repository a.
func hasManifest(t *testing.T, w *testkit.World, ref string) bool {
	t.Helper()
	_, err := w.Mem.Manifest(t.Context(), testkit.Repo("a"), ref)
	return err == nil
}

// missing are the digests that events say are missing of an image.
func missing(heard *testkit.Events) (all []digest.Digest) {
	for _, e := range heard.Of(pullthrough.EventFetch) {
		for _, d := range e.Missing {
			all = append(all, d.Digest)
		}
	}
	return all
}

// One child or layer that is not to be had keeps nothing else from being imported.
func testAnImportGoesOnBesideWhatIsMissing(t *testing.T) {
	answers := map[string]struct {
		fault   pullthroughtest.Fault
		forGood bool
	}{
		"404":      {pullthroughtest.Fault{Status: 404}, true},
		"400":      {pullthroughtest.Fault{Status: 400}, false},
		"401":      {pullthroughtest.Fault{Status: 401}, false},
		"403":      {pullthroughtest.Fault{Status: 403}, false},
		"redirect": {pullthroughtest.Fault{Redirect: "ftp://elsewhere.example/"}, false},
	}
	for mode, fill := range imports {
		for name, answer := range answers {
			t.Run(mode+"/child/"+name, func(t *testing.T) {
				heard := new(testkit.Events)
				w := testkit.NewWorld(t, pullthroughtest.Config{}, filling(fill, heard))
				index, children := platforms(w)
				bad := children[0].Digest
				answer.fault.Match = "GET /v2/a/manifests/" + bad.String()
				w.Up.Fault(answer.fault)
				_, err := w.Tagged(t, "1")
				require.NoError(t, err)
				assert.True(t, holds(t, w, children[1]))
				assert.True(t, holds(t, w, children[2]))
				assert.Equal(t, answer.forGood || fill == pullthrough.FillBackground, hasManifest(t, w, index.Digest.String()), "the index")
				assert.Equal(t, []digest.Digest{bad}, missing(heard))
				assert.Equal(t, 1+3+6, w.Up.Count("*"), "each object once")
			})
			t.Run(mode+"/layer/"+name, func(t *testing.T) {
				heard := new(testkit.Events)
				w := testkit.NewWorld(t, pullthroughtest.Config{}, filling(fill, heard))
				index, children := platforms(w)
				bad := children[0].Layers[0].Digest
				answer.fault.Match = "GET /v2/a/blobs/" + bad.String()
				w.Up.Fault(answer.fault)
				_, err := w.Tagged(t, "1")
				require.NoError(t, err)
				assert.True(t, holds(t, w, children[1]))
				assert.True(t, holds(t, w, children[2]))
				assert.True(t, hasBlob(t, w, children[0].Layers[1].Digest))
				stored := answer.forGood || fill == pullthrough.FillBackground
				assert.Equal(t, stored, hasManifest(t, w, index.Digest.String()), "the index")
				assert.Equal(t, stored, hasManifest(t, w, children[0].Digest.String()), "the image")
				assert.Contains(t, missing(heard), bad)
				assert.Equal(t, 1+3+9, w.Up.Count("*"), "each object once")
			})
		}
	}
}

func TestAnImportNamesWhatIsMissing(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	_, children := platforms(w)
	gone, refused := children[0].Digest, children[1].Layers[0].Digest
	w.Up.Delete("a", gone.String())
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/" + refused.String(), Status: 403})
	var mu sync.Mutex
	failed := map[digest.Digest]error{}
	m, err := w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}, pullthrough.ImportOptions{
		Progress: func(d ocispec.Descriptor, _ int64, stored bool, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed[d.Digest] = err
				assert.False(t, stored)
			}
		},
	})
	require.NotNil(t, m, "it is there")
	e, ok := errors.AsType[*pullthrough.Error](err)
	require.True(t, ok, "%v", err)
	assert.Equal(t, pullthrough.ErrDenied, e.Kind, "what may come later counts most")
	assert.ErrorIs(t, err, pullthrough.ErrNotFound)
	assert.ErrorContains(t, err, "the image is not complete, 2 of 9 objects are missing")
	for _, d := range []digest.Digest{gone, refused} {
		assert.ErrorContains(t, err, d.String())
	}
	require.Len(t, failed, 2)
	assert.ErrorIs(t, failed[gone], pullthrough.ErrNotFound)
	assert.ErrorIs(t, failed[refused], pullthrough.ErrDenied)
	assert.True(t, holds(t, w, children[2]))
	assert.Equal(t, 1+3+6, w.Up.Count("*"))
}

// entry is a descriptor of content.
func entry(mediaType string, content []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return b
}

const cacheConfigType = "application/vnd.buildkit.cacheconfig.v0"

// buildCache pushes a build cache as BuildKit exports it to a registry, as a:cache, and
// returns its blobs. It is an index of layers and a configuration, or, with
// image-manifest=true, an image.
func buildCache(t *testing.T, w *testkit.World, asImage bool) (d digest.Digest, blobs [][]byte) {
	t.Helper()
	layers := [][]byte{[]byte("first layer"), []byte("second layer")}
	var descriptors []ocispec.Descriptor
	for _, layer := range layers {
		l := entry(ocispec.MediaTypeImageLayerGzip, layer)
		l.Annotations = map[string]string{"buildkit/createdat": "2026-01-02T03:04:05Z", "containerd.io/uncompressed": l.Digest.String()}
		descriptors = append(descriptors, l)
	}
	config := marshal(t, map[string]any{
		"layers": []map[string]any{
			{"blob": descriptors[0].Digest, "parent": -1},
			{"blob": descriptors[1].Digest, "parent": 0},
		},
		"records": []map[string]any{{"digest": digest.FromString("step"), "results": []map[string]any{{"layer": 1}}}},
	})
	img := &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageManifest}
	if asImage {
		img.Content = marshal(t, ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: img.MediaType,
			Config: entry(cacheConfigType, config), Layers: descriptors,
		})
	} else {
		img.MediaType = ocispec.MediaTypeImageIndex
		img.Content = marshal(t, ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: img.MediaType,
			Manifests: append(descriptors, entry(cacheConfigType, config)),
		})
	}
	w.Up.Push("a", "cache", img)
	blobs = append(layers, config)
	for _, b := range blobs {
		w.Up.PushBlob("a", b)
	}
	return digest.FromBytes(img.Content), blobs
}

func testABuildCacheIsThereWhenUpstreamIsGone(t *testing.T) {
	modes := map[string]pullthrough.FillMode{"lazy": pullthrough.FillLazy}
	for name, mode := range imports {
		modes[name] = mode
	}
	for name, mode := range modes {
		for form, asImage := range map[string]bool{"index": false, "image": true} {
			t.Run(name+"/"+form, func(t *testing.T) {
				w := testkit.NewWorld(t, pullthroughtest.Config{}, filling(mode, nil))
				d, blobs := buildCache(t, w, asImage)
				m, err := w.Tagged(t, "cache")
				require.NoError(t, err)
				assert.Equal(t, d, m.Descriptor.Digest)
				if mode == pullthrough.FillLazy {
					for _, b := range blobs {
						w.PullBlob(t, "a", digest.FromBytes(b))
					}
					w.Settled(t)
				}
				assert.Equal(t, 1+len(blobs), w.Up.Count("*"), "and no layer is asked for as a manifest")
				w.Up.Fault(pullthroughtest.Fault{Status: 500})
				w.Up.Reset()
				again, err := w.Tagged(t, "cache")
				require.NoError(t, err)
				assert.Equal(t, m.Content, again.Content)
				for _, b := range blobs {
					w.PullBlob(t, "a", digest.FromBytes(b))
				}
				assert.Empty(t, w.Up.Log())
			})
		}
	}
	t.Run("Import", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
		_, blobs := buildCache(t, w, false)
		_, err := w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "cache"}, pullthrough.ImportOptions{
			Platforms: []ocispec.Platform{{OS: "linux", Architecture: "arm64"}}, // of no concern for what is no image
		})
		require.NoError(t, err)
		for _, b := range blobs {
			assert.True(t, hasBlob(t, w, digest.FromBytes(b)))
		}
		assert.Equal(t, 1+len(blobs), w.Up.Count("*"))
	})
}

// A foreign layer need not be in any registry.
func testForeignLayersAreNotMissed(t *testing.T) {
	for mode, fill := range imports {
		for _, status := range []int{404, 403, 400} {
			t.Run(fmt.Sprint(mode, status), func(t *testing.T) {
				heard := new(testkit.Events)
				w := testkit.NewWorld(t, pullthroughtest.Config{}, filling(fill, heard))
				img := testkit.Image(1)
				foreign := entry("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", []byte("windows"))
				var doc ocispec.Manifest
				require.NoError(t, json.Unmarshal(img.Content, &doc))
				doc.Layers = append(doc.Layers, foreign)
				img.Content, img.Digest = marshal(t, doc), ""
				w.Up.Push("a", "1", img)
				w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/" + foreign.Digest.String(), Status: status})
				_, err := w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}, pullthrough.ImportOptions{})
				assert.NoError(t, err)
				w.Settled(t)
				assert.True(t, hasManifest(t, w, "1"))
				assert.Contains(t, missing(heard), foreign.Digest)
			})
		}
	}
}

// nested pushes indexes of n indexes each, in so many levels, as a:nested. They share
// all that they list.
func nested(t *testing.T, w *testkit.World, n, levels int) {
	t.Helper()
	img := testkit.Image(1)
	w.Up.Push("a", "", img)
	below := []ocispec.Descriptor{img.Descriptor()}
	for level := range levels {
		var this []ocispec.Descriptor
		for i := range n {
			content := marshal(t, ocispec.Index{
				Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: below,
				Annotations: map[string]string{"n": fmt.Sprint(level, i)},
			})
			w.Up.Push("a", "nested", &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageIndex, Content: content})
			this = append(this, entry(ocispec.MediaTypeImageIndex, content))
		}
		below = this
	}
	top := marshal(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: below})
	w.Up.Push("a", "nested", &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageIndex, Content: top})
}

// counting counts look-ups of manifests and blobs.
type counting struct {
	*memstore.Store
	n atomic.Int64
}

func (s *counting) Manifest(ctx context.Context, r pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	s.n.Add(1)
	return s.Store.Manifest(ctx, r, ref)
}

func (s *counting) Blob(ctx context.Context, r pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	s.n.Add(1)
	return s.Store.Blob(ctx, r, d)
}

func testAnImportVisitsEachObjectOnce(t *testing.T) {
	for mode, fill := range map[string]pullthrough.FillMode{"lazy": pullthrough.FillLazy, "background": pullthrough.FillBackground, "eager": pullthrough.FillEager} {
		for _, shape := range []struct{ n, levels int }{{16, 4}, {2, 40}} {
			t.Run(fmt.Sprint(mode, shape), func(t *testing.T) {
				store := &counting{Store: memstore.New()}
				w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store, p.Fill = store, fill })
				nested(t, w, shape.n, shape.levels)
				_, err := w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "nested"}, pullthrough.ImportOptions{})
				require.NoError(t, err)
				w.Settled(t)
				objects := 1 + shape.n*shape.levels + 3
				assert.Equal(t, objects, w.Up.Count("*"))
				assert.Less(t, store.n.Load(), int64(8*objects), "look-ups")
			})
		}
	}
}

// allBlobs has every blob, and notes how often it was asked.
type allBlobs struct{ *counting }

func (s allBlobs) Blob(_ context.Context, _ pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	s.n.Add(1)
	return pullthrough.NewBlob(d, []byte("any")), nil
}

func TestAnImageOfTooManyObjectsIsNotImportedWhole(t *testing.T) {
	store := allBlobs{&counting{Store: memstore.New()}}
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store = store })
	var children []ocispec.Descriptor
	for i := range 2 {
		var layers []ocispec.Descriptor
		for j := range 6000 {
			layers = append(layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString(fmt.Sprint(i, j)), Size: 3})
		}
		content := marshal(t, ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
			Config: entry(ocispec.MediaTypeImageConfig, []byte("{}")), Layers: layers,
		})
		w.Up.Push("a", "", &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageManifest, Content: content})
		children = append(children, entry(ocispec.MediaTypeImageManifest, content))
	}
	top := marshal(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: children})
	w.Up.Push("a", "huge", &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageIndex, Content: top})
	var told sync.Map
	_, err := w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "huge"}, pullthrough.ImportOptions{
		Progress: func(d ocispec.Descriptor, _ int64, _ bool, _ error) { told.Store(d.Digest, nil) },
	})
	assert.ErrorIs(t, err, pullthrough.ErrTooLarge)
	assert.Equal(t, 3, w.Up.Count("*"))
	objects := 0
	for range told.Range {
		objects++
	}
	assert.LessOrEqual(t, objects, 10_000+1, "what comes on top is not visited")
	assert.LessOrEqual(t, store.n.Load(), int64(10_000+20))
}

// The manifests that the imports of a rule work on have 64 MiB together.
func TestManifestsOfAnImportAreBounded(t *testing.T) {
	push := func(w *testkit.World, layers ...ocispec.Descriptor) {
		w.LeaveForImports(testkit.Repo("a"), 64<<10)
		var children []ocispec.Descriptor
		for i := range 8 {
			content := marshal(t, ocispec.Index{
				Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: append([]ocispec.Descriptor{}, layers...),
				Annotations: map[string]string{"n": fmt.Sprint(i), "pad": strings.Repeat("x", 10<<10)},
			})
			w.Up.Push("a", "", &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageIndex, Content: content})
			children = append(children, entry(ocispec.MediaTypeImageIndex, content))
		}
		top := marshal(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: children})
		w.Up.Push("a", "huge", &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageIndex, Content: top})
	}
	huge := pullthrough.Request{Repo: testkit.Repo("a"), Ref: "huge"}
	t.Run("at a time", func(t *testing.T) {
		testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
			layer := []byte("all wait for it")
			w.Up.PushBlob("a", layer)
			push(w, entry(ocispec.MediaTypeImageLayer, layer))
			gate := make(chan struct{})
			w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Stall: gate, Times: 1})
			time.AfterFunc(time.Second, func() { close(gate) })
			_, err := w.Import(t.Context(), huge, pullthrough.ImportOptions{})
			assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
			assert.ErrorContains(t, err, "too large together")
			assert.ErrorContains(t, err, "2 of 9 objects are missing")
			assert.Equal(t, 10, w.Up.Count("*"))
			for range 50 { // the layer is there, but how many are worked on at a time is chance
				if _, err = w.Import(t.Context(), huge, pullthrough.ImportOptions{}); err == nil {
					break
				}
			}
			assert.NoError(t, err)
		})
	})
	t.Run("one after the other", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
		push(w)
		_, err := w.Import(t.Context(), huge, pullthrough.ImportOptions{})
		assert.NoError(t, err, "what is done is not counted any more")
		assert.Equal(t, 9, w.Up.Count("*"))
	})
}

// twelve pushes an image of twelve layers as a:1, of which one fails so many times.
func twelve(w *testkit.World, times int) *pullthroughtest.Image {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 12, Layers: 12})
	w.Up.Push("a", "1", img)
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/" + img.Layers[5].Digest.String(), Times: times, Status: 503})
	return img
}

func testAnImportTriesAgainWhatFailsInPassing(t *testing.T) {
	for mode, fill := range imports {
		for name, retries := range map[string]int{"Policy.Retries": 0, "no retries": -1} {
			t.Run(mode+"/"+name, func(t *testing.T) {
				testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
					w.Fill = fill
					policy(w.Proxy, pullthrough.Policy{Retries: retries})
					img := twelve(w, 4)
					start := time.Now()
					_, err := w.Tagged(t, "1")
					require.NoError(t, err)
					assert.True(t, holds(t, w, img))
					assert.Less(t, time.Since(start), time.Minute)
					assert.Equal(t, 1+13+4, w.Up.Count("*"))
				})
			})
		}
	}
}

// What fails for longer is left for the next pull.
func TestAnImportIsTakenUpByTheNextPull(t *testing.T) {
	for mode, fill := range imports {
		t.Run(mode, func(t *testing.T) {
			testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
				w.Fill = fill
				policy(w.Proxy, pullthrough.Policy{Retries: -1})
				img := twelve(w, 100)
				start := time.Now()
				_, err := w.Tagged(t, "1")
				require.NoError(t, err)
				assert.Equal(t, fill == pullthrough.FillBackground, hasManifest(t, w, "1"))
				assert.Equal(t, 6, w.Up.Count("GET /v2/a/blobs/* 503"), "five more times")
				assert.Less(t, time.Since(start), 2*time.Minute)
				w.Up.Heal()
				w.Up.Reset()
				_, err = w.Tagged(t, "1")
				require.NoError(t, err)
				assert.True(t, holds(t, w, img))
				assert.Equal(t, 1, w.Up.Count("GET /v2/a/blobs/*"))
				w.Up.Reset()
				_, err = w.Tagged(t, "1")
				require.NoError(t, err)
				assert.Empty(t, w.Up.Log(), "and that is the end of it")
			})
		})
	}
}

// A layer that upstream keeps back is asked for by later pulls, and not by each of them.
func TestWhatIsRefusedIsAskedForNowAndThen(t *testing.T) {
	clock := new(testkit.HandClock)
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Fill, p.Now = pullthrough.FillBackground, clock.Now })
	img := testkit.Image(1)
	w.Up.Push("a", "1", img)
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/" + img.Layers[0].Digest.String(), Status: 403})
	for range 20 {
		_, err := w.Tagged(t, "1")
		require.NoError(t, err)
	}
	assert.Equal(t, 2, w.Up.Count("GET /v2/a/blobs/* 403"))
	clock.Pass(11 * time.Second)
	w.Up.Heal()
	_, err := w.Tagged(t, "1")
	require.NoError(t, err)
	assert.True(t, holds(t, w, img))
}

// So does the check of a tag.
func TestAnImportIsTakenUpByTheNextCheck(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, filling(pullthrough.FillBackground, nil))
	policy(w.Proxy, pullthrough.Policy{TagTTL: pullthrough.EveryPull})
	img := testkit.Image(1)
	w.Up.Push("a", "1", img)
	heal := w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/" + img.Layers[0].Digest.String(), Status: 403})
	_, err := w.Tagged(t, "1")
	require.NoError(t, err)
	assert.False(t, holds(t, w, img))
	heal()
	w.Up.Reset()
	m, err := w.Tagged(t, "1")
	require.NoError(t, err)
	assert.Equal(t, pullthrough.SourceRevalidated, m.Source)
	assert.True(t, holds(t, w, img))
	assert.ElementsMatch(t, []string{"HEAD /v2/a/manifests/1 200", "GET /v2/a/blobs/" + img.Layers[0].Digest.String() + " 200"}, w.Up.Log())
}

func TestTheFirstPullAfterARestartLooksWhetherTheImageIsWhole(t *testing.T) {
	for mode, fill := range imports {
		t.Run(mode, func(t *testing.T) {
			store := &counting{Store: memstore.New()}
			lazy := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store = store })
			index, children := platforms(lazy)
			_, err := lazy.Tagged(t, "1")
			require.NoError(t, err)
			lazy.Pull(t, "a", children[0].Digest.String(), children[0])

			allowed := new(atomic.Bool)
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.Store, p.Fill = store, fill
				p.Authorize = func(_ context.Context, a pullthrough.Action, _ pullthrough.Request) error {
					if a == pullthrough.ActionImport && !allowed.Load() {
						return pullthrough.ErrDenied
					}
					return nil
				}
			})
			w.Mem = store.Store
			platforms(w)
			_, err = w.Tagged(t, "1")
			require.NoError(t, err)
			assert.Empty(t, w.Up.Log(), "nobody causes a fetch who must not")
			allowed.Store(true)
			m, err := w.Tagged(t, "1")
			require.NoError(t, err)
			assert.Equal(t, pullthrough.SourceHit, m.Source)
			for _, img := range append(children, index) {
				assert.True(t, holds(t, w, img))
			}
			assert.Equal(t, 2+6, w.Up.Count("*"))
			looked := store.n.Load()
			_, err = w.Tagged(t, "1")
			require.NoError(t, err)
			_, err = w.Tagged(t, children[0].Digest.String())
			require.NoError(t, err)
			assert.Equal(t, looked+2, store.n.Load(), "it looks once")
		})
	}
}

// complete is a Store that does not take a manifest without all that it refers to.
type complete struct {
	*referring
	refused atomic.Int64
}

func (s *complete) PutManifest(ctx context.Context, r pullthrough.Repo, m *pullthrough.Manifest) error {
	err := s.referring.PutManifest(ctx, r, m)
	if err != nil {
		s.refused.Add(1)
	}
	return err
}

// What a Store does not take, since it has holes, is served and not fetched again for a
// while.
func TestAStoreMayRefuseAnIndexWithHoles(t *testing.T) {
	clock := new(testkit.HandClock)
	heard := new(testkit.Events)
	store := &complete{referring: &referring{Store: memstore.New(), parts: map[string][]string{}}}
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Store, p.Fill, p.Now, p.OnEvent = store, pullthrough.FillEager, clock.Now, heard.On
	})
	w.Mem = store.Store
	index, children := platforms(w)
	for _, c := range children {
		store.parts[index.Digest.String()] = append(store.parts[index.Digest.String()], c.Digest.String())
	}
	w.Up.Delete("a", children[0].Digest.String())
	for range 3 {
		m, err := w.Tagged(t, "1")
		require.NoError(t, err)
		assert.Equal(t, index.Digest, m.Descriptor.Digest)
		assert.Equal(t, "1", m.Tag)
		m, err = w.Tagged(t, index.Digest.String())
		require.NoError(t, err)
		assert.Equal(t, index.Content, m.Content)
	}
	assert.EqualValues(t, 1, store.refused.Load())
	assert.Len(t, heard.StoreFailures(), 1)
	assert.Equal(t, []digest.Digest{children[0].Digest}, missing(heard))
	assert.True(t, holds(t, w, children[1]))
	assert.Equal(t, 1+3+6, w.Up.Count("*"))
	clock.Pass(11 * time.Second)
	w.Up.Reset()
	_, err := w.Tagged(t, "1")
	require.NoError(t, err)
	assert.ElementsMatch(t, []string{"GET /v2/a/manifests/1 200", "GET /v2/a/manifests/" + children[0].Digest.String() + " 404"}, w.Up.Log())
}

// slowImages are twenty images of four layers, a0 to a19, that upstream sends slowly:
// a layer takes so long.
func slowImages(w *testkit.World, long time.Duration) (all []*pullthroughtest.Image) {
	const size = 2 << 20
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a*/blobs/*", Rate: size / int64(long/time.Second)})
	for i := range 20 {
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i), Layers: 4, LayerSize: size})
		w.Up.Push(fmt.Sprint("a", i), "1", img)
		all = append(all, img)
	}
	return all
}

func testImportsInTheBackgroundStarveNoClient(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		w.Fill = pullthrough.FillBackground
		images := slowImages(w, 20*time.Second)
		mine := testkit.Image(99)
		w.Up.Push("mine", "1", mine)
		for i := range images {
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo(fmt.Sprint("a", i)), Ref: "1"})
			require.NoError(t, err)
		}
		time.Sleep(time.Second)
		start := time.Now()
		w.PullBlob(t, "mine", mine.Layers[0].Digest)
		assert.Less(t, time.Since(start), time.Second, "a client finds a turn")
		w.Settled(t)
		for i, img := range images {
			for _, b := range img.Blobs() {
				_, err := w.Mem.Blob(t.Context(), testkit.Repo(fmt.Sprint("a", i)), b.Digest)
				assert.NoError(t, err, "it arrives, however long that takes")
			}
		}
		assert.Equal(t, 20*(1+5)+1, w.Up.Count("*"))
	})
}

// A client that asks for what an import waits to fetch need not wait for the rest of
// the import.
func TestAClientGoesBeforeTheImportsOfItsRule(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		w.Fill = pullthrough.FillBackground
		policy(w.Proxy, pullthrough.Policy{MaxDownloads: 4})
		images := slowImages(w, 20*time.Second)
		for i := range images {
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo(fmt.Sprint("a", i)), Ref: "1"})
			require.NoError(t, err)
		}
		time.Sleep(time.Second)
		start := time.Now()
		last := images[len(images)-1].Layers[0].Digest
		b, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a19"), Ref: last.String()})
		require.NoError(t, err)
		assert.Less(t, time.Since(start), time.Second)
		testkit.AssertBody(t, last, b)
		w.Settled(t)
		assert.Equal(t, 20*(1+5), w.Up.Count("*"))
	})
}

func TestImportsThatShareBlobsShareDownloads(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	index, children := platforms(w)
	other := pullthroughtest.NewIndex(children[2], children[1])
	w.Up.Push("a", "2", other)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			_, err := w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: fmt.Sprint(1 + i%2)}, pullthrough.ImportOptions{})
			assert.NoError(t, err)
		})
	}
	all.Wait()
	assert.Equal(t, 2+3+9, w.Up.Count("*"))
	for _, img := range append(children, index, other) {
		assert.True(t, holds(t, w, img))
	}
}

// Shutdown waits for what is being downloaded, and for nothing that an import only has
// in mind.
func TestShutdownEndsImportsThatWait(t *testing.T) {
	for mode, fill := range imports {
		t.Run(mode, func(t *testing.T) {
			testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
				w.Fill = fill
				policy(w.Proxy, pullthrough.Policy{Retries: -1})
				twelve(w, 100)
				_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
				require.NoError(t, err)
				time.Sleep(20 * time.Second)
				start := time.Now()
				require.NoError(t, w.Shutdown(context.Background()))
				assert.Less(t, time.Since(start), time.Second)
				assert.NotZero(t, w.Up.Count("GET /v2/a/blobs/* 503"))
			})
		})
	}
}

// The host's own import ends with its context, and leaves no manifest waiting.
func TestAnImportEndsWithItsContext(t *testing.T) {
	for mode, fill := range map[string]pullthrough.FillMode{"lazy": pullthrough.FillLazy, "eager": pullthrough.FillEager} {
		t.Run(mode, func(t *testing.T) {
			testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
				w.Fill = fill
				_, children := platforms(w)
				w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/" + children[0].Layers[0].Digest.String(), Status: 503})
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				start := time.Now()
				_, err := w.Import(ctx, pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}, pullthrough.ImportOptions{})
				assert.ErrorIs(t, err, context.DeadlineExceeded)
				assert.Equal(t, 5*time.Second, time.Since(start))
				w.Settled(t)
				assert.True(t, holds(t, w, children[1]))
				assert.NotZero(t, w.Up.Count("GET *"))
			})
		})
	}
}

// An import whose context ends at its very end does not say that all is stored.
func TestAnImportThatEndsEarlySaysSo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.OnEvent = func(_ context.Context, e pullthrough.Event) {
			if len(e.Missing) > 0 {
				cancel()
			}
		}
	})
	foreign := entry("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", []byte("windows"))
	w.Up.Push("a", "1", &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageIndex, Content: marshal(t, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{foreign},
	})})
	_, err := w.Import(ctx, pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}, pullthrough.ImportOptions{})
	assert.ErrorIs(t, err, context.Canceled)
	assert.Equal(t, 2, w.Up.Count("*"))
}

// A manifest of an index that came by the fetch of an import that was given up is fetched
// again, as patiently as the first time.
func TestAnImportDoesNotEndWithAnother(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		w.Fill = pullthrough.FillEager
		policy(w.Proxy, pullthrough.Policy{Retries: -1})
		child := testkit.Image(1)
		w.Up.Push("a", "1", child)
		var indexes []string
		for _, index := range []*pullthroughtest.Image{pullthroughtest.NewIndex(child, testkit.Image(2)), pullthroughtest.NewIndex(child)} {
			require.NoError(t, w.Mem.PutManifest(t.Context(), testkit.Repo("a"), &pullthrough.Manifest{Descriptor: index.Descriptor(), Content: index.Content}))
			indexes = append(indexes, index.Digest.String())
		}
		time.AfterFunc(2*time.Second, w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Status: 503}))
		w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/" + child.Digest.String(), Skip: 1, Times: 1, Status: 503})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var all sync.WaitGroup
		all.Go(func() {
			_, err := w.Import(ctx, pullthrough.Request{Repo: testkit.Repo("a"), Ref: indexes[0]}, pullthrough.ImportOptions{})
			assert.ErrorIs(t, err, context.DeadlineExceeded)
		})
		synctest.Wait()
		_, err := w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: indexes[1]}, pullthrough.ImportOptions{})
		assert.NoError(t, err)
		all.Wait()
		assert.True(t, holds(t, w, child))
		assert.Equal(t, 3, w.Up.Count("GET /v2/a/manifests/"+child.Digest.String()))
	})
}

// What was pushed here and stays as it is is not looked at on each hit.
func TestALocalImageIsNotLookedAtOnEachPull(t *testing.T) {
	asked := new(atomic.Int64)
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Fill = pullthrough.FillBackground
		p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			asked.Add(1)
			return pullthrough.Policy{KeepLocal: true}
		}
	})
	img := testkit.Image(1)
	local := &pullthrough.Manifest{Descriptor: img.Descriptor(), Content: img.Content, Tag: "1"}
	require.NoError(t, w.Mem.PutManifest(t.Context(), testkit.Repo("a"), local))
	for range 20 {
		_, err := w.Tagged(t, img.Digest.String())
		require.NoError(t, err)
	}
	assert.LessOrEqual(t, asked.Load(), int64(2))
	assert.Empty(t, w.Up.Log())
}

// Images whose parts go first wait with their manifest in memory: there are 4,096 at most.
// What comes on top is served, and not stored.
func TestImportsBeforeTheirManifestAreFew(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, filling(pullthrough.FillEager, nil))
	img := testkit.Image(1)
	w.Up.Push("a", "1", img)
	give := w.TakeImports(4096)
	_, err := w.Tagged(t, "1")
	require.NoError(t, err)
	assert.False(t, hasManifest(t, w, "1"))
	assert.Equal(t, 1, w.Up.Count("*"))
	give()
	_, err = w.Tagged(t, "1")
	require.NoError(t, err)
	assert.True(t, holds(t, w, img))
	assert.Equal(t, 2+2, w.Up.Count("*"))
}

// What upstream calls an object is quoted where it is named.
func TestTheErrorOfAnImportIsOneLine(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	w.Up.Push("a", "1", &pullthroughtest.Image{MediaType: ocispec.MediaTypeImageIndex, Content: marshal(t, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{entry("a\n\x1b[2Jb", []byte("gone"))},
	})})
	_, err := w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}, pullthrough.ImportOptions{})
	assert.ErrorIs(t, err, pullthrough.ErrNotFound)
	assert.NotContains(t, err.Error(), "\n")
	assert.NotContains(t, err.Error(), "\x1b")
	assert.Equal(t, 2, w.Up.Count("*"))
}
