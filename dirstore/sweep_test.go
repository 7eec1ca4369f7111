package dirstore_test

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// TestAPutStartsASweep, and Close ends it.
func TestAPutStartsASweep(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	s.MaxBytes = 250 << 10
	for i := range 20 {
		pull(t, s, repo, large(int64(i)), "v"+strconv.Itoa(i))
		s.WaitForSweep()
		assert.LessOrEqual(t, contentBytes(t, dir), s.MaxBytes)
		assertWhole(t, s, repo, large(int64(i)), "v"+strconv.Itoa(i))
	}
	assertNothingDangles(t, dir)
	assert.Equal(t, contentBytes(t, dir), counted(t, dir))
	require.NoError(t, s.Close())
	assert.ErrorIs(t, s.Sweep(t.Context()), os.ErrClosed)
}

// testASweepThatFailsHalfWayLosesNothing has each step fail once, and each step be
// the last.
func testASweepThatFailsHalfWayLosesNothing(t *testing.T) {
	t.Parallel()
	index, kept := pullthroughtest.NewIndex(image(1)), image(2)
	prepare := func() (string, int64) {
		dir := scratch(t)
		s := open(t, dir)
		pull(t, s, repo, index, "index")
		pull(t, s, other, index, "index")
		pull(t, s, repo, kept, "kept")
		used(t, dir, image(1), 9*time.Hour)
		used(t, dir, index, 9*time.Hour)
		require.NoError(t, s.Close())
		return dir, contentBytes(t, dir) * 10 / 9 * 6 / 10
	}
	run := func(dir string, max int64, probe func(string, string) error) error {
		s := open(t, dir)
		defer func() { _ = s.Close() }()
		s.MaxBytes = max
		s.SetProbe(probe)
		return s.Sweep(t.Context())
	}
	steps := 0
	dir, max := prepare()
	require.NoError(t, run(dir, max, func(string, string) error { steps++; return nil }))
	assertGone(t, open(t, dir), repo, index, "index")
	for broken := range steps {
		if !testkit.Long() && broken%3 != steps%3 {
			continue // a third of the steps shows what all show
		}
		for _, forGood := range []bool{false, true} {
			dir, max := prepare()
			step := 0
			err := run(dir, max, func(string, string) error {
				if step++; step == broken+1 || forGood && step > broken {
					return syscall.EIO
				}
				return nil
			})
			if err != nil {
				assert.ErrorIs(t, err, syscall.EIO)
			}
			s := open(t, dir)
			assertSound(t, dir)
			assertNothingDangles(t, dir)
			assertWhole(t, s, repo, kept, "kept")
			for _, at := range []pullthrough.Repo{repo, other} { // whole, or a miss; the next pull heals it
				if m, err := s.Manifest(t.Context(), at, "index"); err == nil {
					assert.Equal(t, index.Content, m.Content)
				} else {
					assert.ErrorIs(t, err, fs.ErrNotExist)
				}
				pull(t, s, at, index, "index")
				assertWhole(t, s, at, index, "index")
			}
			sweep(t, dir, 1)
			for name := range files(t, dir) { // what is young may be about to get a link
				assert.Equal(t, "data", filepath.Base(name), name)
			}
		}
	}
}

// testSweepsAndPullsInTwoProcesses: what has been stored is whole or gone, never
// half there, and nobody is told of anything else.
func testSweepsAndPullsInTwoProcesses(t *testing.T) {
	dir := scratch(t)
	images := make([]*pullthroughtest.Image, 6)
	for i := range images {
		images[i] = large(int64(i % 3))
		if i > 2 {
			images[i] = pullthroughtest.NewIndex(images[i-3])
		}
	}
	var wg sync.WaitGroup
	for worker := range 4 {
		s := open(t, dir)
		s.MaxBytes = 220 << 10
		wg.Go(func() {
			for round := range 12 {
				img := images[(worker+round)%len(images)]
				at := []pullthrough.Repo{repo, other}[round%2]
				if !assert.NoError(t, s.PutManifest(t.Context(), at, manifestOf(img, "latest"))) {
					return
				}
				for _, b := range blobsOf(img) {
					content, err := io.ReadAll(b.Open())
					assert.NoError(t, err)
					assert.NoError(t, s.PutBlob(t.Context(), at, descriptor(content), bytes.NewReader(content)))
					got, err := s.Blob(t.Context(), at, b.Digest)
					if err != nil {
						assert.ErrorIs(t, err, fs.ErrNotExist)
						continue
					}
					read, err := io.ReadAll(got.Body)
					assert.NoError(t, err)
					assert.True(t, bytes.Equal(content, read))
					assert.NoError(t, got.Body.Close())
				}
				assert.NoError(t, s.Sweep(t.Context()))
			}
		})
	}
	wg.Wait()
	assertSound(t, dir)
	assertNothingDangles(t, dir)
	sweep(t, dir, 220<<10)
	assert.LessOrEqual(t, contentBytes(t, dir), int64(220<<10))
}

// testUsesInTheFutureAreNotKeptForEver: a clock was wrong.
func testUsesInTheFutureAreNotKeptForEver(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	img, future := large(1), large(2)
	pull(t, s, repo, img, "v1")
	pull(t, s, repo, future, "future")
	used(t, dir, future, -365*24*time.Hour)
	sweep(t, dir, contentBytes(t, dir)-1)
	assertGone(t, open(t, dir), repo, future, "future")
	assertWhole(t, open(t, dir), repo, img, "v1")
}

// TestAFullDiskIsSweptAllTheSame: there is no room for the count, either.
func TestAFullDiskIsSweptAllTheSame(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	pull(t, s, repo, large(1), "v1")
	s.MaxBytes = 1
	s.SetProbe(func(op, _ string) error {
		if op == "count" || op == "create" {
			return syscall.ENOSPC
		}
		return nil
	})
	assert.ErrorIs(t, s.Sweep(t.Context()), syscall.ENOSPC)
	assert.Zero(t, contentBytes(t, dir))
}

// TestASweepThatFailsIsNotTriedByEachPut, but when a tenth more has come.
func TestASweepThatFailsIsNotTriedByEachPut(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	s.MaxBytes = 100 << 10
	var sweeps atomic.Int32
	s.SetProbe(func(op, name string) error {
		if op == "lock" && name == "pullthrough/sweep" {
			sweeps.Add(1)
			return syscall.EIO
		}
		return nil
	})
	for i := range 110 {
		putBlob(t, s, repo, noise(uint64(i), 1<<10))
		s.WaitForSweep()
	}
	counting := sweeps.Load() // nobody knew the size, and then it was too much
	for i := range 20 {
		putBlob(t, s, repo, noise(uint64(1000+i), 1<<10))
		s.WaitForSweep()
	}
	assert.InDelta(t, 2, sweeps.Load()-counting, 1)
}
