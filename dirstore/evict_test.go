package dirstore_test

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// large is an image with a layer of 100 KiB that no other has.
func large(seed int64) *pullthroughtest.Image {
	return pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: seed, LayerSize: 100 << 10, Layers: 1})
}

// pull stores an image with all its blobs, as a pull does.
func pull(t testing.TB, s *dirstore.Store, repo pullthrough.Repo, img *pullthroughtest.Image, tag string) {
	t.Helper()
	put(t, s, repo, manifestOf(img, tag))
	for _, b := range blobsOf(img) {
		putBlob(t, s, repo, bytesOf(t, b))
	}
	for _, child := range img.Children {
		pull(t, s, repo, child, "")
	}
}

func blobsOf(img *pullthroughtest.Image) []*pullthroughtest.Blob {
	if img.Config == nil {
		return nil
	}
	return append([]*pullthroughtest.Blob{img.Config}, img.Layers...)
}

func bytesOf(t testing.TB, b *pullthroughtest.Blob) []byte {
	t.Helper()
	content, err := io.ReadAll(b.Open())
	require.NoError(t, err)
	return content
}

// assertWhole checks that the image can be pulled.
func assertWhole(t testing.TB, s *dirstore.Store, repo pullthrough.Repo, img *pullthroughtest.Image, tag string) {
	t.Helper()
	if tag != "" {
		assert.Equal(t, img.Digest, get(t, s, repo, tag).Descriptor.Digest)
	}
	assert.Equal(t, img.Content, get(t, s, repo, img.Digest.String()).Content)
	for _, b := range blobsOf(img) {
		assert.Equal(t, bytesOf(t, b), readBlob(t, s, repo, b.Digest))
	}
	for _, child := range img.Children {
		assertWhole(t, s, repo, child, "")
	}
}

// assertGone checks that nothing of the image is left in the repository.
func assertGone(t testing.TB, s *dirstore.Store, repo pullthrough.Repo, img *pullthroughtest.Image, tag string) {
	t.Helper()
	if tag != "" {
		assertNoManifest(t, s, repo, tag)
	}
	assertNoManifest(t, s, repo, img.Digest.String())
	for _, b := range blobsOf(img) {
		assertNoBlob(t, s, repo, b.Digest)
	}
	for _, child := range img.Children {
		assertGone(t, s, repo, child, "")
	}
}

// used says on the disk when a manifest was used last.
func used(t testing.TB, dir string, img *pullthroughtest.Image, ago time.Duration) {
	t.Helper()
	at := time.Now().Add(-ago)
	require.NoError(t, os.Chtimes(dataFile(dir, img.Digest), at, at))
	for _, b := range blobsOf(img) {
		require.NoError(t, os.Chtimes(dataFile(dir, b.Digest), at, at))
	}
}

// contentBytes is the size of all content.
func contentBytes(t testing.TB, dir string) (size int64) {
	t.Helper()
	for name, content := range files(t, dir) {
		if isKept(name) {
			size += int64(len(content))
		}
	}
	return size
}

func counted(t testing.TB, dir string) int64 {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "pullthrough/size"))
	require.NoError(t, err)
	size, err := strconv.ParseInt(string(content), 10, 64)
	require.NoError(t, err)
	return size
}

// sweep brings the directory under max bytes, with a Store of its own: it knows
// of uses what is on the disk.
func sweep(t testing.TB, dir string, max int64) {
	t.Helper()
	s := open(t, dir)
	s.MaxBytes = max
	require.NoError(t, s.Sweep(t.Context()))
	require.NoError(t, s.Close())
	assertSound(t, dir)
	assertNothingDangles(t, dir)
	assert.Empty(t, staged(t, dir))
	assert.Equal(t, contentBytes(t, dir), counted(t, dir))
}

