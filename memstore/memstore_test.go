package memstore_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"slices"
	"sync"
	"testing"
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

var _ interface {
	pullthrough.Store
	pullthrough.TagLister
	pullthrough.RepoLister
} = (*memstore.Store)(nil)

// shelf is a MemStore and what is asked of it.
type shelf struct {
	*testing.T
	*memstore.Store
}

func newShelf(t *testing.T, maxBytes int64) shelf {
	return shelf{t, &memstore.Store{MaxBytes: maxBytes}}
}

// put stores the image as a lazy pull does: the manifest first.
func (s shelf) put(repo pullthrough.Repo, tag string, img *pullthroughtest.Image) {
	s.Helper()
	s.putManifest(repo, tag, img)
	for _, child := range img.Children {
		s.put(repo, "", child)
	}
	for _, b := range img.Blobs() {
		s.putBlob(repo, b)
	}
}

func (s shelf) putManifest(repo pullthrough.Repo, tag string, img *pullthroughtest.Image) {
	s.Helper()
	m := &pullthrough.Manifest{
		Descriptor: ocispec.Descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: int64(len(img.Content))},
		Content:    img.Content, Tag: tag, CheckedAt: time.Unix(1e9, 0), Origin: "up.example", Source: pullthrough.SourceFill,
	}
	require.NoError(s, s.PutManifest(s.Context(), repo, m))
}

func (s shelf) putBlob(repo pullthrough.Repo, b *pullthroughtest.Blob) {
	s.Helper()
	desc := ocispec.Descriptor{Digest: b.Digest, Size: b.Size}
	require.NoError(s, s.PutBlob(s.Context(), repo, desc, b.Open()))
}

func (s shelf) hasManifest(repo pullthrough.Repo, ref string) bool {
	s.Helper()
	m, err := s.Manifest(s.Context(), repo, ref)
	if err != nil {
		assert.ErrorIs(s, err, fs.ErrNotExist)
		return false
	}
	assert.NotNil(s, m)
	return true
}

func (s shelf) hasBlob(repo pullthrough.Repo, b *pullthroughtest.Blob) bool {
	s.Helper()
	blob, err := s.Blob(s.Context(), repo, b.Digest)
	if err != nil {
		assert.ErrorIs(s, err, fs.ErrNotExist)
		return false
	}
	testkit.AssertBody(s.T, b.Digest, blob)
	return true
}

// whole reports whether all of the image is there, and none whether nothing is.
func (s shelf) whole(repo pullthrough.Repo, tag string, img *pullthroughtest.Image) bool {
	s.Helper()
	n, of := s.count(repo, tag, img)
	return n == of
}

func (s shelf) none(repo pullthrough.Repo, tag string, img *pullthroughtest.Image) bool {
	s.Helper()
	n, _ := s.count(repo, tag, img)
	return n == 0
}

func (s shelf) count(repo pullthrough.Repo, tag string, img *pullthroughtest.Image) (have, of int) {
	s.Helper()
	see := func(ok bool) {
		of++
		if ok {
			have++
		}
	}
	// Blobs first: it is by manifests that images are used.
	for _, b := range img.Blobs() {
		see(s.hasBlob(repo, b))
	}
	if tag != "" {
		see(s.hasManifest(repo, tag))
	}
	see(s.hasManifest(repo, img.Digest.String()))
	return have, of
}

const mib = 1 << 20

func bigImage(seed int64) *pullthroughtest.Image {
	return pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: seed, Layers: 2, LayerSize: mib})
}

func TestEvictsTheLeastRecentlyPulledImage(t *testing.T) {
	s := newShelf(t, 9*mib)
	var images []*pullthroughtest.Image
	for i := range int64(4) {
		images = append(images, bigImage(i))
		s.put(testkit.Repo(fmt.Sprint("image", i)), "v1", images[i])
	}
	assert.True(t, s.hasManifest(testkit.Repo("image0"), "v1"), "the first is pulled again")
	s.put(testkit.Repo("image4"), "v1", bigImage(4))

	for _, kept := range []int64{0, 3, 4} {
		assert.True(t, s.whole(testkit.Repo(fmt.Sprint("image", kept)), "v1", bigImage(kept)), "image %d", kept)
	}
	assert.True(t, s.none(testkit.Repo("image1"), "v1", images[1]), "the one that nobody has pulled")
	_, err := s.Tags(t.Context(), testkit.Repo("image1"))
	assert.ErrorIs(t, err, fs.ErrNotExist, "nor is there a repository of nothing")
	names, err := s.Repos(t.Context(), "", "")
	require.NoError(t, err)
	assert.NotContains(t, names, testkit.Repo("image1").Name)
}

