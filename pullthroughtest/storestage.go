package pullthroughtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
)

var stageChecks = []storeCheck{
	{"a stage becomes a blob", needsStager, ruleCommit, checkStage},
	{"a stage can be read before, during and after", needsStager, ruleStageFiles, checkStageReaders},
	{"a stage that is sparse takes any order", needsStager, ruleSparse, checkSparseStage},
	{"a stage that is aborted leaves nothing", needsStager, ruleAbort, checkAbort},
	{"a stage that is aborted leaves what was there", needsStager, ruleAbort, checkAbortBeside},
	{"stages of one blob at once", needsStager, ruleStageEach, checkStagesTogether},
	{"a commit whose context has ended keeps nothing", needsStager, ruleCommit, checkEndedCommit},
	{"a stage that is kept goes on", needsStager, ruleResume, checkKept},
}

// blobKeeper and keptStage are what [pullthrough.BlobStager] says of Stores that keep downloads.
type (
	blobKeeper interface {
		ResumeBlob(ctx context.Context, repo pullthrough.Repo, d digest.Digest, key string) (pullthrough.Stage, error)
	}
	keptStage interface {
		pullthrough.Stage
		KeepAs(key string, size int64)
		Have() (size int64, have [][2]int64)
		Keep() error
	}
)

// stage returns a new stage, or nil if the Store has none and says so.
func (s *storeTest) stage(repo pullthrough.Repo, d digest.Digest) pullthrough.Stage {
	s.Helper()
	stage, err := s.store.(pullthrough.BlobStager).StageBlob(s.Context(), repo, d)
	if errors.Is(err, errors.ErrUnsupported) {
		s.Logf("the Store lends no stages: %v", err)
		return nil
	}
	if err != nil || stage == nil {
		s.under(ruleStageEach).Fatalf("StageBlob returned %v, %v: the download would go elsewhere, and be copied", stage, err)
	}
	return stage
}

// write writes content[from:to] to the stage in pieces. It reuses its buffer at once.
func (s *storeTest) write(stage pullthrough.Stage, content []byte, from, to int) {
	s.Helper()
	buf := make([]byte, 100_000)
	for from < to {
		n := copy(buf, content[from:to])
		if written, err := stage.WriteAt(buf[:n], int64(from)); err != nil || written != n {
			s.Fatalf("WriteAt(%d bytes, %d) returned %d, %v", n, from, written, err)
		}
		clear(buf)
		from += n
	}
}

func stageDescriptor(content []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(content), Size: int64(len(content))}
}

// commit commits content that has been written.
func (s *storeTest) commit(stage pullthrough.Stage, content []byte) {
	s.Helper()
	if err := stage.Commit(s.Context(), stageDescriptor(content)); err != nil {
		s.under(ruleCommit).Errorf("Commit of %d bytes failed: %v", len(content), err)
	}
}

func checkStage(s *storeTest) {
	repo := storeRepo("stage")
	for i, size := range []int{0, 1, 64 << 10, 5<<20 + 3} {
		content := storeNoise(int64(100+i), size)
		d := digest.FromBytes(content)
		stage := s.stage(repo, d)
		if stage == nil {
			return
		}
		s.write(stage, content, 0, size/2)
		s.under(ruleStage).wantNoBlob(repo, d, "while it is staged")
		s.write(stage, content, size/2, size)
		s.under(ruleStage).wantNoBlob(repo, d, "before Commit, though all of it is written")
		s.commit(stage, content)
		s.wantBlob(repo, d, content)
		s.wantNoBlob(storeRepo("stage-too"), d, "when it was staged for another repository")

		again := s.stage(repo, d)
		s.write(again, content, 0, size)
		s.commit(again, content)
		s.wantBlob(repo, d, content)
	}
}

// openStage opens a file of the stage and reads its first n bytes.
func (s *storeTest) openStage(stage pullthrough.Stage, content []byte, n int) *os.File {
	s.Helper()
	f, err := stage.Open()
	if err != nil {
		s.Fatalf("Open failed with %d bytes written: %v", n, err)
	}
	got := make([]byte, n)
	if _, err := io.ReadFull(f, got); err != nil || !bytes.Equal(got, content[:n]) {
		s.Errorf("a file of the stage does not begin with the %d bytes that were written, at offset 0: %v", n, err)
	}
	return f
}

