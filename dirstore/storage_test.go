package dirstore_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// storageRow is one fault and its outcome.
type storageRow struct {
	id, fault string
	test      func(*testing.T)
}

// TestStorage is the table of what may go wrong with a disk and with the processes
// on it, and how it must end. P7, processes that are killed, is [TestCrashAtEachPoint]
// and [TestCrashAtAnyMoment]; P10 is also [TestTwoProcesses]. The rows that are missing
// (F7 panics, F8 a Store that blocks, F9 one that is slow, P4, P5) are the proxy's
// business, not a Store's.
func TestStorage(t *testing.T) {
	for _, row := range append(processRows(), []storageRow{
		{"F01", "a reader fails at any byte: nothing is kept", testAReaderThatFailsLeavesNothing},
		{"F01", "a download is given up: nothing is kept", testAnAbortedStageLeavesNothing},
		{"F02", "less was written than announced: no commit", testACommitThatFailsLeavesNothing},
		{"F03", "ENOSPC, EDQUOT, EIO, EMFILE, EACCES at any step: typed, and the next try works", testAFullDiskIsSaidAndHarmsNothing},
		{"F03", "EMFILE is no miss", testAFailureIsNoMiss},
		{"F03", "a sweep that fails at any step has lost nothing", testASweepThatFailsHalfWayLosesNothing},
		{"F04", "a commit fails at any step: absent or whole, and repeatable", testACrashAtAnyStep},
		{"F05", "what is there already is success", testWhatIsThereIsNotWrittenAgain},
		{"F06", "one blob put many times at once", testManyPutsOfOneBlobAtOnce},
		{"F06", "one blob downloaded many times at once", testStagesOfOneDigestAtOnce},
		{"F06", "one manifest put many times at once", testManyPutsOfOneManifestAtOnce},
		{"F10", "links, manifests and sidecars are damaged: a miss, and healed", testDamageIsAMissAndHeals},
		{"F10", "blobs are damaged: verified, a miss, and healed", testDamagedBlobs},
		{"F10", "a damaged manifest is served nowhere", testDamagedManifests},
		{"F10", "a blob of the wrong size is replaced", testABlobOfTheWrongSizeIsReplaced},
		{"F12", "half of what belongs together is missing: a miss, and healed", testHalfIsMissing},
		{"F13", "leftovers of the dead are swept, the living keep theirs", testOthersDownloadsAreNotSwept},
		{"F14", "another process's change is seen after a second", testWhatAnotherProcessDidIsSeenAfterASecond},
		{"F14", "a reader during tag moves sees one or the other", testReadersDuringTagMoves},
		{"F16", "no two tenants share a place", testNoTwoRepositoriesShareAPlace},
		{"F17", "closing fails: no commit, and no file stays open", testCloseFails},
		{"P01", "the context ends at any step: at once, and nothing half-done", testContextEndsAtAnyStep},
		{"P02", "closed while everything runs: refused or whole", testClosedWhileEverythingRuns},
		{"P02", "a closed store says so", testAClosedStoreSaysSo},
		{"P03", "the clock was wrong: nothing is kept for ever", testUsesInTheFutureAreNotKeptForEver},
		{"P10", "processes that put and sweep at once", testSweepsAndPullsInTwoProcesses},
		{"P10", "a reader reads on while its blob is evicted", testAReaderReadsOnWhileItsBlobGoes},
	}...) {
		t.Run(row.id+" "+row.fault, row.test)
	}
}

// testHalfIsMissing removes each file of a pulled image, and each two of them.
func testHalfIsMissing(t *testing.T) {
	img := image(1)
	prepare := func() (string, []string) {
		dir := scratch(t)
		s := open(t, dir)
		pull(t, s, repo, img, "v1")
		var names []string
		for name := range files(t, dir) {
			names = append(names, name)
		}
		return dir, names
	}
	_, names := prepare()
	for i, first := range names {
		for _, second := range names[i:] {
			dir, _ := prepare()
			require.NoError(t, os.Remove(dir+"/"+first))
			if second != first {
				require.NoError(t, os.Remove(dir+"/"+second))
			}
			s := open(t, dir)
			if m, err := s.Manifest(t.Context(), repo, "v1"); err == nil {
				assert.Equal(t, img.Content, m.Content)
			} else {
				assert.ErrorIs(t, err, os.ErrNotExist)
			}
			pull(t, s, repo, img, "v1")
			assertWhole(t, s, repo, img, "v1")
			assertNothingDangles(t, dir)
		}
	}
}

var errClose = errors.New("close failed")