// A layer that an image in use needs stays, whoever else brought it in and
// whenever.
func TestToldOfIsNotPulled(t *testing.T) {
	s := newShelf(t, 5*mib)
	has := func(name string, seed int64) bool {
		for d, err := range s.Manifests(t.Context(), testkit.Repo(name)) {
			if err == nil && d == bigImage(seed).Digest {
				tagged, err := s.Resolve(t.Context(), testkit.Repo(name), "v1")
				require.NoError(t, err)
				return tagged == d
			}
		}
		return false
	}
	s.put(testkit.Repo("image0"), "v1", bigImage(0))
	s.put(testkit.Repo("image1"), "v1", bigImage(1))
	assert.True(t, has("image0", 0), "which does not make it younger")
	s.put(testkit.Repo("image2"), "v1", bigImage(2))
	assert.False(t, has("image0", 0))
	assert.True(t, has("image1", 1))
	assert.False(t, has("image1", 2), "that is another repository's")
}

func TestKeepsWhatAnImageInUseNeeds(t *testing.T) {
	s := newShelf(t, 6*mib)
	index := pullthroughtest.NewIndex(bigImage(1), bigImage(2))
	s.put(testkit.Repo("used"), "v1", index)
	for i := range int64(20) {
		s.put(testkit.Repo(fmt.Sprint("other", i)), "v1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 100 + i, LayerSize: mib}))
		require.True(t, s.hasManifest(testkit.Repo("used"), "v1"), "%d: it is pulled by its tag alone, as clients do who have the layers", i)
	}
	for _, child := range index.Children {
		assert.True(t, s.whole(testkit.Repo("used"), "", child))
	}
}

// An index goes before its children, which nobody has pulled by themselves.
func TestKeepsNoIndexWithoutItsChildren(t *testing.T) {
	var children []*pullthroughtest.Image
	size := int64(0)
	for i := range int64(40) {
		child := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: i, Layers: -1})
		children, size = append(children, child), size+int64(len(child.Content))+child.Config.Size
	}
	inner := pullthroughtest.NewIndex(children[:20]...)
	outer := pullthroughtest.NewIndex(append(slices.Clone(children[20:]), inner)...)
	entries := int64(40*2 + 2 + 1) // each child and its config, the indexes, the tag; all configs are different
	s := newShelf(t, size+int64(len(inner.Content)+len(outer.Content))+512*entries)
	s.put(testkit.Repo("old"), "v1", outer)
	require.True(t, s.hasManifest(testkit.Repo("old"), "v1"), "it just fits")
	s.put(testkit.Repo("new"), "v1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: -1}))

	assert.False(t, s.hasManifest(testkit.Repo("old"), "v1"))
	assert.False(t, s.hasManifest(testkit.Repo("old"), inner.Digest.String()))
	kept := 0
	for _, child := range children {
		if s.hasManifest(testkit.Repo("old"), child.Digest.String()) {
			kept++
		}
	}
	assert.Greater(t, kept, 30)
}

func TestCountsSharedBytesOnce(t *testing.T) {
	s := newShelf(t, 3*mib)
	img := bigImage(1)
	for i := range 50 {
		s.put(testkit.Repo(fmt.Sprint("r", i)), "v1", img)
	}
	for i := range 50 {
		assert.True(t, s.whole(testkit.Repo(fmt.Sprint("r", i)), "v1", img), "repository %d", i)
	}
	s.put(testkit.Repo("more"), "v1", bigImage(2))
	assert.True(t, s.whole(testkit.Repo("more"), "v1", bigImage(2)))
	for i := range 50 {
		assert.True(t, s.none(testkit.Repo(fmt.Sprint("r", i)), "v1", img), "the bytes are free when the last link has gone: repository %d", i)
	}
}

func TestReadersKeepWhatIsEvicted(t *testing.T) {
	s := newShelf(t, 3*mib)
	img := bigImage(1)
	s.put(testkit.Repo("a"), "v1", img)
	b, err := s.Blob(t.Context(), testkit.Repo("a"), img.Layers[0].Digest)
	require.NoError(t, err)
	s.put(testkit.Repo("b"), "v1", bigImage(2))
	require.False(t, s.hasBlob(testkit.Repo("a"), img.Layers[0]))
	testkit.AssertBody(t, img.Layers[0].Digest, b)
}

