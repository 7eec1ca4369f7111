package dirstore_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// kinds are manifests of all kinds.
func kinds() map[string]*pullthroughtest.Image {
	untyped := []byte(`{"schemaVersion":2,"config":{"digest":"x","size":1},"layers":[]}`)
	return map[string]*pullthroughtest.Image{
		"OCI image":              image(1),
		"Docker image":           pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, Docker: true}),
		"OCI index":              pullthroughtest.NewIndex(image(1), image(2)),
		"Docker list":            pullthroughtest.NewIndex(pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, Docker: true})),
		"artifact as an image":   pullthroughtest.NewImage(pullthroughtest.ImageOptions{ArtifactType: "application/vnd.example", Subject: image(1)}),
		"artifact of its own":    artifact("1"),
		"sha512":                 pullthroughtest.NewImage(pullthroughtest.ImageOptions{Algorithm: digest.SHA512}),
		"a type that is unsaid":  {MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(untyped), Content: untyped},
		"a type of its own kind": {MediaType: "application/vnd.cncf.helm.chart+json", Digest: digest.FromString(`{}`), Content: []byte(`{}`)},
	}
}

func TestManifestsComeBack(t *testing.T) {
	for name, img := range kinds() {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			assertNoManifest(t, s, repo, "v1")
			assertNoManifest(t, s, repo, img.Digest.String())
			want := manifestOf(img, "v1")
			put(t, s, repo, want)
			for range 2 { // the second time after a restart
				assertStored(t, want, get(t, s, repo, "v1"))
				untagged := *want
				untagged.Tag = ""
				assertStored(t, &untagged, get(t, s, repo, img.Digest.String()))
				assertNoManifest(t, s, repo, "v2")
				assertNoManifest(t, s, other, "v1")
				assertNoManifest(t, s, other, img.Digest.String())
				require.NoError(t, s.Close())
				s = open(t, dir)
			}
			assertSound(t, dir)
		})
	}
}

func TestAManifestWithoutATag(t *testing.T) {
	s := open(t, t.TempDir())
	want := manifestOf(image(1), "")
	put(t, s, repo, want)
	assertStored(t, want, get(t, s, repo, want.Descriptor.Digest.String()))
	assertNoManifest(t, s, repo, "latest")
}

// TestOnlyWhatTheRegistryReadsIsInItsSight: one manifest that it cannot read
// ends its garbage collection.
func TestOnlyWhatTheRegistryReadsIsInItsSight(t *testing.T) {
	for name, content := range map[string]string{
		"another type":                `{"schemaVersion":2,"mediaType":"application/vnd.oci.artifact.manifest.v1+json"}`,
		"no schema version":           `{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`,
		"no type and half an index":   `{"schemaVersion":2,"manifests":7,"annotations":{}}`,
		"no type, an odd annotation":  `{"schemaVersion":2,"config":{},"layers":[],"annotations":{"n":1}}`,
		"an image, an odd annotation": `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[],"annotations":{"n":1}}`,
		"a list, odd features":        `{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json","manifests":[{"platform":{"features":"sse"}}]}`,
		"no JSON at all":              `<html>`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			odd := &pullthroughtest.Image{MediaType: "application/x+json", Digest: digest.FromString(content), Content: []byte(content)}
			put(t, s, repo, manifestOf(odd, "v1"))
			assert.NoFileExists(t, revisionLink(dir, repo.Name, odd.Digest))
			assert.NoFileExists(t, dataFile(dir, odd.Digest))
			assertStored(t, manifestOf(odd, "v1"), get(t, s, repo, "v1"))

			put(t, s, repo, manifestOf(image(1), "v1"))
			assert.FileExists(t, revisionLink(dir, repo.Name, image(1).Digest))
			assertStored(t, manifestOf(image(1), "v1"), get(t, s, repo, "v1"))
		})
	}
}

func TestATagMoves(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for _, img := range []*pullthroughtest.Image{image(1), image(2), artifact("1"), image(1)} {
		put(t, s, repo, manifestOf(img, "latest"))
		assertStored(t, manifestOf(img, "latest"), get(t, s, repo, "latest"))
	}
	get(t, s, repo, image(2).Digest.String())
	for _, img := range []*pullthroughtest.Image{image(1), image(2), artifact("1")} {
		assert.FileExists(t, filepath.Join(filepath.Dir(tagLink(dir, repo.Name, "latest")), "../index/sha256", img.Digest.Encoded(), "link"), "what it was")
	}
	left, err := os.ReadDir(filepath.Dir(tagLink(dir, repo.Name, "latest")))
	require.NoError(t, err)
	assert.Len(t, left, 2, "a link and one sidecar")
	assertSound(t, dir)
}

func TestASecondTagChangesNothingElse(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, repo, manifestOf(image(1), "v1"))
	before := files(t, dir)
	second := manifestOf(image(1), "v1.0")
	second.CheckedAt, second.Origin = checked.Add(time.Hour), "elsewhere.example"
	put(t, s, repo, second)
	after := files(t, dir)
	for name, content := range before {
		assert.Equal(t, content, after[name], name)
	}
	assert.Len(t, after, len(before)+2, "link and sidecar of the tag")
	assertStored(t, second, get(t, s, repo, "v1.0"))
	assertStored(t, manifestOf(image(1), "v1"), get(t, s, repo, "v1"))
}