// assertNothingDangles: each link leads to content, each manifest's link does, and
// no tag is without a link.
func assertNothingDangles(t testing.TB, dir string) {
	t.Helper()
	found := files(t, dir)
	for name, content := range found {
		if filepath.Base(name) != "link" || strings.Contains(name, "/index/") {
			continue
		}
		d, tree := digest.Digest(content), strings.Split(name, "/repositories/")[0]
		file := filepath.Join(tree, "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded(), "data")
		if strings.Contains(name, "/tags/") { // it may be out of the registry's sight
			_, own := found[strings.Replace(file, "docker/registry/v2", "pullthrough", 1)]
			_, registrys := found[file]
			assert.True(t, own || registrys, name)
			continue
		}
		assert.Contains(t, found, file, name)
	}
	tags, err := filepath.Glob(filepath.Join(dir, repositories, "*/*/*/_manifests/tags/*"))
	require.NoError(t, err)
	for _, tag := range tags {
		assert.FileExists(t, filepath.Join(tag, "current/link"))
	}
}

func TestTheImageUsedLeastRecentlyGoesFirst(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	images := []*pullthroughtest.Image{large(1), large(2), large(3)}
	for i, img := range images {
		pull(t, s, repo, img, "v"+strconv.Itoa(i))
	}
	put(t, s, repo, manifestOf(images[1], "also"))
	used(t, dir, images[0], 3*time.Hour)
	used(t, dir, images[1], 9*time.Hour)
	used(t, dir, images[2], time.Hour)

	all := contentBytes(t, dir)
	sweep(t, dir, all)
	assert.Equal(t, all, contentBytes(t, dir), "nothing goes that has room")
	sweep(t, dir, all-1)
	s = open(t, dir)
	assertGone(t, s, repo, images[1], "v1")
	assertNoManifest(t, s, repo, "also")
	assertWhole(t, s, repo, images[0], "v0")
	assertWhole(t, s, repo, images[2], "v2")
	tags, err := s.Tags(t.Context(), repo)
	require.NoError(t, err)
	assert.ElementsMatch(t, []string{"v0", "v2"}, tags)

	sweep(t, dir, 1)
	assert.Zero(t, contentBytes(t, dir))
	exists, err := s.RepoExists(t.Context(), repo)
	require.NoError(t, err)
	assert.True(t, exists, "the repository stays")
	pull(t, s, repo, images[1], "v1")
	assertWhole(t, s, repo, images[1], "v1")
}

// TestAUseIsNotedOnTheDisk for other processes, once an hour.
func TestAUseIsNotedOnTheDisk(t *testing.T) {
	dir := scratch(t)
	first := open(t, dir)
	old, older := large(1), large(2)
	pull(t, first, repo, old, "old")
	pull(t, first, repo, older, "older")
	used(t, dir, old, 3*time.Hour)
	used(t, dir, older, 5*time.Hour)
	s := open(t, dir)
	var touched []string
	s.SetProbe(func(op, name string) error {
		if op == "touch" {
			touched = append(touched, name)
		}
		return nil
	})
	for range 3 {
		get(t, s, repo, "older")
		readBlob(t, s, repo, older.Layers[0].Digest)
	}
	assert.Len(t, touched, 2)
	sweep(t, dir, contentBytes(t, dir)-1)
	assertGone(t, open(t, dir), repo, old, "old")
	assertWhole(t, open(t, dir), repo, older, "older")
}

// TestAUseIsKnownToTheSecond in the process itself.
func TestAUseIsKnownToTheSecond(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	first, second := large(1), large(2)
	pull(t, s, repo, first, "first")
	pull(t, s, repo, second, "second")
	get(t, s, repo, "second")
	get(t, s, repo, "first") // younger by nothing that the disk knows
	s.MaxBytes = contentBytes(t, dir) - 1
	require.NoError(t, s.Sweep(t.Context()))
	assertGone(t, s, repo, second, "second")
	assertWhole(t, s, repo, first, "first")
}

// TestListedIsNotUsed: Manifests and Resolve say what is there, and nothing stays for that.
func TestListedIsNotUsed(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	first, second := large(1), large(2)
	pull(t, s, repo, first, "first")
	pull(t, s, repo, second, "second")
	get(t, s, repo, "first")
	get(t, s, repo, "second")
	has := func(img *pullthroughtest.Image) (has bool) {
		for d, err := range s.Manifests(t.Context(), repo) {
			require.NoError(t, err)
			has = has || d == img.Digest
		}
		return has
	}
	d, err := s.Resolve(t.Context(), repo, "first")
	require.NoError(t, err)
	assert.Equal(t, first.Digest, d)
	assert.True(t, has(first))
	s.MaxBytes = contentBytes(t, dir) - 1
	require.NoError(t, s.Sweep(t.Context()))
	assert.False(t, has(first))
	assert.True(t, has(second))
	require.NoError(t, s.Close())
	_, err = s.Resolve(t.Context(), repo, "second")
	assert.ErrorIs(t, err, os.ErrClosed)
	for _, err := range s.Manifests(t.Context(), repo) {
		assert.ErrorIs(t, err, os.ErrClosed)
	}
}

// TestWhatAKeptImageNeedsStays: the children of an index, and layers that another
// image has as well, in the same repository or elsewhere.
func TestWhatAKeptImageNeedsStays(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	child, shared, old := large(1), large(2), large(3)
	index := pullthroughtest.NewIndex(child)
	pull(t, s, repo, index, "index")
	pull(t, s, repo, shared, "shared")
	pull(t, s, other, shared, "shared")
	pull(t, s, other, old, "old")
	put(t, s, tenant, manifestOf(old, "lazy")) // its blobs have not been asked for there
	used(t, dir, child, 9*time.Hour)
	used(t, dir, old, 5*time.Hour)
	sweep(t, dir, contentBytes(t, dir)-1)

	s = open(t, dir)
	assertWhole(t, s, repo, index, "index")
	assertWhole(t, s, repo, shared, "shared")
	assertWhole(t, s, other, shared, "shared")
	assertGone(t, s, other, old, "old")
	assertGone(t, s, tenant, old, "lazy")
}

// TestBlobsThatAKeptManifestOfAnotherRepositoryRefersTo stay, also when only the
// repository of the evicted image had them.
func TestBlobsThatAKeptManifestOfAnotherRepositoryRefersTo(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	img, old := large(1), large(2)
	pull(t, s, repo, img, "v1")
	pull(t, s, repo, old, "old")
	second := *img
	second.Content = append([]byte(" "), img.Content...) // another image of the same layers
	second.Digest = digest.FromBytes(second.Content)
	put(t, s, tenant, manifestOf(&second, "lazy"))
	used(t, dir, img, 9*time.Hour)
	used(t, dir, old, 5*time.Hour)
	sweep(t, dir, contentBytes(t, dir)-1)
	s = open(t, dir)
	assertGone(t, s, repo, img, "v1")
	assertGone(t, s, repo, old, "old") // the first one made no room
	assert.Equal(t, second.Digest, get(t, s, tenant, "lazy").Descriptor.Digest)
	assert.FileExists(t, dataFile(dir, img.Layers[0].Digest))
}

func TestWhatIsBeingDownloadedKeepsItsImage(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	s.MaxBytes = 1
	img, otherImage := large(1), large(2)
	pull(t, s, other, otherImage, "v1")
	require.NoError(t, s.Sweep(t.Context()))
	stage, err := s.StageBlob(t.Context(), repo, img.Layers[0].Digest) // first: a put starts a sweep
	require.NoError(t, err)
	put(t, s, repo, manifestOf(img, "v1"))
	require.NoError(t, s.Sweep(t.Context()))
	assertGone(t, s, other, otherImage, "v1")
	assert.Equal(t, img.Digest, get(t, s, repo, "v1").Descriptor.Digest)
	require.NoError(t, stage.Abort())
	require.NoError(t, s.Sweep(t.Context()))
	assertGone(t, s, repo, img, "v1")
}

func testAReaderReadsOnWhileItsBlobGoes(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	img := large(1)
	pull(t, s, repo, img, "v1")
	b, err := s.Blob(t.Context(), repo, img.Layers[0].Digest)
	require.NoError(t, err)
	defer func() { _ = b.Body.Close() }()
	sweep(t, dir, 1)
	assertNoBlob(t, s, repo, img.Layers[0].Digest)
	content, err := io.ReadAll(b.Body)
	require.NoError(t, err)
	assert.Equal(t, bytesOf(t, img.Layers[0]), content)
}

// TestAllKindsAreEvicted: also those that the registry does not see, by sha512, and
// blobs without a manifest.
func TestAllKindsAreEvicted(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	for name, img := range kinds() {
		put(t, s, repo, manifestOf(img, strings.ReplaceAll(name, " ", "-")))
	}
	long := tenant
	long.Name = "a/" + strings.Repeat("b", 240)
	pull(t, s, long, large(1), "v1")
	d := putBlob(t, s, repo, []byte("layer"))
	alias := digest.SHA512.FromString("layer")
	write(t, d.String(), layerLink(dir, repo.Name, alias))
	write(t, "left behind", dataFile(dir, digest.FromString("left behind")))
	at := time.Now().Add(-2 * time.Hour)
	require.NoError(t, os.Chtimes(dataFile(dir, digest.FromString("left behind")), at, at))
	sweep(t, dir, 1)
	assert.Empty(t, files(t, dir))
}

// TestYoungContentWithoutALinkStays: another program may be about to make the link.
// What has been without one for an hour is nobody's any more.
func TestYoungContentWithoutALinkStays(t *testing.T) {
	dir := scratch(t)
	open(t, dir)
	young, old := digest.FromString("young"), digest.FromString("old")
	for d, age := range map[digest.Digest]time.Duration{young: 55 * time.Minute, old: 65 * time.Minute} {
		write(t, map[digest.Digest]string{young: "young", old: "old"}[d], dataFile(dir, d))
		at := time.Now().Add(-age)
		require.NoError(t, os.Chtimes(dataFile(dir, d), at, at))
	}
	sweep(t, dir, 1)
	assert.FileExists(t, dataFile(dir, young))
	assert.NoFileExists(t, dataFile(dir, old))
}
