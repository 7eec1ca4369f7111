package pullthrough_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
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

// platforms is an index of three images, as library/hello:1 of the upstream.
func platforms(w *testkit.World) (index *pullthroughtest.Image, children []*pullthroughtest.Image) {
	for i, arch := range []string{"amd64", "arm64", "s390x"} {
		children = append(children, pullthroughtest.NewImage(pullthroughtest.ImageOptions{
			Seed: int64(i), Layers: 2, LayerSize: 1_500_000, Platform: ocispec.Platform{OS: "linux", Architecture: arch},
		}))
	}
	index = pullthroughtest.NewIndex(children...)
	w.Up.Push("a", "1", index)
	return index, children
}

// stored reports whether the Store has the image with all its blobs.
func holds(t *testing.T, w *testkit.World, img *pullthroughtest.Image) bool {
	t.Helper()
	if _, err := w.Mem.Manifest(t.Context(), testkit.Repo("a"), img.Digest.String()); err != nil {
		return false
	}
	for _, b := range img.Blobs() {
		if _, err := w.Mem.Blob(t.Context(), testkit.Repo("a"), b.Digest); err != nil {
			return false
		}
	}
	return true
}

func TestImportOfOnePlatformFetchesNothingElse(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
	index, children := platforms(w)
	arm := children[1]
	m, err := w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}, pullthrough.ImportOptions{
		Platforms: []ocispec.Platform{{OS: "linux", Architecture: "arm64"}},
	})
	require.NoError(t, err)
	assert.Equal(t, index.Digest, m.Descriptor.Digest)
	want := []string{
		"GET /v2/a/manifests/1 401", "GET /token 200", "GET /v2/a/manifests/1 200",
		"GET /v2/a/manifests/" + arm.Digest.String() + " 200",
	}
	for _, b := range arm.Blobs() {
		want = append(want, "GET /v2/a/blobs/"+b.Digest.String()+" 200")
	}
	assert.ElementsMatch(t, want, w.Up.Log())
	assert.True(t, holds(t, w, arm), "it is stored when Import returns")
	assert.False(t, holds(t, w, children[0]))

	w.Up.Reset()
	_, err = w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}, pullthrough.ImportOptions{
		Platforms: []ocispec.Platform{{OS: "linux", Architecture: "arm64"}},
	})
	require.NoError(t, err)
	assert.Empty(t, w.Up.Log(), "what is stored is not fetched again")
}

func TestImportTellsItsProgress(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	index, children := platforms(w)
	var mu sync.Mutex
	type step struct {
		done, total int64
		stored      bool
	}
	seen := map[string][]step{}
	_, err := w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}, pullthrough.ImportOptions{
		Progress: func(d ocispec.Descriptor, done int64, stored bool, _ error) {
			mu.Lock()
			defer mu.Unlock()
			seen[d.Digest.String()] = append(seen[d.Digest.String()], step{done, d.Size, stored})
		},
	})
	require.NoError(t, err)
	want := []*pullthroughtest.Image{index}
	want = append(want, children...)
	objects := 0
	for _, img := range want {
		assert.True(t, holds(t, w, img))
		descriptors := []ocispec.Descriptor{img.Descriptor()}
		for _, b := range img.Blobs() {
			descriptors = append(descriptors, b.Descriptor())
		}
		for _, d := range descriptors {
			objects++
			steps := seen[d.Digest.String()]
			if assert.NotEmpty(t, steps) {
				last := steps[len(steps)-1]
				assert.True(t, last.stored)
				assert.Equal(t, d.Size, last.done)
				assert.Equal(t, d.Size, last.total)
				for i := 1; i < len(steps); i++ {
					assert.GreaterOrEqual(t, steps[i].done, steps[i-1].done)
				}
			}
		}
	}
	assert.Len(t, seen, objects)
	assert.Equal(t, objects, w.Up.Count("GET *"))
}

func TestImportFailsWithWhatFailed(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	_, children := platforms(w)
	bad := children[2].Layers[1].Digest
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/" + bad.String(), Flip: new(int64(0))})
	_, err := w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}, pullthrough.ImportOptions{})
	assert.ErrorIs(t, err, pullthrough.ErrDigest)
	w.Settled(t)
	w.Up.Heal()
	_, err = w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}, pullthrough.ImportOptions{})
	require.NoError(t, err)
	assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/1"))
}