func TestRefusesWhatDoesNotFit(t *testing.T) {
	s := newShelf(t, 3*mib)
	s.put(testkit.Repo("a"), "v1", bigImage(1))
	desc := ocispec.Descriptor{Digest: digest.FromString("large"), Size: 3*mib + 1}
	assert.ErrorIs(t, s.PutBlob(t.Context(), testkit.Repo("a"), desc, nil), pullthrough.ErrTooLarge)
	large := bytes.Repeat([]byte(" "), 3*mib+1)
	m := &pullthrough.Manifest{Descriptor: ocispec.Descriptor{Digest: digest.FromBytes(large)}, Content: large}
	assert.ErrorIs(t, s.PutManifest(t.Context(), testkit.Repo("a"), m), pullthrough.ErrTooLarge)
	assert.True(t, s.whole(testkit.Repo("a"), "v1", bigImage(1)), "and nothing has gone for it")

	whole := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 9, LayerSize: 3 * mib})
	s.putBlob(testkit.Repo("a"), whole.Layers[0])
	assert.True(t, s.hasBlob(testkit.Repo("a"), whole.Layers[0]), "what just fits pushes out the rest, not itself")
	assert.True(t, s.none(testkit.Repo("a"), "v1", bigImage(1)))
}

// A tag that has gone while it was checked comes back.
func TestRevalidationOfWhatIsGoneStoresIt(t *testing.T) {
	s := newShelf(t, 0)
	img := bigImage(1)
	m := &pullthrough.Manifest{Descriptor: img.Descriptor(), Content: img.Content, Tag: "v1", Source: pullthrough.SourceRevalidated}
	require.NoError(t, s.PutManifest(t.Context(), testkit.Repo("a"), m))
	assert.True(t, s.hasManifest(testkit.Repo("a"), "v1"))
}

// Memory is bounded by the limit, whatever comes in, from however many.
func TestStaysWithinItsLimit(t *testing.T) {
	const limit = 16 * mib
	s := newShelf(t, limit)
	before := testkit.InUse()
	var wg sync.WaitGroup
	for worker := range int64(4) {
		wg.Go(func() {
			for i := range int64(50) {
				img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: worker*1000 + i, LayerSize: mib})
				at := testkit.Repo(fmt.Sprint("w", worker, "/", i%7))
				for _, b := range img.Blobs() {
					assert.NoError(t, s.PutBlob(t.Context(), at, ocispec.Descriptor{Digest: b.Digest, Size: b.Size}, b.Open()))
				}
				m := &pullthrough.Manifest{Descriptor: img.Descriptor(), Content: img.Content, Tag: fmt.Sprint("v", i)}
				assert.NoError(t, s.PutManifest(t.Context(), at, m))
				if got, err := s.Manifest(t.Context(), at, m.Tag); err == nil {
					assert.Equal(t, img.Digest, got.Descriptor.Digest)
				} else { // the other workers have put sixteen images since
					assert.ErrorIs(t, err, fs.ErrNotExist)
				}
				if b, err := s.Blob(t.Context(), at, img.Layers[0].Digest); err == nil {
					_, err = io.Copy(io.Discard, b.Body)
					assert.NoError(t, err)
				}
			}
		})
	}
	wg.Wait()
	assert.Less(t, testkit.InUse(), before+limit+8*mib)
	runtime.KeepAlive(s)
}

// Tags and links cost memory, too: an upstream registry may have one image under any
// number of names.
func TestManyNamesOfOneImageStayWithinTheLimit(t *testing.T) {
	const limit = mib
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 1000})
	for name, of := range map[string]func(i int) (pullthrough.Repo, string){
		"tags":         func(i int) (pullthrough.Repo, string) { return testkit.Repo("a"), fmt.Sprint("v", i) },
		"repositories": func(i int) (pullthrough.Repo, string) { return testkit.Repo(fmt.Sprint("r", i)), "v1" },
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t, limit)
			before := testkit.InUse()
			for i := range 4000 {
				repo, tag := of(i)
				s.putManifest(repo, tag, img)
				require.True(t, s.hasManifest(repo, tag), "the last one is there")
			}
			assert.Less(t, testkit.InUse(), before+4*limit)
			_, last := of(3999)
			tags, err := s.Tags(t.Context(), testkit.Repo("a"))
			if name == "tags" {
				require.NoError(t, err)
				assert.Less(t, len(tags), limit/512)
				assert.Contains(t, tags, last)
			}
			runtime.KeepAlive(s)
		})
	}
}

// Pulls through a proxy whose store is too small for them are right all the same.
func TestAMemStoreThatIsTooSmallHarmsNoPull(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store = &memstore.Store{MaxBytes: 5 * mib} })
	for i := range int64(4) {
		w.Up.Push(fmt.Sprint("image", i), "v1", bigImage(i))
	}
	for range 2 {
		for i := range int64(4) {
			w.Pull(t, fmt.Sprint("image", i), "v1", bigImage(i))
			before := len(w.Up.Log())
			w.Pull(t, fmt.Sprint("image", i), "v1", bigImage(i))
			assert.Len(t, w.Up.Log(), before, "the one pulled last is a hit")
		}
	}
	assert.Equal(t, 8, w.Up.Count("GET /v2/*/manifests/v1 200"), "each was pushed out once")
}

