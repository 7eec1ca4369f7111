package spool_test

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

func TestAProcessMayHaveSomeFilesOpen(t *testing.T) {
	limit := spool.OpenFileLimit()
	assert.GreaterOrEqual(t, limit, int64(64))
	assert.LessOrEqual(t, limit, int64(1<<20))
}

func TestOpenFilesAreCounted(t *testing.T) {
	before, limit := spool.OpenFiles()
	assert.Equal(t, spool.OpenFileLimit(), limit)
	if before == 0 {
		t.Skip("nobody tells here")
	}
	dir := t.TempDir()
	for range 50 {
		f, err := os.Open(dir)
		require.NoError(t, err)
		defer func() { assert.NoError(t, f.Close()) }()
	}
	after, _ := spool.OpenFiles()
	assert.InDelta(t, before+50, after, 40, "all but the gaps")
	assert.Greater(t, after, before)
}

func TestNothingIsLeftOnDisk(t *testing.T) {
	dir := t.TempDir()
	s := spool.New(spool.Options{Dir: dir, Size: 5 << 20})
	write(t, s, content(5<<20))
	s.Finish()
	r := open(t, s)
	s.Release()
	_, err := io.Copy(io.Discard, r)
	require.NoError(t, err, "readers outlive the owner")
	require.NoError(t, r.Close())
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	assert.Empty(t, left)
}