// wantRest reads the file to its end, compares it with want and closes it.
func (s *storeTest) wantRest(f *os.File, want []byte, when string) {
	s.Helper()
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, want) {
		s.Errorf("a file that was opened before has %d bytes of %d left %s, and %v", len(got), len(want), when, err)
	}
	if err := f.Close(); err != nil {
		s.Errorf("Close of a file of the stage failed: %v", err)
	}
}

func checkStageReaders(s *storeTest) {
	repo, content := storeRepo("stage-readers"), storeNoise(110, 2<<20+1)
	stage := s.stage(repo, digest.FromBytes(content))
	if stage == nil {
		return
	}
	first := s.openStage(stage, content, 0)
	s.write(stage, content, 0, 1<<20)
	second := s.openStage(stage, content, 1<<20)
	done := make(chan struct{})
	go func() { // reads while the stage is written
		defer close(done)
		part := make([]byte, 1000)
		for off := 0; off < 1<<20; off += 100_000 {
			if n, err := stage.ReadAt(part[:min(1000, 1<<20-off)], int64(off)); !bytes.Equal(part[:n], content[off:off+n]) || n == 0 {
				s.Errorf("ReadAt(%d) beside WriteAt returned %d other bytes, %v", off, n, err)
				return
			}
		}
	}()
	s.write(stage, content, 1<<20, len(content))
	<-done
	third := s.openStage(stage, content, len(content))
	s.commit(stage, content)
	s.wantRest(first, content, "after Commit")
	s.wantRest(second, content[1<<20:], "after Commit")
	s.wantRest(third, nil, "after Commit")
	s.wantBlob(repo, digest.FromBytes(content), content)
}

// checkSparseStage writes a stage in any order, by several goroutines, if it says that it
// takes that.
func checkSparseStage(s *storeTest) {
	repo, content := storeRepo("stage-sparse"), storeNoise(112, 4<<20+3)
	d := digest.FromBytes(content)
	stage := s.stage(repo, d)
	if stage == nil {
		return
	}
	if sparse, ok := stage.(interface{ Sparse() bool }); !ok || !sparse.Sparse() {
		if err := stage.Abort(); err != nil {
			s.Errorf("Abort failed: %v", err)
		}
		return
	}
	const piece = 1 << 20
	s.write(stage, content, 4*piece, len(content))
	var writers sync.WaitGroup
	for _, from := range []int{2, 0, 3, 1} {
		writers.Go(func() {
			if n, err := stage.WriteAt(content[from*piece:(from+1)*piece], int64(from*piece)); err != nil || n != piece {
				s.Errorf("WriteAt(%d bytes, %d) beside others returned %d, %v", piece, from*piece, n, err)
			}
		})
	}
	writers.Wait()
	s.commit(stage, content)
	s.wantBlob(repo, d, content)
}

func checkAbort(s *storeTest) {
	repo, content := storeRepo("abort"), storeNoise(111, 300_000)
	d := digest.FromBytes(content)
	for _, n := range []int{0, 100, len(content)} {
		stage := s.stage(repo, d)
		if stage == nil {
			return
		}
		s.write(stage, content, 0, n)
		f := s.openStage(stage, content, 0)
		if err := stage.Abort(); err != nil {
			s.Errorf("Abort after %d bytes failed: %v", n, err)
		}
		s.wantRest(f, content[:n], "after Abort")
		s.wantNoBlob(repo, d, "after Abort")
	}
	s.mustPutBlob(repo, content)
	s.wantBlob(repo, d, content)
}

func checkAbortBeside(s *storeTest) {
	repo, content := storeRepo("abort-beside"), storeNoise(112, 300_000)
	stage := s.stage(repo, digest.FromBytes(content))
	if stage == nil {
		return
	}
	s.write(stage, content, 0, 100_000)
	d := s.mustPutBlob(repo, content)
	s.write(stage, content, 100_000, 200_000)
	if err := stage.Abort(); err != nil {
		s.Errorf("Abort failed: %v", err)
	}
	s.wantBlob(repo, d, content)
}