// TestStoredContentKeepsItsType: two upstreams may serve the same bytes as two
// types; the first one was verified with what was stored.
func TestStoredContentKeepsItsType(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, repo, manifestOf(artifact("1"), "v1"))
	again := manifestOf(artifact("1"), "v2")
	again.Descriptor.MediaType = "application/vnd.other+json"
	put(t, s, repo, again)
	assert.Equal(t, artifact("1").MediaType, get(t, s, repo, "v2").Descriptor.MediaType)
}

func TestRevalidationChangesTheTimeOnly(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, repo, manifestOf(image(1), "v1"))
	before := files(t, dir)

	again := get(t, s, repo, "v1")
	again.CheckedAt, again.Source = checked.Add(time.Hour), pullthrough.SourceRevalidated
	put(t, s, repo, again)
	assertStored(t, again, get(t, s, repo, "v1"))
	assert.Equal(t, checked, get(t, s, repo, image(1).Digest.String()).CheckedAt)
	after := files(t, dir)
	changed := 0
	for name, content := range before {
		if after[name] != content {
			changed++
		}
	}
	assert.Equal(t, 1, changed)
	assert.Len(t, after, len(before))
}

// TestRevalidationMovesNoTag: while upstream was asked, somebody has pushed.
func TestRevalidationMovesNoTag(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, repo, manifestOf(image(1), "v1"))
	again := get(t, s, repo, "v1")
	again.CheckedAt, again.Source = checked.Add(time.Hour), pullthrough.SourceRevalidated
	put(t, s, repo, manifestOf(image(2), "v1"))
	put(t, s, repo, again)
	assertStored(t, manifestOf(image(2), "v1"), get(t, s, repo, "v1"))
}

func TestRevalidationOfWhatIsGoneStoresIt(t *testing.T) {
	s := open(t, t.TempDir())
	again := manifestOf(image(1), "v1")
	again.Source = pullthrough.SourceRevalidated
	put(t, s, repo, again)
	assertStored(t, again, get(t, s, repo, "v1"))
}

func TestAPutOfTheSameTagWritesNothing(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, repo, manifestOf(image(1), "v1"))
	var written []string
	s.SetProbe(func(op, name string) error {
		if op == "create" || op == "rename" {
			written = append(written, name)
		}
		return nil
	})
	put(t, s, repo, manifestOf(image(1), "v1"))
	assert.Empty(t, written)
}

func TestWrongManifestsAreRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	wrong := manifestOf(image(1), "v1")
	wrong.Content = image(2).Content
	assert.ErrorIs(t, s.PutManifest(t.Context(), repo, wrong), pullthrough.ErrDigest)
	large := make([]byte, 4<<20+1)
	m := &pullthrough.Manifest{Content: large, Descriptor: ocispec.Descriptor{Digest: digest.FromBytes(large)}}
	assert.ErrorIs(t, s.PutManifest(t.Context(), repo, m), pullthrough.ErrTooLarge)
	assert.Empty(t, files(t, dir))
}

// testReadersDuringTagMoves: a reader sees one manifest or the other, and with
// each what is known of it.
func testReadersDuringTagMoves(t *testing.T) {
	dir := t.TempDir()
	writer, reader := open(t, dir), open(t, dir)
	want := make(map[digest.Digest]*pullthrough.Manifest)
	images := []*pullthroughtest.Image{image(1), image(2), artifact("1")}
	for i, img := range images {
		m := manifestOf(img, "latest")
		m.Origin = fmt.Sprintf("upstream%d.example", i)
		want[img.Digest] = m
	}
	put(t, writer, repo, want[images[0].Digest])
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				m, err := reader.Manifest(t.Context(), repo, "latest")
				if !assert.NoError(t, err) {
					return
				}
				assertStored(t, want[m.Descriptor.Digest], m)
			}
		})
	}
	for i := range 60 {
		put(t, writer, repo, want[images[i%len(images)].Digest])
	}
	close(done)
	wg.Wait()
}

func testManyPutsOfOneManifestAtOnce(t *testing.T) {
	dir := t.TempDir()
	first, second := open(t, dir), open(t, dir)
	want := manifestOf(image(1), "v1")
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			s := first
			if i%2 == 1 {
				s = second
			}
			assert.NoError(t, s.PutManifest(t.Context(), repo, want))
			m, err := s.Manifest(t.Context(), repo, "v1")
			if assert.NoError(t, err) {
				assertStored(t, want, m)
			}
		})
	}
	wg.Wait()
	assertSound(t, dir)
	assert.Empty(t, staged(t, dir))
}

// TestStoresMoveATagAtOnce: whichever is last, the tag is whole and has its
// sidecar, or it would pass for one that was pushed here.
func TestStoresMoveATagAtOnce(t *testing.T) {
	dir := scratch(t)
	put(t, open(t, dir), repo, manifestOf(image(1), "v1"))
	stores := []*dirstore.Store{open(t, dir), open(t, dir), open(t, dir)}
	for round := range int64(200) {
		var wg sync.WaitGroup
		for i, s := range stores {
			wg.Go(func() {
				for j := range int64(3) {
					assert.NoError(t, s.PutManifest(t.Context(), repo, manifestOf(image(1+(round+int64(i)*j)%3), "v1")))
				}
			})
		}
		wg.Wait()
		s := stores[0]
		require.NoError(t, s.Close())
		stores[0] = open(t, dir) // one that remembers nothing
		m := get(t, stores[0], repo, "v1")
		require.Equal(t, checked, m.CheckedAt)
		require.Equal(t, "registry.example", m.Origin)
	}
}
