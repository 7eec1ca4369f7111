//go:build unix

package dirstore_test

import (
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// processRows are the rows of [TestStorage] that need processes of their own.
func processRows() []storageRow {
	return []storageRow{
		{"P06", "64 file descriptors: typed, and healthy again", testFewFileDescriptors},
	}
}

// childDir is the variable that tells a process which a test has started where its
// store is.
const childDir = "DIRSTORE_TEST_DIR"

// childOf runs one of the tests below in a process of its own.
func childOf(t *testing.T, name, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+name+"$", "-test.count=1")
	// With -race a process would sleep for a second before it ends.
	cmd.Env = append(os.Environ(), childDir+"="+dir, "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	return cmd
}

func testFewFileDescriptors(t *testing.T) {
	out, err := childOf(t, "TestChildWithFewFiles", scratch(t)).CombinedOutput()
	assert.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), "PASS")
}

// TestChildWithFewFiles is the other process of a test, and nothing by itself.
func TestChildWithFewFiles(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		return
	}
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 64, Max: 64}))
	s := open(t, dir)
	s.MaxBytes = 1 << 20
	pull(t, s, repo, image(1), "v1")
	s.WaitForSweep()
	layer := []byte("layer")
	d := putBlob(t, s, repo, layer)
	var held []*os.File
	for {
		f, err := os.Open(dir)
		if err != nil {
			require.ErrorIs(t, err, syscall.EMFILE)
			break
		}
		held = append(held, f)
	}
	outOf := func(err error) {
		t.Helper()
		assert.ErrorIs(t, err, syscall.EMFILE)
		assert.NotErrorIs(t, err, fs.ErrNotExist)
	}
	for free := range 2 { // with none left, and with one
		_, err := s.Manifest(t.Context(), repo, "v1")
		outOf(err)
		outOf(s.PutManifest(t.Context(), repo, manifestOf(image(2), "v1")))
		outOf(s.PutBlob(t.Context(), repo, descriptor([]byte("other")), strings.NewReader("other")))
		outOf(s.Sweep(t.Context()))
		if free == 0 {
			_, err = s.Blob(t.Context(), repo, d)
			outOf(err)
			_, err = s.StageBlob(t.Context(), repo, d)
			outOf(err)
			require.NoError(t, held[0].Close())
		}
	}
	for _, f := range held[1:] {
		require.NoError(t, f.Close())
	}
	assertSound(t, dir)
	assert.Empty(t, staged(t, dir))
	assertWhole(t, s, repo, image(1), "v1")
	assert.Equal(t, layer, readBlob(t, s, repo, d))
	pull(t, s, repo, image(2), "v1")
	assertWhole(t, s, repo, image(2), "v1")
	require.NoError(t, s.Sweep(t.Context()))
}
