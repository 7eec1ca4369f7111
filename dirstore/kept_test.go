package dirstore_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
)

// TestFewDirectoriesStayOpen, and none when the Store is closed.
func TestFewDirectoriesStayOpen(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("none does")
	}
	dir := scratch(t)
	require.NoError(t, open(t, dir).Close())
	before := openAny(t)
	s := open(t, dir)
	for i := range 300 {
		at := pullthrough.Repo{Name: fmt.Sprint("hub/r", i)}
		put(t, s, at, manifestOf(image(1), "v1"))
		putBlob(t, s, at, []byte("layer"))
	}
	assert.Greater(t, s.KeptDirs(), 3)
	assert.LessOrEqual(t, s.KeptDirs(), 512)
	assert.LessOrEqual(t, openAny(t)-before, 2*512+8)
	require.NoError(t, s.Close())
	assert.Equal(t, before, openAny(t))
}

// TestADirectoryThatStaysOpenMayGo: removed at once, moved within a second, and what is put is where it
// belongs.
func TestADirectoryThatStaysOpenMayGo(t *testing.T) {
	for name, away := range map[string]func(name string) error{
		"removed": os.RemoveAll,
		"moved": func(name string) error {
			err := os.Rename(name, name+".away")
			time.Sleep(time.Second)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := scratch(t)
				s := open(t, dir)
				put(t, s, repo, manifestOf(image(1), "v1"))
				d := putBlob(t, s, repo, []byte("layer"))
				for _, gone := range []string{filepath.Join(dir, repositories, repo.Name), filepath.Join(dir, blobs)} {
					require.NoError(t, away(gone))
				}
				_, err := open(t, dir).Manifest(t.Context(), repo, "v1")
				require.Error(t, err)
				assertNoBlob(t, s, repo, d)
				put(t, s, repo, manifestOf(image(1), "v1"))
				putBlob(t, s, repo, []byte("layer"))
				assertStored(t, manifestOf(image(1), "v1"), get(t, open(t, dir), repo, "v1"))
				assert.Equal(t, "layer", string(readBlob(t, open(t, dir), repo, d)))
				assertSound(t, dir)
				assert.Empty(t, staged(t, dir))
				assert.True(t, exists(t, open(t, dir), repo))
			})
		})
	}
}
