package dirstore_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
)

// steps counts what the store does on the disk from now on.
func steps(s *dirstore.Store) *atomic.Int64 {
	var n atomic.Int64
	s.SetProbe(func(string, string) error { n.Add(1); return nil })
	return &n
}

func TestAManifestThatWasJustReadIsInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, scratch(t))
		want := manifestOf(image(1), "v1")
		put(t, s, repo, want)
		get(t, s, repo, "v1")
		get(t, s, repo, image(1).Digest.String())
		n := steps(s)
		for range 10 {
			assertStored(t, want, get(t, s, repo, "v1"))
			get(t, s, repo, image(1).Digest.String())
		}
		assert.Zero(t, n.Load())
		time.Sleep(time.Second)
		assertStored(t, want, get(t, s, repo, "v1"))
		assert.Equal(t, int64(3), n.Load(), "three links and sidecars, and no content")
		require.NoError(t, s.Close())
		_, err := s.Manifest(t.Context(), repo, "v1")
		assert.ErrorIs(t, err, os.ErrClosed)
	})
}

// testWhatAnotherProcessDidIsSeenAfterASecond (F14): moved, confirmed, evicted.
func testWhatAnotherProcessDidIsSeenAfterASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := scratch(t)
		s, process := open(t, dir), open(t, dir)
		put(t, process, repo, manifestOf(image(1), "v1"))
		get(t, s, repo, "v1")
		d := image(1).Digest.String()
		get(t, s, repo, d)
		seen := func(want *pullthrough.Manifest) {
			time.Sleep(time.Second)
			assertStored(t, want, get(t, s, repo, "v1"))
		}
		put(t, process, repo, manifestOf(image(2), "v1"))
		seen(manifestOf(image(2), "v1"))
		again := manifestOf(image(2), "v1")
		again.CheckedAt, again.Source = checked.Add(time.Hour), pullthrough.SourceRevalidated
		put(t, process, repo, again)
		seen(again)
		require.NoError(t, os.RemoveAll(filepath.Dir(revisionLink(dir, repo.Name, image(1).Digest))))
		require.NoError(t, os.RemoveAll(filepath.Dir(tagLink(dir, repo.Name, "v1"))))
		time.Sleep(time.Second)
		assertNoManifest(t, s, repo, d)
		assertNoManifest(t, s, repo, "v1")
	})
}

// TestWhatWasPutIsReadAtOnce, however many readers have the old one in their hands.
func TestWhatWasPutIsReadAtOnce(t *testing.T) {
	s := open(t, scratch(t))
	put(t, s, repo, manifestOf(image(0), "latest"))
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
				_, err := s.Manifest(t.Context(), repo, "latest")
				assert.NoError(t, err)
			}
		})
	}
	for i := range 100 {
		want := manifestOf(image(int64(i%7)), "latest")
		put(t, s, repo, want)
		assertStored(t, want, get(t, s, repo, "latest"))
	}
	close(done)
	wg.Wait()
}

// TestMemoryIsBounded by number and by size.
func TestMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, scratch(t))
		img := image(1)
		for i := range 600 {
			put(t, s, repo, manifestOf(img, fmt.Sprint("v", i)))
			get(t, s, repo, fmt.Sprint("v", i))
		}
		n := steps(s)
		get(t, s, repo, "v599")
		assert.Zero(t, n.Load())
		get(t, s, repo, "v0")
		assert.NotZero(t, n.Load(), "it was forgotten")
		s.SetProbe(nil)

		large := artifact(strings.Repeat("x", 65<<10))
		put(t, s, repo, manifestOf(large, "large"))
		get(t, s, repo, "large")
		n = steps(s)
		get(t, s, repo, "large")
		assert.NotZero(t, n.Load())
	})
}

// TestTheCheckOfATagIsCheap: a sidecar is written, and nothing else.
func TestTheCheckOfATagIsCheap(t *testing.T) {
	s := open(t, scratch(t))
	put(t, s, repo, manifestOf(image(1), "v1"))
	get(t, s, repo, "v1")
	count := make(map[string]int)
	s.SetProbe(func(op, _ string) error { count[op]++; return nil })
	again := manifestOf(image(1), "v1")
	again.CheckedAt, again.Source = checked.Add(time.Hour), pullthrough.SourceRevalidated
	put(t, s, repo, again)
	assert.Equal(t, map[string]int{"lock": 2, "open": 2, "create": 1, "write": 1, "sync": 1, "close": 1, "rename": 1}, count)
	assertStored(t, again, get(t, s, repo, "v1"))
}

func TestTagsAndDigestsAreNotMixedUp(t *testing.T) {
	s := open(t, scratch(t))
	d := digest.FromString("sha256")
	put(t, s, repo, manifestOf(image(1), d.Encoded()))
	assert.Equal(t, image(1).Digest, get(t, s, repo, d.Encoded()).Descriptor.Digest)
	assertNoManifest(t, s, repo, d.String())
	assertNoManifest(t, s, tenant, d.Encoded())
}
