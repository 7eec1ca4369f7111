package pullthroughtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
)

var contextChecks = []storeCheck{
	{name: "a put whose context has ended keeps nothing", rule: ruleReader, run: checkEndedPut},
	{name: "a look-up whose context has ended is no miss", rule: ruleMiss, run: checkEndedLookUp},
}

// wantEnded checks the error of a put whose context was cancelled.
func (s *storeTest) wantEnded(what string, err error) {
	s.Helper()
	if !errors.Is(err, context.Canceled) {
		s.Errorf("%s returned %v when its context had been cancelled, want an error that Is context.Canceled", what, err)
	}
}

// checkEndedPut ends the context of PutBlob before and during the reads. The reader
// fails from then on, and a Store that returns the reader's error is right. There is
// no such check of PutManifest, which the proxy does not call with an ended context.
func checkEndedPut(s *storeTest) {
	repo, content := storeRepo("ended"), storeNoise(50, 6<<20)
	d, size := digest.FromBytes(content), int64(len(content))
	ended, cancel := context.WithCancel(s.Context())
	cancel()
	s.wantEnded("PutBlob", s.putBlob(ended, repo, d, size, bytes.NewReader(content)))
	s.wantNoBlob(repo, d, "after a put whose context had ended")

	for _, at := range []int64{1, 5 << 20} {
		ctx, cancel := context.WithCancel(s.Context())
		r := &scriptedReader{content: content, at: at, then: func() error { cancel(); return nil }}
		// It reads in pieces, since a single Read that has begun may still return everything.
		err := s.putBlob(ctx, repo, d, size, stubborn{r, hesitant(r)})
		s.wantEnded(fmt.Sprintf("PutBlob after %d of %d bytes", at, size), err)
		s.wantNoBlob(repo, d, "after a put whose context ended while it read")
		cancel()
	}
	s.mustPutBlob(repo, content)
	s.wantBlob(repo, d, content)
}

func checkEndedLookUp(s *storeTest) {
	repo, img := storeRepo("ended-look-up"), storeImage(81)
	s.put(repo, img, "v1")
	ended, cancel := context.WithCancel(s.Context())
	cancel()
	const why = "when its context had been cancelled, so that what is here would be fetched again"
	for _, ref := range []string{"v1", img.Digest.String()} {
		m, err := s.store.Manifest(ended, repo, ref)
		switch {
		case err == nil && (m == nil || m.Descriptor.Digest != img.Digest):
			s.Errorf("Manifest(%s, %s) returned something else %s", repo.Name, ref, why)
		case err != nil && missComplaint(err) == "":
			s.Errorf("Manifest(%s, %s) was a miss %s", repo.Name, ref, why)
		}
	}
	for _, b := range img.Blobs() {
		if _, err := s.readBlob(ended, repo, b.Digest); err != nil && missComplaint(err) == "" {
			s.Errorf("Blob(%s, %s) was a miss %s", repo.Name, b.Digest, why)
		}
	}
	s.wantManifest(repo, "v1", manifestOf(img, "v1"))
}

var togetherChecks = []storeCheck{
	{name: "puts of one blob at once", rule: ruleIdempotent, run: checkBlobTogether},
	{name: "a put that fails beside one that does not", rule: ruleWhole, run: checkFailingBeside},
	{name: "puts of manifests at once", rule: ruleConcurrent, run: checkManifestsTogether},
	{name: "readers while a blob is put again", rule: ruleIdempotent, run: checkReadersOfBlob},
	{name: "readers while a tag moves", rule: ruleMove, run: checkReadersOfTag},
}

func checkBlobTogether(s *storeTest) {
	repos := []pullthrough.Repo{storeRepo("together"), storeRepo("together-too")}
	content := storeNoise(60, 700_000)
	d, size := digest.FromBytes(content), int64(len(content))
	var wg sync.WaitGroup
	for i := range 16 {
		repo := repos[i%len(repos)]
		wg.Go(func() {
			if err := s.putBlob(s.Context(), repo, d, size, bytes.NewReader(content)); err != nil {
				s.Errorf("PutBlob beside others of the same blob failed: %v", err)
			}
			s.wantBlob(repo, d, content)
		})
	}
	wg.Wait()
	for _, repo := range repos {
		s.wantBlob(repo, d, content)
	}
	s.wantNoBlob(storeRepo("together/below"), d, "when it was put into two other repositories only")
}

// checkFailingBeside makes one put of a blob fail half-way, after another one has
// stored the blob. The failing put must not remove the blob or replace it by its half.
func checkFailingBeside(s *storeTest) {
	repo, content := storeRepo("beside"), storeNoise(61, 300_000)
	d, size := digest.FromBytes(content), int64(len(content))
	var good sync.WaitGroup
	var once sync.Once
	beside := func() {
		good.Go(func() {
			if err := s.putBlob(s.Context(), repo, d, size, bytes.NewReader(content)); err != nil {
				s.Errorf("PutBlob beside one that failed, of the same blob, failed: %v", err)
			}
		})
		s.waitBriefly(&good)
	}
	r := &scriptedReader{content: content, at: size / 2, then: func() error { once.Do(beside); return errReader }}
	_ = s.putBlob(s.Context(), repo, d, size, r) // it may succeed, since the blob is there by now
	good.Wait()
	once.Do(func() { s.Errorf("PutBlob has not read the blob, which was not there") })
	s.wantBlob(repo, d, content)
}

