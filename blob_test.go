package pullthrough_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestABlobIsVisibleOnlyWhereUpstreamHasIt(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("mine", "1", img)
	w.Pull(t, "mine", "1", img)
	w.Up.Reset()
	d := img.Blobs()[0].Digest
	_, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("theirs"), Ref: d.String()})
	assert.ErrorIs(t, err, pullthrough.ErrNotFound)
	assert.Equal(t, []string{"GET /v2/theirs/blobs/" + d.String() + " 404"}, w.Up.Log())
}