func TestImportNeedsThePermission(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Authorize = func(_ context.Context, a pullthrough.Action, r pullthrough.Request) error {
			if a == pullthrough.ActionImport && r.Caller == "guest" {
				return pullthrough.ErrDenied
			}
			return nil
		}
	})
	platforms(w)
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
	require.NoError(t, err)
	w.Up.Reset()
	_, err = w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1", Caller: "guest"}, pullthrough.ImportOptions{})
	assert.ErrorIs(t, err, pullthrough.ErrNotFound)
	assert.Empty(t, w.Up.Log(), "a stored manifest does not open the way to its blobs")
}

func TestFillBackgroundBringsInTheWholeImage(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(p *pullthrough.Proxy) { p.Fill = pullthrough.FillBackground })
	index, children := platforms(w)
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
	require.NoError(t, err)
	w.Settled(t)
	for _, img := range append(children, index) {
		assert.True(t, holds(t, w, img))
	}
	assert.Equal(t, 2+4+9, w.Up.Count("*"), "each object once")
	w.Up.Reset()
	w.Pull(t, "a", children[0].Digest.String(), children[0])
	assert.Empty(t, w.Up.Log())
}

// referring is a Store that refuses a manifest whose parts it does not have.
type referring struct {
	*memstore.Store
	parts map[string][]string // by digest of the manifest: digests of its parts
	mu    sync.Mutex
	order []string
}