func testCloseFails(t *testing.T) {
	for _, k := range tasks() {
		t.Run(k.name, func(t *testing.T) {
			dir := scratch(t)
			s := open(t, dir)
			put(t, s, repo, manifestOf(image(1), "v1"))
			before := openFiles(t)
			s.SetProbe(func(op, _ string) error {
				if op == "close" {
					return errClose
				}
				return nil
			})
			assert.ErrorIs(t, k.run(t, s), errClose)
			s.SetProbe(nil)
			assert.Equal(t, before, openFiles(t))
			assert.Empty(t, staged(t, dir))
			assertSound(t, dir)
			assertOldOrNew(t, s)
			require.NoError(t, k.run(t, s))
			k.whole(t, s)
		})
	}
}

// openFiles counts the files that this process has open.
func openFiles(t testing.TB) int {
	t.Helper()
	return countOpen(func(info os.FileInfo) bool { return info.Mode().IsRegular() })
}

// openAny counts directories, too, of which a Store keeps some, and not always the same.
func openAny(t testing.TB) int {
	t.Helper()
	return countOpen(func(os.FileInfo) bool { return true })
}

// countOpen is how many descriptors of this process are of that kind, 0 where the system
// does not tell.
func countOpen(counts func(os.FileInfo) bool) (n int) {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if info, err := os.Stat("/proc/self/fd/" + e.Name()); err == nil && counts(info) {
			n++
		}
	}
	return n
}

// testContextEndsAtAnyStep ends the context before each step of a put, a read and
// a sweep. What has begun to be committed may well be finished.
func testContextEndsAtAnyStep(t *testing.T) {
	content := noise(31, 900<<10)
	for name, run := range map[string]func(ctx context.Context, s *dirstore.Store) error{
		"blob": func(ctx context.Context, s *dirstore.Store) error {
			return s.PutBlob(ctx, repo, descriptor(content), bytes.NewReader(content))
		},
		"manifest": func(ctx context.Context, s *dirstore.Store) error {
			return s.PutManifest(ctx, repo, manifestOf(image(2), "v1"))
		},
		"read": func(ctx context.Context, s *dirstore.Store) error {
			_, err := s.Manifest(ctx, repo, "v1")
			return err
		},
		"list":  func(ctx context.Context, s *dirstore.Store) error { _, err := s.Repos(ctx, "", ""); return err },
		"sweep": func(ctx context.Context, s *dirstore.Store) error { return s.Sweep(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			for step, more := 0, true; more; step++ {
				dir := scratch(t)
				s := open(t, dir)
				s.MaxBytes = 1
				pull(t, open(t, dir), repo, image(1), "v1")
				ctx, cancel := context.WithCancel(t.Context())
				n := 0
				s.SetProbe(func(string, string) error {
					if n++; n == step+1 {
						cancel()
					}
					return nil
				})
				err := run(ctx, s)
				s.WaitForSweep()
				more = n > step
				s.SetProbe(nil)
				if err != nil {
					assert.ErrorIs(t, err, context.Canceled)
				}
				cancel()
				assert.Empty(t, staged(t, dir))
				assertSound(t, dir)
				assertNothingDangles(t, dir)
				s.MaxBytes = 0
				pull(t, s, repo, image(1), "v1")
				assertWhole(t, s, repo, image(1), "v1")
			}
		})
	}
}

func testClosedWhileEverythingRuns(t *testing.T) {
	before := openFiles(t)
	for range 20 {
		dir := scratch(t)
		s := open(t, dir)
		s.MaxBytes, s.VerifyBlobs = 20<<10, true
		var wg sync.WaitGroup
		started := make(chan struct{}, 64)
		for i := range 8 {
			content := noise(uint64(40+i), 9<<10)
			wg.Go(func() {
				for {
					select {
					case started <- struct{}{}:
					default:
					}
					if err := closingPull(t, s, image(int64(i)), content); err != nil {
						assert.ErrorIs(t, err, os.ErrClosed)
						return
					}
				}
			})
		}
		for range 16 {
			<-started
		}
		require.NoError(t, s.Close())
		wg.Wait()
		s = open(t, dir)
		assert.Empty(t, staged(t, dir))
		assertSound(t, dir)
		assertNothingDangles(t, dir)
		require.NoError(t, s.Close())
	}
	assert.Equal(t, before, openFiles(t))
}

// closingPull stores and reads an image; it may be evicted meanwhile.
func closingPull(t *testing.T, s *dirstore.Store, img *pullthroughtest.Image, content []byte) error {
	if err := s.PutManifest(t.Context(), repo, manifestOf(img, "v1")); err != nil {
		return err
	}
	stage, err := s.StageBlob(t.Context(), repo, digest.FromBytes(content))
	if err != nil {
		return err
	}
	if _, err := stage.WriteAt(content, 0); err != nil {
		return errors.Join(err, stage.Abort())
	}
	if err := stage.Commit(t.Context(), descriptor(content)); err != nil {
		return err
	}
	b, err := s.Blob(t.Context(), repo, digest.FromBytes(content))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return b.Body.Close()
}
