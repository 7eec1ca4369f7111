package fakeecr_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/fakeecr"
)

// A second Server would write over the rules of the first.
func TestOneServerHasADirectory(t *testing.T) {
	dir := t.TempDir()
	first := start(t, fakeecr.Config{Data: dir})
	_, err := fakeecr.New(fakeecr.Config{Data: dir})
	assert.ErrorContains(t, err, dir)
	assert.ErrorContains(t, err, "another fakeecr uses this directory")
	first.stop()
	start(t, fakeecr.Config{Data: dir}).stop()
}

// A directory that keeps no lock can be served.
func TestADirectoryWithoutALockIsServed(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "pullthrough", "fakeecr"), 0o700))
	start(t, fakeecr.Config{Data: dir}).stop()
}
