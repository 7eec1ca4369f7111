package dirstore_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/layouttest"
)

const firstFormat = "testdata/format1.txt"

// TestADirectoryOfTheFirstFormatIsServed: it was written before there was a note
// of the format. What is added changes no file that was there.
func TestADirectoryOfTheFirstFormatIsServed(t *testing.T) {
	dir := scratch(t)
	old := layouttest.Unpack(t, firstFormat, dir)
	s := open(t, dir)
	for range 2 { // the second time after a restart
		layouttest.AssertServed(t, s)
		for _, m := range layouttest.Manifests() {
			assert.Contains(t, maps.Collect(s.Manifests(t.Context(), m.Repo)), m.Digest)
		}
		layouttest.AssertUnchanged(t, dir, old)
		require.NoError(t, s.Close())
		s = open(t, dir)
	}
	layouttest.Add(t, s)
	require.NoError(t, s.Sweep(t.Context()))
	layouttest.AssertUnchanged(t, dir, old)
	layouttest.AssertServed(t, open(t, dir))
	assertSound(t, dir)
}

// TestADirectoryThatMayNotBeWrittenIsServed, without a note and without a place
// for staging files. What is to be stored there fails, and nothing is changed.
func TestADirectoryThatMayNotBeWrittenIsServed(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EROFS, syscall.EACCES, syscall.ENOSPC} {
		dir := scratch(t)
		layouttest.Unpack(t, firstFormat, dir)
		require.NoError(t, os.RemoveAll(filepath.Join(dir, layout.Staging)))
		before := everything(t, dir)
		s, err := dirstore.OpenProbed(dir, func(op, _ string) error {
			if op == "open" || op == "stat" {
				return nil
			}
			return errno
		})
		require.NoError(t, err)
		layouttest.AssertServed(t, s)
		assert.ErrorIs(t, s.PutBlob(t.Context(), repo, descriptor([]byte("new")), strings.NewReader("new")), errno)
		assert.ErrorIs(t, s.PutManifest(t.Context(), repo, manifestOf(image(1), "v1")), errno)
		require.NoError(t, s.Close())
		assert.Equal(t, before, everything(t, dir))
	}
	_, err := dirstore.OpenProbed(t.TempDir(), func(op, _ string) error {
		if op == "mkdir" {
			return syscall.EROFS
		}
		return nil
	})
	assert.ErrorIs(t, err, syscall.EROFS, "there is nothing to serve")
}

// everything is the content of all files below dir.
func everything(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := files(t, dir)
	names, err := filepath.Glob(filepath.Join(dir, "pullthrough/*"))
	require.NoError(t, err)
	for _, name := range names {
		content, _ := os.ReadFile(name) // "" of a directory
		found[name] = string(content)
	}
	return found
}

func TestTheFormatIsNotedOnce(t *testing.T) {
	dir := scratch(t)
	require.NoError(t, open(t, dir).Close())
	content, err := os.ReadFile(filepath.Join(dir, layout.Format))
	require.NoError(t, err)
	assert.Equal(t, layout.FormatNote, string(content))
	var ops []string
	s, err := dirstore.OpenProbed(dir, func(op, _ string) error { ops = append(ops, op); return nil })
	require.NoError(t, err)
	assert.NotContains(t, ops, "create")
	put(t, s, repo, manifestOf(image(1), "v1"))
	get(t, s, repo, "v1")
	require.NoError(t, s.Close())

	write(t, "1.7\nthis has more that may be overlooked", dir, layout.Format)
	before := everything(t, dir)
	require.NoError(t, open(t, dir).Close())
	assert.Equal(t, before, everything(t, dir))
}

// TestAnotherFormatIsRefused, with what the note says, and nothing is changed.
func TestAnotherFormatIsRefused(t *testing.T) {
	for content, said := range map[string]string{
		"2\n": "2", "12.1\nas of 2031": "12.1", "": "", "<html>": "<html>", "0": "0", "-1": "-1", strings.Repeat("1", 5000): "too long",
	} {
		dir := scratch(t)
		layouttest.Unpack(t, firstFormat, dir)
		write(t, "left behind", dir, layout.Staging, "dead/file")
		write(t, content, dir, layout.Format)
		before, open := everything(t, dir), openAny(t)
		_, err := dirstore.Open(dir)
		assert.LessOrEqual(t, openAny(t), open, "nothing stays open")
		var other *dirstore.FormatError
		if assert.ErrorAs(t, err, &other, content) {
			assert.Equal(t, said, other.Format)
			assert.ErrorContains(t, err, `pullthrough/format is "`+said+`"`)
		}
		assert.Len(t, staged(t, dir), 1, "not even what was left behind is removed")
		assert.Equal(t, before, everything(t, dir))
	}
}

