package ownstore_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/examples/ownstore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// This is what a host writes to know that its Store is right.
func TestStore(t *testing.T) {
	pullthroughtest.TestStore(t, func(*testing.T) pullthrough.Store { return &ownstore.Store{} })
}

func TestThePullsOfAStoreOfTwoMaps(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store = &ownstore.Store{} })
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 2 << 20})
	w.Up.Push("a", "1", img)
	w.Pull(t, "a", "1", img)
	assert.Equal(t, 1+len(img.Blobs()), len(w.Up.Log()))
	w.Up.Reset()
	w.Pull(t, "a", "1", img)
	assert.Empty(t, w.Up.Log())
}

func TestTheStoreTakes70Lines(t *testing.T) {
	lines := testkit.CodeLines(t, "store.go", nil)
	assert.Greater(t, lines, 50, "this counts something else")
	assert.LessOrEqual(t, lines, 70)
}