func (s *referring) PutManifest(ctx context.Context, r pullthrough.Repo, m *pullthrough.Manifest) error {
	for _, part := range s.parts[m.Descriptor.Digest.String()] {
		_, asManifest := s.Manifest(ctx, r, part)
		_, asBlob := s.Blob(ctx, r, digest.Digest(part))
		if asManifest != nil && asBlob != nil {
			return fmt.Errorf("MANIFEST_BLOB_UNKNOWN %s", part)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.order = append(s.order, m.Descriptor.Digest.String())
	return s.Store.PutManifest(ctx, r, m)
}

func TestFillEagerPutsPartsFirst(t *testing.T) {
	store := &referring{Store: memstore.New(), parts: map[string][]string{}}
	var failures []error
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Store, p.Fill = store, pullthrough.FillEager
		p.OnEvent = func(_ context.Context, e pullthrough.Event) {
			if e.Kind == pullthrough.EventStoreFailed {
				failures = append(failures, e.Err)
			}
		}
	})
	w.Mem = store.Store
	index, children := platforms(w)
	for _, img := range append(children, index) {
		for _, b := range img.Blobs() {
			store.parts[img.Digest.String()] = append(store.parts[img.Digest.String()], b.Digest.String())
		}
		for _, c := range img.Children {
			store.parts[img.Digest.String()] = append(store.parts[img.Digest.String()], c.Digest.String())
		}
	}
	gate := make(chan struct{})
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/*", Stall: gate})
	m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
	require.NoError(t, err, "the answer waits for no blob")
	assert.Equal(t, index.Digest, m.Descriptor.Digest)
	again, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
	require.NoError(t, err)
	assert.Equal(t, pullthrough.SourceShared, again.Source)
	close(gate)
	w.Settled(t)
	assert.Empty(t, failures)
	require.Len(t, store.order, 4)
	assert.Equal(t, index.Digest.String(), store.order[3], "the index comes last")
	assert.Equal(t, 4+9, w.Up.Count("*"))
}

// repoStore is a RepoCreator without repositories.
type repoStore struct {
	*memstore.Store
	made atomic.Bool
}

func (s *repoStore) RepoExists(context.Context, pullthrough.Repo) (bool, error) {
	return s.made.Load(), nil
}

func (s *repoStore) CreateRepo(context.Context, pullthrough.Repo, pullthrough.Rule, pullthrough.Request) error {
	s.made.Store(true)
	return nil
}

func TestAnImportThatMadeTheRepositoryDoesNotSayThatItIsNotThere(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store = &repoStore{Store: memstore.New()} })
	w.Up.Push("a", "1", testkit.Image(1))
	w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Status: http.StatusNotFound})
	_, err := w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}, pullthrough.ImportOptions{})
	require.ErrorIs(t, err, pullthrough.ErrNotFound)
	_, code, message := pullthrough.OCI(err)
	assert.Equal(t, "MANIFEST_UNKNOWN", code)
	assert.Equal(t, testkit.SayNotFound, message)
}

// fixedTags never moves a tag.
type fixedTags struct{ *memstore.Store }

func (s fixedTags) PutManifest(ctx context.Context, r pullthrough.Repo, m *pullthrough.Manifest) error {
	have, err := s.Store.Manifest(ctx, r, m.Tag)
	if m.Tag != "" && err == nil && have.Descriptor.Digest != m.Descriptor.Digest {
		return pullthrough.ErrImmutable
	}
	return s.Store.PutManifest(ctx, r, m)
}

func TestABackgroundImportBringsInTheImageOfATagThatDoesNotMove(t *testing.T) {
	clock := new(testkit.HandClock)
	store := fixedTags{memstore.New()}
	one := testkit.Image(1)
	fill := func(p *pullthrough.Proxy) { p.Store, p.Now = store, clock.Now }
	lazy := testkit.NewWorld(t, pullthroughtest.Config{}, fill)
	lazy.Up.Push("a", "1", one)
	_, err := lazy.Tagged(t, "1")
	require.NoError(t, err)

	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { fill(p); p.Fill = pullthrough.FillBackground })
	w.Up.Push("a", "1", one)
	w.Up.Push("a", "1", testkit.Image(2))
	clock.Pass(25 * time.Hour)
	m, err := w.Tagged(t, "1")
	require.NoError(t, err)
	require.Equal(t, one.Digest, m.Descriptor.Digest)
	for _, b := range one.Blobs() {
		_, err := store.Blob(t.Context(), testkit.Repo("a"), b.Digest)
		assert.NoError(t, err)
	}
}

func TestAProgressThatPanicsEndsItsImportOnly(t *testing.T) {
	for calls := range 8 {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
		platforms(w)
		seen := new(atomic.Int32)
		_, err := w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}, pullthrough.ImportOptions{
			Progress: func(ocispec.Descriptor, int64, bool, error) {
				if int(seen.Add(1)) > calls {
					panic("no bar")
				}
			},
		})
		assert.ErrorContains(t, err, "no bar", "%d calls", calls)
		w.Settled(t)
		_, err = w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}, pullthrough.ImportOptions{})
		assert.NoError(t, err)
		assert.LessOrEqual(t, w.Up.Count("GET /v2/a/manifests/*"), 1+2*3, "what was being fetched then is fetched again")
	}
}

func TestAnImportReturnsWhenTheStoreHasItsManifest(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		time.AfterFunc(5*time.Second, heldPuts(w)())
		w.Up.Push("a", "1", testkit.Image(1))
		_, err := w.Import(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"}, pullthrough.ImportOptions{
			Progress: func(d ocispec.Descriptor, _ int64, isStored bool, _ error) {
				if isStored && d.Digest == testkit.Image(1).Digest {
					_, err := w.Mem.Manifest(context.Background(), testkit.Repo("a"), "1")
					assert.NoError(t, err, "it is told as stored")
				}
			},
		})
		require.NoError(t, err)
		_, err = w.Mem.Manifest(t.Context(), testkit.Repo("a"), "1")
		assert.NoError(t, err)
		w.Settled(t)
	})
}

// anywhere is a Store that has one image in every repository. It shows no blob before it is open.
type anywhere struct {
	image *pullthrough.Manifest
	open  chan struct{}
	asked atomic.Int64 // for blobs
}

func (s *anywhere) Manifest(context.Context, pullthrough.Repo, string) (*pullthrough.Manifest, error) {
	return s.image, nil
}

func (s *anywhere) PutManifest(context.Context, pullthrough.Repo, *pullthrough.Manifest) error {
	return nil
}

func (s *anywhere) Blob(_ context.Context, _ pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	s.asked.Add(1)
	<-s.open
	return pullthrough.NewBlob(d, []byte("layer")), nil
}

func (s *anywhere) PutBlob(context.Context, pullthrough.Repo, ocispec.Descriptor, io.ReadSeeker) error {
	return nil
}

// Of the imports in the background 32 of a rule run, and 4,096 run or wait. What comes on top
// is imported when it is pulled again.
func TestImportsInTheBackgroundAreFew(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		const running, inAll, onTop = 32, 4096, 10
		cache := marshal(t, ocispec.Index{ // of one blob
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
			Manifests: []ocispec.Descriptor{entry(ocispec.MediaTypeImageLayerGzip, []byte("layer"))},
		})
		d := entry(ocispec.MediaTypeImageIndex, cache)
		store := &anywhere{image: &pullthrough.Manifest{Descriptor: d, Content: cache}, open: make(chan struct{})}
		w.Store, w.Fill = store, pullthrough.FillBackground
		pull := func(i int) {
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo(fmt.Sprint("a", i)), Ref: d.Digest.String()})
			require.NoError(t, err)
		}
		for i := range inAll + onTop {
			pull(i)
		}
		synctest.Wait()
		assert.EqualValues(t, running, store.asked.Load())
		assert.Equal(t, inAll, w.Running())
		close(store.open)
		w.Settled(t)
		assert.EqualValues(t, inAll, store.asked.Load())
		pull(inAll)
		w.Settled(t)
		assert.EqualValues(t, inAll+1, store.asked.Load())
		assert.Empty(t, w.Up.Log())
	})
}
