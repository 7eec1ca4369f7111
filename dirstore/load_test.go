package dirstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
)

// isKept reports whether MaxBytes is about the file.
func isKept(name string) bool {
	return filepath.Base(name) == "data" || strings.Contains(name, "/_referrers/")
}

// kept is the size of all that MaxBytes is about, also while it changes.
func kept(t testing.TB, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && isKept(name) {
			info, infoErr := e.Info()
			if err = infoErr; err == nil {
				n += info.Size()
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	})
	require.NoError(t, err)
	return n
}

// putSomething stores a blob, a staged blob, or an image with its blobs, in turn, and
// reads something.
func putSomething(t *testing.T, s *dirstore.Store, worker, round int) {
	content := noise(uint64(worker*100+round), 256<<10)
	at := pullthrough.Repo{Name: fmt.Sprint("hub/r", round%4)}
	switch round % 3 {
	case 0:
		assert.NoError(t, s.PutBlob(t.Context(), at, descriptor(content), bytes.NewReader(content)))
	case 1:
		stage, err := s.StageBlob(t.Context(), at, digest.FromBytes(content))
		if !assert.NoError(t, err) {
			return
		}
		_, err = stage.WriteAt(content, 0)
		assert.NoError(t, err)
		assert.NoError(t, stage.Commit(t.Context(), descriptor(content)))
	default:
		img := large(int64(worker*100 + round))
		assert.NoError(t, s.PutManifest(t.Context(), at, manifestOf(img, fmt.Sprint("v", worker))))
		for _, b := range blobsOf(img) {
			content, err := io.ReadAll(b.Open())
			assert.NoError(t, err)
			assert.NoError(t, s.PutBlob(t.Context(), at, descriptor(content), bytes.NewReader(content)))
		}
		_, _ = s.Manifest(t.Context(), at, fmt.Sprint("v", worker)) // it may have gone by now
	}
	if b, err := s.Blob(t.Context(), at, digest.FromBytes(content)); err == nil {
		_, err := io.Copy(io.Discard, b.Body)
		assert.NoError(t, err)
		assert.NoError(t, b.Body.Close())
	}
}

// TestTheSizeIsKeptUnderLoad: about, while eight put at once, in one process or more, and
// for certain soon after.
func TestTheSizeIsKeptUnderLoad(t *testing.T) {
	const most, workers = 8 << 20, 8
	for _, processes := range []int{1, 3} {
		t.Run(fmt.Sprint("processes=", processes), func(t *testing.T) {
			dir := scratch(t)
			var stores []*dirstore.Store
			for range processes {
				s := open(t, dir)
				s.MaxBytes = most
				stores = append(stores, s)
			}
			var wg sync.WaitGroup
			var left atomic.Int32
			left.Store(workers)
			for worker := range workers {
				wg.Go(func() {
					defer left.Add(-1)
					for round := range 30 {
						putSomething(t, stores[worker%processes], worker, round)
					}
				})
			}
			var peak int64
			for left.Load() > 0 {
				peak = max(peak, kept(t, dir))
			}
			wg.Wait()
			assert.LessOrEqual(t, peak, int64(2*most), "of some 60 MiB that were put; what goes while it is counted counts, too")
			assert.Eventually(t, func() bool { return kept(t, dir) <= most }, time.Minute, 10*time.Millisecond)
			for _, s := range stores {
				s.WaitForSweep()
			}
			assertSound(t, dir)
			assertNothingDangles(t, dir)
		})
	}
}

// TestWhatWasInUseGoesWhenItIsNotAnyMore, without another put.
func TestWhatWasInUseGoesWhenItIsNotAnyMore(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	s.MaxBytes = 150 << 10
	first, second := large(1), large(2)
	var stages []pullthrough.Stage
	for _, img := range []*ocispec.Descriptor{{Digest: first.Layers[0].Digest}, {Digest: second.Layers[0].Digest}} {
		stage, err := s.StageBlob(t.Context(), repo, img.Digest)
		require.NoError(t, err)
		stages = append(stages, stage)
	}
	pull(t, s, repo, first, "first")
	pull(t, s, repo, second, "second")
	s.WaitForSweep()
	assert.Greater(t, kept(t, dir), s.MaxBytes, "both are being downloaded")
	for _, stage := range stages {
		require.NoError(t, stage.Abort())
	}
	s.WaitForSweep()
	assert.LessOrEqual(t, kept(t, dir), s.MaxBytes)
}

// bigList is a list of referrers of about n bytes.
func bigList(n int) *ocispec.Index {
	return &ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("x"), Size: 3, Annotations: map[string]string{"pad": strings.Repeat("x", n)},
	}}}
}

// TestListsOfReferrersCount, and go: with their subjects, and before all else without.
func TestListsOfReferrersCount(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	old, young := large(1), large(2)
	pull(t, s, repo, old, "old")
	pull(t, s, repo, young, "young")
	used(t, dir, old, 9*time.Hour)
	for _, subject := range []digest.Digest{old.Digest, young.Digest, digest.FromString("nobody's")} {
		for _, n := range []int{200 << 10, 100 << 10} { // the second takes the place of the first
			require.NoError(t, s.PutReferrers(t.Context(), repo, subject, bigList(n), checked))
		}
	}
	require.NoError(t, s.Sweep(t.Context()))
	assert.Equal(t, kept(t, dir), counted(t, dir))
	has := func(subject digest.Digest) bool {
		_, _, err := open(t, dir).Referrers(t.Context(), repo, subject)
		if err != nil {
			assert.ErrorIs(t, err, fs.ErrNotExist)
		}
		return err == nil
	}
	sweep(t, dir, kept(t, dir)-1)
	assert.Equal(t, []bool{true, true, false}, []bool{has(old.Digest), has(young.Digest), has(digest.FromString("nobody's"))})
	sweep(t, dir, kept(t, dir)-1)
	assert.Equal(t, []bool{false, true}, []bool{has(old.Digest), has(young.Digest)})
	assertGone(t, open(t, dir), repo, old, "old")
	assertWhole(t, open(t, dir), repo, young, "young")
}

// TestPutsOfListsStartSweeps: lists of subjects that nobody has, in repositories that
// nobody has.
func TestPutsOfListsStartSweeps(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	s.MaxBytes = 1 << 20
	for i := range 100 {
		at := pullthrough.Repo{Name: fmt.Sprint("hub/junk", i%7)}
		require.NoError(t, s.PutReferrers(t.Context(), at, digest.FromString(fmt.Sprint(i)), bigList(100<<10), checked))
	}
	s.WaitForSweep()
	assert.LessOrEqual(t, kept(t, dir), s.MaxBytes)
	require.NoError(t, s.Sweep(t.Context())) // what is put while a sweep counts may count twice, until the next one
	assert.Equal(t, kept(t, dir), counted(t, dir))
}
