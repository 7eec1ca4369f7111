package dirstore_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// rebuilt is another image with the layers of img; each n gives another one.
func rebuilt(img *pullthroughtest.Image, n int) *pullthroughtest.Image {
	again := *img
	again.Content = append([]byte(strings.Repeat(" ", n)), img.Content...)
	again.Digest = digest.FromBytes(again.Content)
	return &again
}

// sweepWith sweeps everything away that may go, and calls meanwhile once, when the
// sweep comes to the step with that name for the nth time.
func sweepWith(t *testing.T, s *dirstore.Store, op, name string, nth int, meanwhile func()) {
	t.Helper()
	s.MaxBytes = 1
	s.SetProbe(func(o, n string) error {
		if o == op && n == name {
			if nth--; nth == 0 {
				meanwhile()
			}
		}
		return nil
	})
	require.NoError(t, s.Sweep(t.Context()))
	s.SetProbe(nil)
	assert.LessOrEqual(t, nth, 0, "the sweep never came to that step")
}

// evicting is the step before the first victims go: all is chosen by then.
const evicting = 2 // the first one is between contents and links

// TestAnImageThatIsUsedWhileItIsToGoKeepsItsLayers, those as well that another
// image had which went before it.
func TestAnImageThatIsUsedWhileItIsToGoKeepsItsLayers(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	first := large(1)
	second := rebuilt(first, 1)
	pull(t, s, repo, first, "first")
	pull(t, s, repo, second, "second")
	used(t, dir, second, 8*time.Hour)
	used(t, dir, first, 9*time.Hour)
	s = open(t, dir)
	sweepWith(t, s, "lock", "pullthrough/gate", evicting, func() { get(t, s, repo, "second") })
	assertNoManifest(t, s, repo, "first")
	assertWhole(t, s, repo, second, "second")
}

// TestAnImageThatIsPutDuringASweepKeepsItsLayers, which were those of the image
// that goes.
func TestAnImageThatIsPutDuringASweepKeepsItsLayers(t *testing.T) {
	img := large(1)
	layer := img.Layers[0].Digest
	for name, at := range map[string]struct {
		op, name string
		nth      int
	}{
		"while contents are looked at":  {"open", strings.TrimPrefix(dataFile("", layer), "/")[:len("docker/registry/v2/blobs/sha256/xx")], 1},
		"before links are looked at":    {"open", "docker/registry/v2/repositories", 1},
		"when it is chosen who must go": {"lock", "pullthrough/gate", evicting},
	} {
		t.Run(name, func(t *testing.T) {
			dir := scratch(t)
			process := open(t, dir)
			pull(t, process, repo, img, "old")
			used(t, dir, img, 9*time.Hour)
			fresh := rebuilt(img, 1)
			for n := 2; fresh.Digest.Encoded()[:2] == img.Digest.Encoded()[:2] || fresh.Digest.Encoded()[:2] == layer.Encoded()[:2]; n++ {
				fresh = rebuilt(img, n) // its directory must be new, so that the sweep has missed it
			}
			s := open(t, dir)
			sweepWith(t, s, at.op, at.name, at.nth, func() { put(t, process, repo, manifestOf(fresh, "new")) })
			assertWhole(t, s, repo, fresh, "new")
			assertNoManifest(t, s, repo, "old")
		})
	}
}

// TestAnIndexThatIsPutDuringASweepKeepsItsChildren.
func TestAnIndexThatIsPutDuringASweepKeepsItsChildren(t *testing.T) {
	dir := scratch(t)
	process := open(t, dir)
	child, foreign := large(1), artifact("child")
	pull(t, process, repo, child, "")
	pull(t, process, repo, foreign, "")
	used(t, dir, child, 9*time.Hour)
	index := pullthroughtest.NewIndex(child, foreign)
	s := open(t, dir)
	sweepWith(t, s, "lock", "pullthrough/gate", evicting, func() { put(t, process, repo, manifestOf(index, "new")) })
	assertWhole(t, s, repo, index, "new")
}

// TestABlobThatIsPutAgainDuringASweepStays.
func TestABlobThatIsPutAgainDuringASweepStays(t *testing.T) {
	dir := scratch(t)
	process := open(t, dir)
	content := noise(1, 100<<10)
	d := putBlob(t, process, repo, content)
	s := open(t, dir)
	sweepWith(t, s, "lock", "pullthrough/gate", evicting, func() { putBlob(t, process, repo, content) })
	assert.Equal(t, content, readBlob(t, s, repo, d))
}

// TestAPutThatWaitsForASweepStoresNothingOnceItsContextHasEnded.
func TestAPutThatWaitsForASweepStoresNothingOnceItsContextHasEnded(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	img, content := large(1), noise(1, 1000)
	stage, err := s.StageBlob(t.Context(), repo, descriptor(content).Digest)
	require.NoError(t, err)
	_, err = stage.WriteAt(content, 0)
	require.NoError(t, err)
	for name, put := range map[string]func(context.Context) error{
		"manifest": func(ctx context.Context) error { return s.PutManifest(ctx, repo, manifestOf(img, "v1")) },
		"blob": func(ctx context.Context) error {
			return s.PutBlob(ctx, repo, descriptor(content), strings.NewReader(string(content)))
		},
		"stage": func(ctx context.Context) error { return stage.Commit(ctx, descriptor(content)) },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		s.SetProbe(func(op, _ string) error {
			if op == "lock" {
				cancel()
			}
			return nil
		})
		assert.ErrorIs(t, put(ctx), context.Canceled, name)
		s.SetProbe(nil)
	}
	assert.Empty(t, files(t, dir))
	assert.Empty(t, staged(t, dir))
}
