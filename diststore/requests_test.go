package diststore_test

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/diststore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A store of its own for who reads: what it knows, it has read itself.
func newPair(t *testing.T) (writer, reader *diststore.Store, p *probe) {
	t.Helper()
	driver := drivers["inmemory"](t)
	p = &probe{StorageDriver: driver, name: "s3aws"}
	return diststore.New(driver), diststore.New(p), p
}

// TestWhatAHitCosts is the README's table: the driver's operations.
func TestWhatAHitCosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		writer, s, p := newPair(t)
		m := manifestOf(image(1), "v1")
		put(t, writer, repo, m)
		d := putBlob(t, writer, repo, noise(1, 1000))
		byTag := func() { get(t, s, repo, "v1") }
		byDigest := func() { get(t, s, repo, m.Descriptor.Digest.String()) }
		blob := func() { readBlob(t, s, repo, d) }
		head := func() { openBlob(t, s, repo, d) }
		for _, step := range []struct {
			name string
			call func()
			want []string
		}{
			{"tag, cold", byTag, []string{"get", "get", "get", "get", "get"}}, // link and sidecar of the tag; link, data, sidecar of the manifest
			{"tag, warm", byTag, nil},
			{"digest, warm", byDigest, nil},
			{"tag, after a second", func() { time.Sleep(time.Second); byTag() }, []string{"get", "get"}},
			{"digest, after a minute", func() { time.Sleep(time.Minute); byDigest() }, []string{"get"}},
			{"blob, cold", blob, []string{"get", "stat", "get"}},
			{"blob, warm", blob, []string{"get"}},
			{"HEAD of a blob, warm", head, nil},
			{"HEAD of a blob, after a minute", func() { time.Sleep(time.Minute); head() }, []string{"get", "stat"}},
		} {
			p.asked()
			step.call()
			assert.ElementsMatch(t, step.want, p.asked(), step.name)
		}
	})
}

// TestWhatANotedSizeCosts, where objects are files: one more request for the first hit, and
// one for a put.
func TestWhatANotedSizeCosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &probe{StorageDriver: drivers["inmemory"](t), name: "filesystem"}
		writer, s := diststore.New(p), diststore.New(p)
		content := noise(1, 1000)
		d := descriptor(content).Digest
		for _, step := range []struct {
			name string
			call func()
			want []string
		}{
			{"put", func() { putBlob(t, writer, repo, content) }, []string{"get", "stat", "put", "put", "put"}},
			{"put, again", func() { putBlob(t, writer, repo, content) }, []string{"get", "stat"}},
			{"cold", func() { readBlob(t, s, repo, d) }, []string{"get", "get", "stat", "get"}},
			{"warm", func() { readBlob(t, s, repo, d) }, []string{"get"}},
			{"HEAD, after a minute", func() { time.Sleep(time.Minute); openBlob(t, s, repo, d) }, []string{"get", "stat"}},
		} {
			p.asked()
			step.call()
			assert.ElementsMatch(t, step.want, p.asked(), step.name)
		}
	})
}

func TestWhatAPutCosts(t *testing.T) {
	_, s, p := newPair(t)
	m, content := manifestOf(image(1), "v1"), noise(1, 1000)
	for _, step := range []struct {
		name string
		call func()
		want []string
	}{
		{"repository", func() { require.NoError(t, s.CreateRepo(t.Context(), repo, pullthrough.Rule{}, pullthrough.Request{})) }, []string{"put"}},
		{"repository, again", func() { require.NoError(t, s.CreateRepo(t.Context(), repo, pullthrough.Rule{}, pullthrough.Request{})) }, nil},
		{"manifest with a tag", func() { put(t, s, repo, m) }, []string{"get", "get", "put", "put", "put", "get", "put", "put", "get"}},
		{"manifest, again", func() { put(t, s, repo, m) }, []string{"get", "get", "get", "get", "get"}},
		{"blob", func() { putBlob(t, s, repo, content) }, []string{"get", "put", "put"}},
		{"blob, again", func() { putBlob(t, s, repo, content) }, []string{"get", "stat"}},
		{"blob that another repository has", func() { putBlob(t, s, other, content) }, []string{"get", "put", "put"}},
		{"large blob", func() { putBlob(t, s, repo, noise(2, large)) }, []string{"get", "stat", "writer", "write", "commit", "put"}},
	} {
		p.asked()
		step.call()
		assert.ElementsMatch(t, step.want, p.asked(), step.name)
	}
}

