//go:build unix

package dirstore_test

import (
	"bytes"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// processRows are the rows of [TestStorage] that need processes of their own.
func processRows() []storageRow {
	return []storageRow{
		{"P06", "64 file descriptors: typed, and healthy again", testFewFileDescriptors},
		{"P07", "killed under load: all that is visible is whole", testKilledUnderLoad},
	}
}

// childDir is the variable that tells a process which a test has started where its
// store is.
const childDir = "DIRSTORE_TEST_DIR"

// childOf runs one of the tests below in a process of its own.
func childOf(t *testing.T, name, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+name+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), childDir+"="+dir)
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

// kills is how often a process is killed; DIRSTORE_TEST_KILLS says another number.
func kills(t *testing.T) int {
	t.Helper()
	given := os.Getenv("DIRSTORE_TEST_KILLS")
	if given == "" {
		return 8
	}
	n, err := strconv.Atoi(given)
	require.NoError(t, err)
	return n
}

// testKilledUnderLoad kills two processes at any moment, again and again, in one
// directory.
func testKilledUnderLoad(t *testing.T) {
	dir := scratch(t)
	for range kills(t) {
		var children []*exec.Cmd
		for range 2 {
			cmd := childOf(t, "TestChildUnderLoad", dir)
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			_, err = io.ReadFull(out, make([]byte, len("ready")))
			assert.NoError(t, err, "a child ended early")
			children = append(children, cmd)
		}
		<-time.After(rand.N(40 * time.Millisecond)) // any moment will do
		for _, cmd := range children {
			require.NoError(t, cmd.Process.Kill())
			_ = cmd.Wait()
		}
		s := open(t, dir)
		assert.Empty(t, staged(t, dir))
		assertSound(t, dir)
		assertLinksLead(t, dir)
		for i := range loadImages {
			img := loadImage(i)
			pull(t, s, repo, img, "v1")
			assertWhole(t, s, repo, img, "v1")
		}
		require.NoError(t, s.Close())
		if t.Failed() {
			return
		}
	}
}

const loadImages = 4

// TestChildUnderLoad is the other process of a test, and nothing by itself. It runs
// until it is killed.
func TestChildUnderLoad(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		return
	}
	s := open(t, dir)
	s.MaxBytes = 100 << 10
	var wg sync.WaitGroup
	for worker := range 3 {
		wg.Go(func() {
			for round := 0; t.Context().Err() == nil; round++ {
				img := loadImage((worker + round) % loadImages)
				loadPull(t, s, img)
				if worker == 0 && round == 1 {
					_, _ = os.Stdout.WriteString("ready")
				}
			}
		})
	}
	wg.Wait()
}

func loadImage(i int) *pullthroughtest.Image { return image(int64(i + 1)) }

// loadPull is a pull that may meet evictions at any moment.
func loadPull(t *testing.T, s *dirstore.Store, img *pullthroughtest.Image) {
	assert.NoError(t, s.PutManifest(t.Context(), repo, manifestOf(img, "v1")))
	for _, b := range append(blobsOf(img), nil) {
		content := noise(uint64(rand.N(30)), 20<<10)
		if b != nil {
			content = bytesOf(t, b)
		}
		stage, err := s.StageBlob(t.Context(), repo, digest.FromBytes(content))
		if !assert.NoError(t, err) {
			return
		}
		_, err = stage.WriteAt(content, 0)
		assert.NoError(t, err)
		assert.NoError(t, stage.Commit(t.Context(), descriptor(content)))
		assert.NoError(t, s.PutBlob(t.Context(), other, descriptor(content), bytes.NewReader(content)))
	}
}

// assertLinksLead is assertNothingDangles for after a crash, which may leave a tag
// without its link: a miss.
func assertLinksLead(t testing.TB, dir string) {
	t.Helper()
	tags, err := filepath.Glob(filepath.Join(dir, repositories, "*/*/*/_manifests/tags/*"))
	require.NoError(t, err)
	for _, tag := range tags {
		if _, err := os.Stat(filepath.Join(tag, "current/link")); err != nil {
			require.NoError(t, os.RemoveAll(tag))
		}
	}
	assertNothingDangles(t, dir)
}
