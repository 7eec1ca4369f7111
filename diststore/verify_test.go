package diststore_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/diststore"
	"github.com/ecr-pullthrough/pullthrough/internal/verify"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// TestAnObjectOfAnotherLengthIsAMiss, at once and in every repository, and the next put
// brings it back for all.
func TestAnObjectOfAnotherLengthIsAMiss(t *testing.T) {
	for driver, openDriver := range drivers {
		for _, content := range [][]byte{noise(1, 100_000), noise(2, 2<<20)} {
			n := len(content)
			for name, damaged := range map[string][]byte{
				"cut": content[:n/2], "a byte less": content[:n-1], "a byte more": append(bytes.Clone(content), 0), "zeros": make([]byte, n-7), "empty": {},
			} {
				t.Run(fmt.Sprintf("%s/%d bytes/%s", driver, n, name), func(t *testing.T) {
					bucket := openDriver(t)
					d := putBlob(t, diststore.New(bucket), repo, content)
					putBlob(t, diststore.New(bucket), other, content)
					s := diststore.New(bucket)
					write(t, bucket, dataFile(d), string(damaged))
					assertNoBlob(t, s, repo, d)
					assertNoBlob(t, s, other, d)
					putBlob(t, s, other, content)
					assertBlob(t, s, repo, content)
					assertBlob(t, s, other, content)
					assertBlob(t, diststore.New(bucket), repo, content)
				})
			}
		}
	}
}

// TestWithoutANoteTheDigestDecides: a reader of a large blob gets all but the end of what
// is wrong, and after that it is a miss. What is right is read once, and noted.
func TestWithoutANoteTheDigestDecides(t *testing.T) {
	content := noise(3, 2<<20)
	p := &probe{StorageDriver: drivers["inmemory"](t)}
	d := putBlob(t, diststore.New(p), repo, content)
	require.NoError(t, p.Delete(t.Context(), "/"+sizeNote(repo.Name, d)))
	p.asked()
	s := diststore.New(p)
	assertBlob(t, s, repo, content)
	assert.ElementsMatch(t, []string{"get", "get", "stat", "get", "stat", "get", "get", "put"}, p.asked(), "link, note; the blob; the full read; the note")
	assertBlob(t, diststore.New(p), repo, content)
	assert.ElementsMatch(t, []string{"get", "get", "stat", "get"}, p.asked())
	noted, err := p.GetContent(t.Context(), "/"+sizeNote(repo.Name, d))
	require.NoError(t, err)
	assert.Equal(t, strconv.Itoa(len(content)), string(noted))

	write(t, p, sizeNote(repo.Name, d), "damaged")
	write(t, p, dataFile(d), string(content[:1<<20+1]))
	putBlob(t, diststore.New(p), other, content[:1<<20]) // another one is not in doubt
	s = diststore.New(p)
	b := openBlob(t, s, repo, d)
	got, err := io.ReadAll(b.Body)
	assert.ErrorIs(t, err, fs.ErrNotExist)
	assert.True(t, bytes.HasPrefix(content, got))
	assert.Len(t, got, 1<<20+1-verify.Held)
	p.asked()
	assertNoBlob(t, s, repo, d)
	assert.Equal(t, []string{"get", "stat"}, p.asked(), "it is known by now")
	putBlob(t, s, repo, content)
	assertBlob(t, s, repo, content)
}

// TestDamageOfTheRightLengthIsReplaced, in all repositories that link the object.
func TestDamageOfTheRightLengthIsReplaced(t *testing.T) {
	for _, content := range [][]byte{noise(7, 100_000), noise(8, 2<<20)} {
		bucket := drivers["inmemory"](t)
		d := putBlob(t, diststore.New(bucket), repo, content)
		putBlob(t, diststore.New(bucket), other, content)
		for _, at := range []pullthrough.Repo{repo, other} {
			require.NoError(t, bucket.Delete(t.Context(), "/"+sizeNote(at.Name, d)))
		}
		write(t, bucket, dataFile(d), string(make([]byte, len(content))))
		s := diststore.New(bucket)
		if b, err := s.Blob(t.Context(), repo, d); err == nil { // a large one
			_, err = io.Copy(io.Discard, b.Body)
			assert.ErrorIs(t, err, fs.ErrNotExist)
			assert.NoError(t, b.Body.Close())
		}
		assertNoBlob(t, s, repo, d)
		assertNoBlob(t, s, other, d)
		putBlob(t, s, repo, content)
		assertBlob(t, s, repo, content)
		assertBlob(t, s, other, content)
	}
}

