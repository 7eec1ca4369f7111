package pullthrough_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestAColdPullCostsOneChallengeOneTokenAndOneGetPerObject(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 5})
	w.up.Push("library/alpine", "latest", img)

	w.pull(t, "library/alpine", "latest", img)
	w.settled(t)
	want := []string{"GET /v2/library/alpine/manifests/latest 401", "GET /token 200", "GET /v2/library/alpine/manifests/latest 200"}
	for _, b := range img.Blobs() {
		want = append(want, "GET /v2/library/alpine/blobs/"+b.Digest.String()+" 200")
	}
	assert.Equal(t, want, w.up.Log())

	w.up.Reset()
	w.pull(t, "library/alpine", "latest", img)
	w.pull(t, "library/alpine", img.Digest.String(), img)
	assert.Empty(t, w.up.Log(), "a warm pull asks nobody")
	_ = pullthrough.SourceHit
}