func benchmarkSizes(b *testing.B, f func(b *testing.B, content []byte, d digest.Digest)) {
	for name, size := range map[string]int{"1MiB": mib, "256MiB": 256 * mib} {
		b.Run(name, func(b *testing.B) {
			content := make([]byte, size)
			_, err := io.ReadFull(bigImage(1).Layers[0].Open(), content[:mib])
			require.NoError(b, err)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			f(b, content, digest.FromBytes(content))
		})
	}
}

// BenchmarkPut runs beside a copy into fresh memory.
func BenchmarkPut(b *testing.B) {
	benchmarkSizes(b, func(b *testing.B, content []byte, d digest.Digest) {
		desc := ocispec.Descriptor{Digest: d, Size: int64(len(content))}
		var kept []byte
		testkit.Beside(b, "copy", func() error {
			return memstore.New().PutBlob(context.Background(), testkit.Repo("a"), desc, bytes.NewReader(content))
		}, func() error {
			kept = make([]byte, len(content))
			_, err := io.ReadFull(bytes.NewReader(content), kept)
			return err
		})
		runtime.KeepAlive(kept)
	})
}

// BenchmarkGet runs beside a reader of the bytes themselves: nothing is
// copied but what the reader takes.
func BenchmarkGet(b *testing.B) {
	for _, limit := range []int64{0, 1 << 40} {
		b.Run(fmt.Sprint("limit=", limit), func(b *testing.B) {
			benchmarkSizes(b, func(b *testing.B, content []byte, d digest.Digest) {
				s := &memstore.Store{MaxBytes: limit}
				desc := ocispec.Descriptor{Digest: d, Size: int64(len(content))}
				require.NoError(b, s.PutBlob(b.Context(), testkit.Repo("a"), desc, bytes.NewReader(content)))
				buf := make([]byte, mib)
				read := func(r io.Reader) error {
					_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf)
					return err
				}
				testkit.Beside(b, "read", func() error {
					blob, err := s.Blob(context.Background(), testkit.Repo("a"), d)
					if err != nil {
						return err
					}
					return read(blob.Body)
				}, func() error { return read(bytes.NewReader(content)) })
			})
		})
	}
}

func BenchmarkManifest(b *testing.B) {
	for _, limit := range []int64{0, 1 << 40} {
		b.Run(fmt.Sprint("limit=", limit), func(b *testing.B) {
			s, img := &memstore.Store{MaxBytes: limit}, bigImage(1)
			m := &pullthrough.Manifest{Descriptor: img.Descriptor(), Content: img.Content, Tag: "v1"}
			require.NoError(b, s.PutManifest(b.Context(), testkit.Repo("a"), m))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Manifest(b.Context(), testkit.Repo("a"), "v1"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// amongTags is a hit and a move of a tag in a repository of n tags.
func amongTags(tb testing.TB, n int) (hit, move func()) {
	tb.Helper()
	s, repo := &memstore.Store{MaxBytes: 1 << 40}, testkit.Repo("a")
	put := func(m *pullthrough.Manifest) {
		if err := s.PutManifest(tb.Context(), repo, m); err != nil {
			tb.Fatal(err)
		}
	}
	one, two := testkit.LocalManifest("1"), testkit.LocalManifest("2")
	for i := range n {
		m := *one
		m.Tag = fmt.Sprint("v", i)
		put(&m)
	}
	one.Tag, two.Tag = "v0", "v0"
	hit = func() {
		if _, err := s.Manifest(tb.Context(), repo, "v0"); err != nil {
			tb.Fatal(err)
		}
	}
	return hit, func() { put(two); put(one) }
}

// TestMoreTagsCostNothing: a hit and a move allocate the same.
func TestMoreTagsCostNothing(t *testing.T) {
	fewHit, fewMove := amongTags(t, 1)
	manyHit, manyMove := amongTags(t, 10_000)
	assert.Equal(t, testkit.Allocs(fewHit), testkit.Allocs(manyHit))
	assert.InEpsilon(t, testkit.Allocs(fewMove), testkit.Allocs(manyMove), 0.02, "maps grow now and then")
}

// BenchmarkTags is the same work in a repository of more and more tags.
func BenchmarkTags(b *testing.B) {
	for n := 1; n <= testkit.Most(100_000); n *= 10 {
		hit, move := amongTags(b, n)
		for name, work := range map[string]func(){"hit": hit, "move": move} {
			b.Run(fmt.Sprintf("tags=%d/%s", n, name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					work()
				}
			})
		}
	}
}