// waitBriefly waits for wg for a second at most. A Store may make puts of one blob
// take turns, and then wg ends only after the caller has returned.
func (s *storeTest) waitBriefly(wg *sync.WaitGroup) {
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	timer := time.NewTimer(min(s.patience, time.Second))
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

func checkManifestsTogether(s *storeTest) {
	repo, img := storeRepo("manifests-together"), storeImage(82)
	s.put(repo, img, "")
	tags := []string{"a", "b", "c", "d"}
	var wg sync.WaitGroup
	for i := range 16 {
		tag := tags[i%len(tags)]
		wg.Go(func() {
			if err := s.store.PutManifest(s.Context(), repo, manifestOf(img, tag)); err != nil {
				s.Errorf("PutManifest beside others failed: %v", err)
				return
			}
			if m, err := s.store.Manifest(s.Context(), repo, tag); err != nil || m.Descriptor.Digest != img.Digest {
				s.Errorf("Manifest(%s, %s) returned %v right after it was put", repo.Name, tag, err)
			}
		})
	}
	wg.Wait()
	for _, tag := range tags {
		s.wantManifest(repo, tag, manifestOf(img, tag))
	}
	s.wantManifest(repo, img.Digest.String(), manifestOf(img, ""))
}

// readDuring calls read in several goroutines, again and again, until change has
// returned or read returns false.
func readDuring(readers int, read func() bool, change func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			for read() {
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	change()
	close(done)
	wg.Wait()
}

func checkReadersOfBlob(s *storeTest) {
	repo, content := storeRepo("blob-again"), storeNoise(62, 300_000)
	d := s.mustPutBlob(repo, content)
	held := s.reader(repo, d) // read by half before the puts and by half afterwards
	half := make([]byte, len(content)/2)
	if held != nil {
		if _, err := io.ReadFull(held, half); err != nil {
			s.Fatalf("the first half of a blob cannot be read: %v", err)
		}
	}
	read := func() bool {
		got, err := s.readBlob(s.Context(), repo, d)
		ok := err == nil && bytes.Equal(got, content)
		if !ok {
			s.Errorf("while a blob is put again, a reader got %d bytes of %d, and %v", len(got), len(content), err)
		}
		return ok
	}
	readDuring(3, read, func() {
		for range 12 {
			_ = s.putBlob(s.Context(), repo, d, int64(len(content)), bytes.NewReader(content))
			_ = s.putBlob(s.Context(), repo, d, int64(len(content)), failAt(content, int64(len(content))/2))
		}
	})
	if held == nil {
		return
	}
	rest, err := io.ReadAll(held)
	if err != nil || !bytes.Equal(slices.Concat(half, rest), content) {
		s.Errorf("a reader that was open when the blob was put again got %d bytes of %d, and %v", len(half)+len(rest), len(content), err)
	}
	if err := held.Close(); err != nil {
		s.Errorf("Close failed: %v", err)
	}
}

func checkReadersOfTag(s *storeTest) {
	repo := storeRepo("tag-moves")
	want := map[digest.Digest]*pullthrough.Manifest{}
	var moves []*pullthrough.Manifest
	for i := range int64(3) {
		img := storeImage(90 + i)
		m := manifestOf(img, "latest")
		m.Origin, m.CheckedAt = fmt.Sprintf("upstream%d.example", i), storeTime.Add(time.Duration(i)*time.Hour)
		s.put(repo, img, "")
		want[img.Digest], moves = m, append(moves, m)
	}
	s.putManifest(repo, moves[0])
	read := func() bool {
		m, err := s.store.Manifest(s.Context(), repo, "latest")
		if err != nil || m == nil {
			s.Errorf("while a tag moves, Manifest returned %v", err)
			return false
		}
		known, ok := want[m.Descriptor.Digest]
		if !ok || !bytes.Equal(m.Content, known.Content) || m.Tag != "latest" {
			s.Errorf("while a tag moves, Manifest returned something that was never put: digest %s, tag %q, content %.100q", m.Descriptor.Digest, m.Tag, m.Content)
			return false
		}
		return true
	}
	readDuring(3, read, func() {
		for i := range 40 {
			err := s.store.PutManifest(s.Context(), repo, moves[i%len(moves)])
			if err != nil && !errors.Is(err, pullthrough.ErrImmutable) {
				s.Errorf("PutManifest failed while others read the tag: %v", err)
				return
			}
		}
	})
}