// TestAManifestThatSaysAnotherSizeCastsDoubt, also where no sizes are noted, and costs
// nothing where it is right.
func TestAManifestThatSaysAnotherSizeCastsDoubt(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1, LayerSize: 2 << 20})
	layer := img.Layers[0]
	content, err := io.ReadAll(layer.Open())
	require.NoError(t, err)
	writer, s, p := newPair(t)
	put(t, writer, repo, manifestOf(img, "v1"))
	putBlob(t, writer, repo, content)
	get(t, s, repo, "v1")
	p.asked()
	assertBlob(t, s, repo, content)
	assert.ElementsMatch(t, []string{"get", "stat", "get"}, p.asked())

	write(t, p, dataFile(layer.Digest), string(content[:1<<20+1]))
	s = diststore.New(p)
	get(t, s, repo, "v1")
	b := openBlob(t, s, repo, layer.Digest)
	_, err = io.Copy(io.Discard, b.Body)
	assert.ErrorIs(t, err, fs.ErrNotExist)
	assertNoBlob(t, s, repo, layer.Digest)
}

// TestAnotherProxyMendsWhatWeFoundDamaged: its object is served.
func TestAnotherProxyMendsWhatWeFoundDamaged(t *testing.T) {
	content := noise(4, 100_000)
	bucket := drivers["inmemory"](t)
	d := putBlob(t, diststore.New(bucket), repo, content)
	write(t, bucket, dataFile(d), string(content[1:]))
	s := diststore.New(bucket)
	assertNoBlob(t, s, repo, d)
	putBlob(t, diststore.New(bucket), other, content)
	assertBlob(t, s, repo, content)
}

// TestAFullReadThatFailsIsNoMiss, and removes nothing.
func TestAFullReadThatFailsIsNoMiss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := noise(5, 1000)
		bucket := drivers["inmemory"](t)
		d := putBlob(t, diststore.New(bucket), repo, content)
		require.NoError(t, bucket.Delete(t.Context(), "/"+sizeNote(repo.Name, d)))
		p := &probe{StorageDriver: bucket}
		p.fail = func(op, path string) error {
			if op == "get" && path == "/"+dataFile(d) {
				return errDriver
			}
			return nil
		}
		s := diststore.New(p)
		_, err := s.Blob(t.Context(), repo, d)
		assert.ErrorIs(t, err, errDriver)
		assert.False(t, errors.Is(err, fs.ErrNotExist))
		p.fail = func(op, path string) error {
			if op == "get" && path == "/"+dataFile(d) {
				panic("the driver's")
			}
			return nil
		}
		_, err = s.Blob(t.Context(), repo, d)
		assert.ErrorContains(t, err, "panicked")
		p.fail = nil
		assertBlob(t, s, repo, content)
	})
}

// TestAnUnknownObjectIsNotRedirectedTo: a client of the bucket would get a cut one.
func TestAnUnknownObjectIsNotRedirectedTo(t *testing.T) {
	content := noise(6, 2<<20)
	p := &probe{StorageDriver: drivers["inmemory"](t), url: "https://bucket.example/signed"}
	d := putBlob(t, diststore.New(p), repo, content)
	require.NoError(t, p.Delete(t.Context(), "/"+sizeNote(repo.Name, d)))
	s := diststore.New(p)
	s.Redirect = true
	assertBlob(t, s, repo, content)
	assert.NotContains(t, p.asked(), "redirect")
}
