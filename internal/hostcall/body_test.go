package hostcall_test

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
)

func TestBody(t *testing.T) {
	read := func(content string, size int64) (string, error) {
		b, err := io.ReadAll(hostcall.NewBody(t.Context(), strings.NewReader(content), size, nil))
		return string(b), err
	}
	got, err := read("content and more", 7)
	assert.NoError(t, err)
	assert.Equal(t, "content", got, "it ends at its size")
	got, err = read("cont", 7)
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
	assert.Equal(t, "cont", got)
	got, err = read("", 0)
	assert.NoError(t, err)
	assert.Empty(t, got)
}

func TestBodySeeks(t *testing.T) {
	reads := 0
	b := hostcall.NewBody(t.Context(), strings.NewReader("content and more"), 7, func() { reads++ })
	end, err := b.Seek(0, io.SeekEnd)
	require.NoError(t, err)
	assert.EqualValues(t, 7, end)
	_, err = b.Read(make([]byte, 1))
	assert.Equal(t, io.EOF, err)
	at, err := b.Seek(-3, io.SeekCurrent)
	require.NoError(t, err)
	assert.EqualValues(t, 4, at)
	rest, err := io.ReadAll(b)
	require.NoError(t, err)
	assert.Equal(t, "ent", string(rest))
	_, err = b.Seek(-1, io.SeekStart)
	assert.Error(t, err)
	assert.Positive(t, reads)
}

func TestBodyEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	b := hostcall.NewBody(ctx, strings.NewReader("content"), 7, nil)
	_, err := b.Read(make([]byte, 3))
	require.NoError(t, err)
	cancel()
	_, err = io.ReadAll(b)
	assert.ErrorIs(t, err, context.Canceled, "half of a blob is not read to its end")
}
