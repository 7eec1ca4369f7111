package upstream_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestTheSizeOfABlob(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{})
	layer := w.layer(size)
	n, err := w.BlobSize(t.Context(), w.target, layer.Digest)
	require.NoError(t, err)
	assert.EqualValues(t, size, n)
	assert.Equal(t, []string{"bytes=0-0"}, rangesOf(w.up))
	_, err = w.BlobSize(t.Context(), w.target, layer.Digest.Algorithm().FromString("x"))
	assert.ErrorIs(t, err, upstream.ErrNotFound)
}
