package dirstore_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/layouttest"
)

// TestAReadOnlyMountIsServed, with and without a place for staging files. It needs
// the right to mount.
func TestAReadOnlyMountIsServed(t *testing.T) {
	for name, staging := range map[string]bool{"with staging": true, "without staging": false} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			old := layouttest.Unpack(t, firstFormat, dir)
			if !staging {
				require.NoError(t, os.RemoveAll(filepath.Join(dir, layout.Staging)))
			}
			if err := syscall.Mount(dir, dir, "", syscall.MS_BIND, ""); err != nil {
				t.Skip("no mount: ", err)
			}
			t.Cleanup(func() { assert.NoError(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
			require.NoError(t, syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""))
			s := open(t, dir)
			layouttest.AssertServed(t, s)
			assert.ErrorIs(t, s.PutManifest(t.Context(), repo, manifestOf(image(1), "v1")), syscall.EROFS)
			assert.ErrorIs(t, s.PutBlob(t.Context(), repo, descriptor([]byte("new")), strings.NewReader("new")), syscall.EROFS)
			assert.ErrorIs(t, s.Sweep(t.Context()), syscall.EROFS)
			require.NoError(t, s.Close())
			layouttest.AssertUnchanged(t, dir, old)
		})
	}
}
