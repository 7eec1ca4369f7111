package spool_test

import (
	"io"
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
