package dirstore_test

import (
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