// amongTags returns what a hit, a move and a new tag ask of the driver in a repository of n tags.
func amongTags(tb testing.TB, n int) (asked map[string][]string) {
	tb.Helper()
	p := &probe{StorageDriver: inmemory.New(), name: "s3aws"}
	s := diststore.New(p)
	put := func(img int64, tag string) {
		require.NoError(tb, s.PutManifest(tb.Context(), repo, manifestOf(image(img), tag)))
	}
	put(2, "")
	for i := range n {
		put(1, fmt.Sprint("v", i))
	}
	asked = make(map[string][]string)
	for _, step := range []struct {
		name string
		call func()
	}{
		{"hit", func() {
			_, err := diststore.New(p).Manifest(tb.Context(), repo, "v0")
			require.NoError(tb, err)
		}},
		{"move", func() { put(2, "v0") }},
		{"new", func() { put(2, "new") }},
	} {
		p.asked()
		step.call()
		asked[step.name] = p.asked()
	}
	return asked
}

// TestMoreTagsAreNotMoreRequests: with S3 the time of a hit and a put is that of its requests.
func TestMoreTagsAreNotMoreRequests(t *testing.T) {
	assert.Equal(t, amongTags(t, 1), amongTags(t, 200))
}

// BenchmarkTags prints the driver's calls for a hit and for puts among more and more tags.
func BenchmarkTags(b *testing.B) {
	for n := 1; n <= 10_000; n *= 10 {
		b.Run(fmt.Sprint("tags=", n), func(b *testing.B) {
			for b.Loop() {
				for name, calls := range amongTags(b, n) {
					b.ReportMetric(float64(len(calls)), "calls-"+name)
				}
			}
		})
	}
}

// TestAnotherProxysTagIsSeenAfterASecond, and what somebody removes after a minute.
func TestAnotherProxysTagIsSeenAfterASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		writer, s, p := newPair(t)
		put(t, writer, repo, manifestOf(image(1), "v1"))
		assertStored(t, manifestOf(image(1), "v1"), get(t, s, repo, "v1"))
		put(t, writer, repo, manifestOf(image(2), "v1"))
		assertStored(t, manifestOf(image(1), "v1"), get(t, s, repo, "v1"))
		time.Sleep(time.Second)
		assertStored(t, manifestOf(image(2), "v1"), get(t, s, repo, "v1"))
		require.NoError(t, p.StorageDriver.Delete(t.Context(), "/"+revisionLink(repo.Name, image(2).Digest)))
		get(t, s, repo, image(2).Digest.String())
		time.Sleep(time.Minute)
		assertNoManifest(t, s, repo, image(2).Digest.String())
		assertNoManifest(t, s, repo, "v1")
	})
}

// TestNobodyMissesWhatHeHasPut: the same store, with no time in between.
func TestNobodyMissesWhatHeHasPut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, p := newPair(t)
		put(t, s, repo, manifestOf(image(1), "v1"))
		get(t, s, repo, "v1")
		put(t, s, repo, manifestOf(image(2), "v1"))
		assertStored(t, manifestOf(image(2), "v1"), get(t, s, repo, "v1"))

		time.Sleep(time.Minute)
		moving := true
		p.fail = func(op, path string) error { // the tag moves while it is being read
			if moving && op == "get" && path == "/"+revisionLink(repo.Name, image(2).Digest) {
				moving = false
				put(t, s, repo, manifestOf(image(3), "v1"))
			}
			return nil
		}
		get(t, s, repo, "v1")
		assert.False(t, moving)
		assertStored(t, manifestOf(image(3), "v1"), get(t, s, repo, "v1"))
	})
}

// TestMemoryIsBounded: large manifests are read each time.
func TestMemoryIsBounded(t *testing.T) {
	writer, s, p := newPair(t)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 9, Layers: 1000, LayerSize: 1})
	require.Greater(t, len(img.Content), 64<<10)
	put(t, writer, repo, manifestOf(img, ""))
	for range 2 {
		p.asked()
		get(t, s, repo, img.Digest.String())
		assert.Len(t, p.asked(), 3)
	}
}

// TestProxiesMoveATagAtOnce: whoever is last, the tag is whole and has its
// sidecar; and it is never missing.
func TestProxiesMoveATagAtOnce(t *testing.T) {
	driver := drivers["inmemory"](t)
	put(t, diststore.New(driver), repo, manifestOf(image(1), "v1"))
	for round := range int64(100) {
		var wg sync.WaitGroup
		for i := range int64(3) {
			wg.Go(func() {
				s := diststore.New(driver)
				for j := range int64(3) {
					assert.NoError(t, s.PutManifest(t.Context(), repo, manifestOf(image(1+(round+i*j)%3), "v1")))
				}
				_, err := diststore.New(driver).Manifest(t.Context(), repo, "v1")
				assert.NoError(t, err)
			})
		}
		wg.Wait()
		m := get(t, diststore.New(driver), repo, "v1")
		require.Equal(t, checked, m.CheckedAt)
		require.Equal(t, "registry.example", m.Origin)
	}
}
