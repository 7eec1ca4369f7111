package dirstore_test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/dirstore"
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

// TestBlobsAreVerifiedOnce for each process and each file of that name.
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

	require.NoError(t, os.Remove(dataFile(dir, d))) // another program puts another file there
	flipped := append([]byte{content[0] ^ 1}, content[1:]...)
	write(t, string(flipped), dataFile(dir, d))
	assertNoBlob(t, s, repo, d)
}

func TestAVerificationEndsWithItsContext(t *testing.T) {
	dir := scratch(t)
	s := verifying(t, dir)
	d := putBlob(t, s, repo, noise(23, 1000))
	ctx, cancel := context.WithCancel(t.Context())
	s.SetProbe(func(op, name string) error {
		if op == "open" && filepath.Base(name) == "data" {
			cancel()
		}
		return nil
	})
	_, err := s.Blob(ctx, repo, d)
	assert.ErrorIs(t, err, context.Canceled)
	readBlob(t, s, repo, d)
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
