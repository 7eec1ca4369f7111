package dirstore_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/verify"
)

func verifying(t testing.TB, dir string) *dirstore.Store {
	t.Helper()
	s := open(t, dir)
	s.VerifyBlobs = true
	return s
}

// flip damages one bit of a file.
func flip(t testing.TB, name string) {
	t.Helper()
	content, err := os.ReadFile(name)
	require.NoError(t, err)
	content[len(content)/2] ^= 1
	require.NoError(t, os.WriteFile(name, content, 0o644))
}

// testDamagedBlobs (F10): bytes that are not the digest's.
func testDamagedBlobs(t *testing.T) {
	content := noise(21, 300<<10)
	d := digest.FromBytes(content)
	for name, damage := range map[string]func(file string){
		"one bit":   func(file string) { flip(t, file) },
		"truncated": func(file string) { require.NoError(t, os.Truncate(file, 1000)) },
		"longer":    func(file string) { write(t, string(content)+"x", file) },
		"empty":     func(file string) { require.NoError(t, os.Truncate(file, 0)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := scratch(t)
			s := verifying(t, dir)
			putBlob(t, s, repo, content)
			damage(dataFile(dir, d))
			assertNoBlob(t, s, repo, d)
			assert.NoFileExists(t, dataFile(dir, d), "no other program shall serve it either")
			assertNoBlob(t, s, repo, d)
			putBlob(t, s, repo, content)
			assert.Equal(t, content, readBlob(t, s, repo, d))
			assert.Empty(t, staged(t, dir))
		})
	}
}

// TestBlobsAreVerifiedOnce by each process, and each file of that name.
func TestBlobsAreVerifiedOnce(t *testing.T) {
	dir := scratch(t)
	content := noise(22, 300<<10)
	d := putBlob(t, open(t, dir), repo, content)
	s := verifying(t, dir)
	var reads atomic.Int64
	s.SetProbe(func(op, name string) error {
		if op == "open" && filepath.Base(name) == "data" {
			reads.Add(1)
		}
		return nil
	})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			b, err := s.Blob(t.Context(), repo, d)
			if assert.NoError(t, err) {
				n, err := io.Copy(io.Discard, b.Body)
				assert.NoError(t, err)
				assert.Equal(t, int64(len(content)), n, "from the first byte")
				assert.NoError(t, b.Body.Close())
			}
		})
	}
	wg.Wait()
	first := reads.Load()
	readBlob(t, s, repo, d)
	assert.Equal(t, first+1, reads.Load(), "it is not read a second time")

	// Another program puts another file there. Were the first one removed, the file system might give its number to the second.
	flipped := append([]byte{content[0] ^ 1}, content[1:]...)
	write(t, string(flipped), dataFile(dir, d)+".new")
	require.NoError(t, os.Rename(dataFile(dir, d)+".new", dataFile(dir, d)))
	assertNoBlob(t, s, repo, d)
}

// TestAFileInThePlaceOfADamagedOneIsAnotherFile: file systems give the number of a
// removed file to the next one.
func TestAFileInThePlaceOfADamagedOneIsAnotherFile(t *testing.T) {
	for size, content := range map[string][]byte{"small": noise(25, 100<<10), "large": noise(26, 2<<20)} {
		t.Run(size, func(t *testing.T) {
			dir := scratch(t)
			s := verifying(t, dir)
			d := putBlob(t, s, repo, content)
			same := dataFile(dir, d) + ".same"
			require.NoError(t, os.Link(dataFile(dir, d), same))
			flip(t, dataFile(dir, d))
			if b, err := s.Blob(t.Context(), repo, d); err == nil {
				require.NoError(t, b.Body.Close())
			}
			s.WaitForReads()
			assertNoBlob(t, s, repo, d)
			write(t, string(content), same)
			require.NoError(t, os.Rename(same, dataFile(dir, d)))
			assert.Equal(t, content, readBlob(t, s, repo, d))
		})
	}
}

// TestAFullReadOutlastsItsClient, and is shared by all.
func TestAFullReadOutlastsItsClient(t *testing.T) {
	for name, size := range map[string]int{"small": 1000, "large": 3 << 20} {
		t.Run(name, func(t *testing.T) {
			dir := scratch(t)
			content := noise(23, size)
			d := putBlob(t, open(t, dir), repo, content)
			s := verifying(t, dir)
			gate, reading := make(chan struct{}), make(chan struct{})
			reads := holdReads(s, reading, gate)
			for range 3 {
				ctx, cancel := context.WithCancel(t.Context())
				failed := make(chan error)
				go func() {
					b, err := s.Blob(ctx, repo, d)
					if err == nil {
						_, err = io.Copy(io.Discard, b.Body)
						assert.NoError(t, b.Body.Close())
					}
					failed <- err
				}()
				<-reading
				cancel()
				assert.ErrorIs(t, <-failed, context.Canceled)
				reading = make(chan struct{})
				close(reading)
			}
			close(gate)
			assert.Equal(t, content, readBlob(t, s, repo, d))
			assert.EqualValues(t, 1, reads.Load())
		})
	}
}

