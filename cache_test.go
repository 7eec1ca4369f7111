package pullthrough_test

import (
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
)

func TestASourceHasAWord(t *testing.T) {
	words := []string{"hit", "fill", "shared", "revalidated", "stale", "unknown"}
	for i, word := range words {
		assert.Equal(t, word, pullthrough.Source(i).String())
	}
	assert.Equal(t, "unknown", pullthrough.Source(-1).String())
}

func TestNewBlobReadsAndSeeks(t *testing.T) {
	content := []byte("some content")
	d := digest.FromBytes(content)
	b := pullthrough.NewBlob(d, content)
	assert.Equal(t, d, b.Descriptor.Digest)
	assert.EqualValues(t, len(content), b.Descriptor.Size)
	assert.Equal(t, pullthrough.SourceHit, b.Source)
	body, ok := b.Body.(io.ReadSeekCloser)
	require.True(t, ok)
	for range 2 {
		got, err := io.ReadAll(body)
		require.NoError(t, err)
		assert.Equal(t, content, got)
		_, err = body.Seek(0, io.SeekStart)
		require.NoError(t, err)
	}
	assert.NoError(t, body.Close())
}
