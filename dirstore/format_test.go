package dirstore_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/layout/layouttest"
)

// TestADirectoryOfTheFirstFormatIsServed: it was written before there was a note
// of the format. What is added changes no file that was there.
func TestADirectoryOfTheFirstFormatIsServed(t *testing.T) {
	dir := scratch(t)
	old := layouttest.Unpack(t, "testdata/format1.txt", dir)
	s := open(t, dir)
	for range 2 { // the second time after a restart
		layouttest.AssertServed(t, s)
		for _, m := range layouttest.Manifests() {
			here, err := s.HasManifest(t.Context(), m.Repo, m.Digest)
			require.NoError(t, err)
			require.True(t, here)
		}
		layouttest.AssertUnchanged(t, dir, old)
		require.NoError(t, s.Close())
		s = open(t, dir)
	}
	layouttest.Add(t, s)
	require.NoError(t, s.Sweep(t.Context()))
	layouttest.AssertUnchanged(t, dir, old)
	assertSound(t, dir)
}