func checkStagesTogether(s *storeTest) {
	repos := []pullthrough.Repo{storeRepo("stages"), storeRepo("stages-too")}
	content := storeNoise(113, 400_000)
	var stages []pullthrough.Stage
	for i := range 6 {
		stage := s.stage(repos[i%len(repos)], digest.FromBytes(content))
		if stage == nil {
			return
		}
		stages = append(stages, stage)
	}
	for from := 0; from < len(content); from += 100_000 { // by turns
		for _, stage := range stages {
			s.write(stage, content, from, from+100_000)
		}
	}
	var wg sync.WaitGroup
	for i, stage := range stages {
		wg.Go(func() {
			if i >= 4 {
				if err := stage.Abort(); err != nil {
					s.Errorf("Abort beside commits failed: %v", err)
				}
				return
			}
			s.commit(stage, content)
			s.wantBlob(repos[i%len(repos)], digest.FromBytes(content), content)
		})
	}
	wg.Wait()
	for _, repo := range repos {
		s.wantBlob(repo, digest.FromBytes(content), content)
	}
}

func checkKept(s *storeTest) {
	repo, content := storeRepo("kept"), storeNoise(115, 12<<20+5)
	d, size := digest.FromBytes(content), 12<<20+5
	keeper, ok := s.store.(blobKeeper)
	if !ok {
		s.Logf("the Store keeps no downloads that end early")
		return
	}
	stage, ok := s.stage(repo, d).(keptStage)
	if !ok {
		s.Fatalf("the Store has ResumeBlob, and its Stages have no KeepAs, Have and Keep")
	}
	stage.KeepAs(d.Encoded(), int64(size))
	s.write(stage, content, 0, 3<<20)
	s.write(stage, content, 8<<20, size) // in any order
	s.write(stage, content, 3<<20, 6<<20)
	if err := stage.Keep(); err != nil {
		s.Errorf("Keep failed: %v", err)
	}
	s.wantNoBlob(repo, d, "after Keep")
	if _, err := keeper.ResumeBlob(s.Context(), repo, d, digest.FromString("another").Encoded()); !errors.Is(err, fs.ErrNotExist) {
		s.Errorf("ResumeBlob of another key returned %v: a miss Is fs.ErrNotExist", err)
	}
	again, err := keeper.ResumeBlob(s.Context(), repo, d, d.Encoded())
	if errors.Is(err, fs.ErrNotExist) {
		s.Logf("nothing was kept here: %v", err)
		return
	}
	if err != nil {
		s.Fatalf("ResumeBlob of what was kept failed: %v", err)
	}
	s.goOn(again.(keptStage), content)
	s.wantBlob(repo, d, content)
	if _, err := keeper.ResumeBlob(s.Context(), repo, d, d.Encoded()); !errors.Is(err, fs.ErrNotExist) {
		s.Errorf("ResumeBlob after Commit returned %v: there is nothing left", err)
	}
}

// goOn brings a download to its end that was kept.
func (s *storeTest) goOn(stage keptStage, content []byte) {
	s.Helper()
	size, have := stage.Have()
	if size != int64(len(content)) {
		s.Errorf("Have says that the blob has %d bytes, KeepAs was told %d", size, len(content))
	}
	at := 0
	for _, span := range append(have, [2]int64{size, size}) {
		from, to := int(span[0]), int(span[1])
		if from < at || to < from || to > len(content) || from < to && to > len(content)-64<<10 {
			s.Fatalf("Have says %v: stretches are sorted, and the last 64 KiB are never among them", have)
		}
		part := make([]byte, to-from)
		if n, err := stage.ReadAt(part, int64(from)); !bytes.Equal(part[:n], content[from:to]) {
			s.Errorf("the bytes from %d to %d are not there, though Have says so: %v", from, to, err)
		}
		s.write(stage, content, at, from)
		at = to
	}
	s.commit(stage, content)
}

func checkEndedCommit(s *storeTest) {
	repo, content := storeRepo("ended-commit"), storeNoise(114, 200_000)
	d := digest.FromBytes(content)
	stage := s.stage(repo, d)
	if stage == nil {
		return
	}
	ended, cancel := context.WithCancel(s.Context())
	cancel()
	s.write(stage, content, 0, len(content))
	s.wantEnded("Commit", stage.Commit(ended, stageDescriptor(content)))
	s.wantNoBlob(repo, d, "after a Commit whose context had ended")
	again := s.stage(repo, d)
	s.write(again, content, 0, len(content))
	s.commit(again, content)
	s.wantBlob(repo, d, content)
}