// TestProcessesNoteTheFormatAtOnce: they all open, and a newer one's note stays.
func TestProcessesNoteTheFormatAtOnce(t *testing.T) {
	dir := scratch(t)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			s, err := dirstore.Open(dir)
			if assert.NoError(t, err) {
				assert.NoError(t, s.Close())
			}
		})
	}
	wg.Wait()
	assert.FileExists(t, filepath.Join(dir, layout.Format))
	assert.Empty(t, staged(t, dir))

	dir = scratch(t)
	_, err := dirstore.OpenProbed(dir, func(op, name string) error {
		if op == "link" {
			write(t, "2", dir, name)
		}
		return nil
	})
	var other *dirstore.FormatError
	assert.ErrorAs(t, err, &other)
	content, err := os.ReadFile(filepath.Join(dir, layout.Format))
	require.NoError(t, err)
	assert.Equal(t, "2", string(content))
}

// TestAStoreWithoutANoteIsAsGood: the disk is full, or has no links.
func TestAStoreWithoutANoteIsAsGood(t *testing.T) {
	for _, broken := range []string{"create", "write", "sync", "close", "link", "syncdir"} {
		dir := scratch(t)
		s, err := dirstore.OpenProbed(dir, func(op, _ string) error {
			if op == broken {
				return syscall.ENOSPC
			}
			return nil
		})
		require.NoError(t, err, broken)
		assert.Empty(t, staged(t, dir))
		s.SetProbe(nil)
		put(t, s, repo, manifestOf(image(1), "v1"))
		require.NoError(t, s.Close())
		get(t, open(t, dir), repo, "v1")
		assert.FileExists(t, filepath.Join(dir, layout.Format), broken)
	}
}

// TestWhatIsReservedIsOverlooked: docs/layout.md says where the next versions put
// what, and that this one uses the directory all the same.
func TestWhatIsReservedIsOverlooked(t *testing.T) {
	dir := scratch(t)
	layouttest.Unpack(t, firstFormat, dir)
	layer := digest.FromString("layer one")
	reserved := map[string]string{
		filepath.Join(filepath.Dir(layerLink("", layouttest.Own.Name, layer)), "size"):                          "9",
		filepath.Join(filepath.Dir(layerLink("", layouttest.Own.Name, digest.FromString("collected"))), "size"): "9",
		"pullthrough/partial/key/sha256-" + layer.Encoded():                                                     "lay",
		"pullthrough/partial/key/sha256-" + layer.Encoded() + ".note":                                           `{"v":1}` + "\n0 3\n",
	}
	for name, content := range reserved {
		write(t, content, dir, name)
	}
	sidecars, err := filepath.Glob(filepath.Join(filepath.Dir(tagLink(dir, layouttest.Own.Name, "v1")), "*.json"))
	require.NoError(t, err)
	require.Len(t, sidecars, 1)
	side, err := os.ReadFile(sidecars[0])
	require.NoError(t, err)
	write(t, strings.Replace(string(side), "{", `{"tag":"v1",`, 1), sidecars[0])
	tree := filepath.Join(dir, layout.Staging, "dead/tree/sha256", layer.Encoded())
	write(t, string(layer), tree, "link")

	s := open(t, dir)
	layouttest.AssertServed(t, s)
	layouttest.Add(t, s)
	require.NoError(t, s.Sweep(t.Context()))
	layouttest.AssertServed(t, s)
	for name, content := range reserved {
		got, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		assert.Equal(t, content, string(got))
	}
	assert.NoDirExists(t, tree)
	s.MaxBytes = 1 // all images go
	require.NoError(t, s.Sweep(t.Context()))
	assert.NoDirExists(t, filepath.Dir(layerLink(dir, layouttest.Own.Name, layer)))
}