// holdReads has full reads of s wait for gate once they have begun, which closes reading.
// It counts them.
func holdReads(s *dirstore.Store, reading, gate chan struct{}) *atomic.Int64 {
	var reads atomic.Int64
	s.SetProbe(func(op, name string) error {
		if op == "open" && filepath.Base(name) == "data" && strings.Contains(string(debug.Stack()), "verify.(*Reads).work") {
			if reads.Add(1) == 1 {
				close(reading)
			}
			<-gate
		}
		return nil
	})
	return &reads
}

// TestALargeBlobStreamsWhileItIsRead: all but its last 64 KiB. HEAD, which reads
// nothing, has its length.
func TestALargeBlobStreamsWhileItIsRead(t *testing.T) {
	dir := scratch(t)
	content := noise(24, 3<<20)
	d := putBlob(t, open(t, dir), repo, content)
	require.NoError(t, os.Remove(sizeNote(dir, repo.Name, d)))
	s := open(t, dir)
	gate, reading := make(chan struct{}), make(chan struct{})
	reads := holdReads(s, reading, gate)
	head, err := s.Blob(t.Context(), repo, d)
	require.NoError(t, err)
	assert.EqualValues(t, len(content), head.Descriptor.Size)
	require.NoError(t, head.Body.Close())
	<-reading // nobody waits for it

	b, err := s.Blob(t.Context(), repo, d)
	require.NoError(t, err)
	defer func() { assert.NoError(t, b.Body.Close()) }()
	early := make([]byte, len(content)-verify.Held)
	_, err = io.ReadFull(b.Body, early)
	require.NoError(t, err)
	close(gate)
	late, err := io.ReadAll(b.Body)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(content, append(early, late...)))
	assert.EqualValues(t, 1, reads.Load())
	noted, err := os.ReadFile(sizeNote(dir, repo.Name, d))
	require.NoError(t, err)
	assert.Equal(t, strconv.Itoa(len(content)), string(noted))

	next, err := s.Blob(t.Context(), repo, d)
	require.NoError(t, err)
	assert.IsType(t, (*os.File)(nil), next.Body)
	assert.NoError(t, next.Body.Close())
	unread := open(t, dir) // the next process finds the note
	reads = holdReads(unread, nil, nil)
	assert.True(t, bytes.Equal(content, readBlob(t, unread, repo, d)))
	assert.Zero(t, reads.Load())
}

// TestCloseEndsFullReads: who waits is told.
func TestCloseEndsFullReads(t *testing.T) {
	dir := scratch(t)
	content := noise(25, 3<<20)
	d := putBlob(t, open(t, dir), repo, content)
	s := verifying(t, dir)
	gate, reading := make(chan struct{}), make(chan struct{})
	holdReads(s, reading, gate)
	b, err := s.Blob(t.Context(), repo, d)
	require.NoError(t, err)
	<-reading
	failed := make(chan error)
	go func() { _, err := io.Copy(io.Discard, b.Body); failed <- err }()
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	close(gate)
	if err := <-failed; err != nil { // it may have been done before
		assert.ErrorIs(t, err, os.ErrClosed)
	}
	assert.NoError(t, <-closed)
	assert.NoError(t, b.Body.Close())
}

// testDamagedManifests (F10): nor shall another repository, or the registry, serve
// what is damaged.
func testDamagedManifests(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	put(t, s, repo, manifestOf(image(1), "v1"))
	put(t, s, other, manifestOf(image(1), "v1"))
	flip(t, dataFile(dir, image(1).Digest))
	assertNoManifest(t, s, repo, "v1")
	assert.NoFileExists(t, dataFile(dir, image(1).Digest))
	assertNoManifest(t, s, other, "v1")
	put(t, s, repo, manifestOf(image(1), "v1"))
	assertStored(t, manifestOf(image(1), "v1"), get(t, s, repo, "v1"))
	assertStored(t, manifestOf(image(1), "v1"), get(t, s, other, "v1"))
}

// TestDamageIsTold to the operator.
func TestDamageIsTold(t *testing.T) {
	dir := scratch(t)
	s := verifying(t, dir)
	told := new(strings.Builder)
	s.Logger = logger(told)
	d := putBlob(t, s, repo, []byte("layer"))
	flip(t, dataFile(dir, d))
	assertNoBlob(t, s, repo, d)
	assert.Contains(t, told.String(), d.Encoded())
	assert.Equal(t, 1, strings.Count(told.String(), "\n"))
}

// TestASmallBlobDoesNotWaitForLargeOnes, however many are read.
func TestASmallBlobDoesNotWaitForLargeOnes(t *testing.T) {
	dir := scratch(t)
	first, s := open(t, dir), verifying(t, dir)
	content := noise(27, 1000)
	small := putBlob(t, first, repo, content)
	gate, reading := make(chan struct{}), make(chan struct{}, 100)
	s.SetProbe(func(op, name string) error {
		if op == "open" && filepath.Base(name) == "data" && !strings.Contains(name, small.Encoded()) && strings.Contains(string(debug.Stack()), "verify.(*Reads).work") {
			reading <- struct{}{}
			<-gate
		}
		return nil
	})
	for i := range 8 {
		b, err := s.Blob(t.Context(), repo, putBlob(t, first, repo, noise(uint64(100+i), verify.Small+1)))
		require.NoError(t, err)
		require.NoError(t, b.Body.Close())
	}
	for range 4 {
		<-reading
	}
	assert.Equal(t, content, readBlob(t, s, repo, small))
	close(gate)
}
