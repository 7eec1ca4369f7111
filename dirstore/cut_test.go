package dirstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/layouttest"
	"github.com/ecr-pullthrough/pullthrough/internal/verify"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// otherLengths are what disks and programs make of a file.
func otherLengths(content []byte) map[string][]byte {
	n := len(content)
	return map[string][]byte{
		"cut": content[:n/2], "a byte less": content[:n-1], "a byte more": append(bytes.Clone(content), 0),
		"fewer zeros": make([]byte, n-7), "more zeros": make([]byte, n+verify.Held), "empty": {},
	}
}

// TestAFileOfAnotherLengthIsAMiss, at once and for every repository that has the blob,
// and the next put brings it back for all.
func TestAFileOfAnotherLengthIsAMiss(t *testing.T) {
	for size, content := range map[string][]byte{"small": noise(31, 100<<10), "large": noise(32, 2<<20)} {
		for name, damaged := range otherLengths(content) {
			for _, process := range []string{"the same process", "another process"} {
				t.Run(size+"/"+name+"/"+process, func(t *testing.T) {
					dir := scratch(t)
					s := open(t, dir)
					d := putBlob(t, s, repo, content)
					putBlob(t, s, other, content)
					before, err := s.Blob(t.Context(), repo, d)
					require.NoError(t, err)
					defer func() { assert.NoError(t, before.Body.Close()) }()
					if process != "the same process" {
						s = open(t, dir)
					}
					write(t, string(damaged), dataFile(dir, d))
					assertNoBlob(t, s, repo, d)
					assertNoBlob(t, s, other, d)
					putBlob(t, s, other, content)
					for _, at := range []pullthrough.Repo{repo, other} {
						assert.True(t, bytes.Equal(content, readBlob(t, s, at, d)))
						assert.True(t, bytes.Equal(content, readBlob(t, open(t, dir), at, d)))
					}
				})
			}
		}
	}
}

// TestAFileIsReplacedUnderItsReaders: they read on.
func TestAFileIsReplacedUnderItsReaders(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	content := noise(33, 2<<20)
	d := putBlob(t, s, repo, content)
	b, err := s.Blob(t.Context(), repo, d)
	require.NoError(t, err)
	defer func() { assert.NoError(t, b.Body.Close()) }()
	require.NoError(t, os.Remove(dataFile(dir, d)))
	write(t, "damaged", dataFile(dir, d))
	assertNoBlob(t, s, repo, d)
	putBlob(t, s, repo, content)
	got, err := io.ReadAll(b.Body)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(content, got))
}

// TestWithoutANoteTheDigestDecides: a reader of a large blob gets all but the end of what
// is wrong, and after that it is a miss everywhere.
func TestWithoutANoteTheDigestDecides(t *testing.T) {
	for name, note := range map[string]string{"no note": "", "no number": "2 MiB", "too large a number": "99999999999999999999", "negative": "-1"} {
		t.Run(name, func(t *testing.T) {
			dir := scratch(t)
			content := noise(34, 2<<20)
			d := putBlob(t, open(t, dir), repo, content)
			putBlob(t, open(t, dir), other, content)
			for _, at := range []pullthrough.Repo{repo, other} {
				write(t, note, sizeNote(dir, at.Name, d))
				if note == "" {
					require.NoError(t, os.Remove(sizeNote(dir, at.Name, d)))
				}
			}
			s := open(t, dir)
			assert.True(t, bytes.Equal(content, readBlob(t, s, repo, d)), "what is good is served")

			s = open(t, dir)
			require.NoError(t, os.Truncate(dataFile(dir, d), 1<<20+1))
			b, err := s.Blob(t.Context(), other, d)
			require.NoError(t, err)
			got, err := io.ReadAll(b.Body)
			assert.ErrorIs(t, err, fs.ErrNotExist)
			assert.Len(t, got, 1<<20+1-verify.Held)
			assert.NoError(t, b.Body.Close())
			assertNoBlob(t, s, other, d)
			assertNoBlob(t, s, repo, d)
			assert.NoFileExists(t, dataFile(dir, d))
			for _, at := range []pullthrough.Repo{repo, other} {
				putBlob(t, s, at, content)
				assert.True(t, bytes.Equal(content, readBlob(t, s, at, d)))
			}
		})
	}
}

// TestANoteThatIsWrongLosesNothing: the digest decides, and the note is set right.
func TestANoteThatIsWrongLosesNothing(t *testing.T) {
	for size, content := range map[string][]byte{"small": noise(35, 100<<10), "large": noise(36, 2<<20)} {
		t.Run(size, func(t *testing.T) {
			dir := scratch(t)
			d := putBlob(t, open(t, dir), repo, content)
			write(t, "7", sizeNote(dir, repo.Name, d))
			s := open(t, dir)
			if len(content) > verify.Small {
				assertNoBlob(t, s, repo, d)
				s.WaitForReads()
			}
			assert.True(t, bytes.Equal(content, readBlob(t, s, repo, d)))
			assert.True(t, bytes.Equal(content, readBlob(t, open(t, dir), repo, d)))
			noted, err := os.ReadFile(sizeNote(dir, repo.Name, d))
			require.NoError(t, err)
			assert.Equal(t, strconv.Itoa(len(content)), string(noted))
		})
	}
}

// TestAManifestThatSaysAnotherSizeCastsDoubt: what is cut is found although its note
// agrees, and what is good is read once, although the manifest is wrong.
func TestAManifestThatSaysAnotherSizeCastsDoubt(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1, LayerSize: 2 << 20})
	layer := img.Layers[0]
	t.Run("the manifest is right", func(t *testing.T) {
		dir := scratch(t)
		s := open(t, dir)
		pull(t, s, repo, img, "v1")
		for _, how := range []string{"it was put", "it was read"} {
			require.NoError(t, os.Truncate(dataFile(dir, layer.Digest), 1<<20+1))
			write(t, strconv.Itoa(1<<20+1), sizeNote(dir, repo.Name, layer.Digest))
			if how == "it was read" {
				s = open(t, dir)
				get(t, s, repo, "v1")
			}
			b, err := s.Blob(t.Context(), repo, layer.Digest)
			if how == "it was put" { // this process has noted the size, too
				assert.ErrorIs(t, err, fs.ErrNotExist)
			} else {
				require.NoError(t, err)
				_, err = io.Copy(io.Discard, b.Body)
				assert.ErrorIs(t, err, fs.ErrNotExist)
				require.NoError(t, b.Body.Close())
				assertNoBlob(t, s, repo, layer.Digest)
			}
			pull(t, s, repo, img, "v1")
			assertWhole(t, s, repo, img, "v1")
		}
	})
	t.Run("the manifest is wrong", func(t *testing.T) {
		dir := scratch(t)
		wrong := *img
		wrong.Content = bytes.ReplaceAll(img.Content, []byte(strconv.FormatInt(layer.Size, 10)), []byte(strconv.FormatInt(layer.Size+1, 10)))
		wrong.Digest = digest.FromBytes(wrong.Content)
		require.NotEqual(t, img.Digest, wrong.Digest)
		pull(t, open(t, dir), repo, &wrong, "v1")
		s := open(t, dir)
		get(t, s, repo, "v1")
		reading := make(chan struct{})
		gate := make(chan struct{})
		close(gate)
		reads := holdReads(s, reading, gate)
		for range 3 {
			assert.True(t, bytes.Equal(bytesOf(t, layer), readBlob(t, s, repo, layer.Digest)))
		}
		assert.EqualValues(t, 1, reads.Load())
	})
}

// proxyTo is a proxy over s, with an upstream that has the image.
func proxyTo(t *testing.T, s *dirstore.Store, img *pullthroughtest.Image) (*pullthroughtest.Upstream, *httptest.Server) {
	t.Helper()
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	up.Push("library/alpine", "v1", img)
	up.Push("library/busybox", "v1", img)
	p := &pullthrough.Proxy{Store: s, Rules: pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: up.URL}}}
	srv := httptest.NewServer(p)
	t.Cleanup(func() {
		srv.Close()
		assert.NoError(t, p.Shutdown(context.WithoutCancel(t.Context())))
	})
	return up, srv
}

// askBlob sends one request, and returns what has come of the body.
func askBlob(t *testing.T, srv *httptest.Server, method string, repo pullthrough.Repo, d digest.Digest, ranges string) (*http.Response, []byte, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, srv.URL+"/v2/"+repo.Name+"/blobs/"+d.String(), nil)
	require.NoError(t, err)
	if ranges != "" {
		r.Header.Set("Range", ranges)
	}
	resp, err := srv.Client().Do(r)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

// TestACutBlobNeverEndsComplete, over HTTP: by GET, HEAD and ranges. Each repository has
// it again by its next pull.
func TestACutBlobNeverEndsComplete(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, LayerSize: 3 << 20})
	layer := img.Layers[0]
	content := bytesOf(t, layer)
	for _, noted := range []bool{true, false} {
		t.Run("noted="+strconv.FormatBool(noted), func(t *testing.T) {
			dir := scratch(t)
			first := open(t, dir)
			for _, at := range []pullthrough.Repo{repo, other} {
				pull(t, first, at, img, "v1")
				if !noted {
					require.NoError(t, os.Remove(sizeNote(dir, at.Name, layer.Digest)))
				}
			}
			require.NoError(t, os.Truncate(dataFile(dir, layer.Digest), 2<<20))
			up, srv := proxyTo(t, open(t, dir), img)
			if !noted {
				resp, _, _ := askBlob(t, srv, http.MethodHead, repo, layer.Digest, "")
				assert.Equal(t, http.StatusOK, resp.StatusCode)
				resp, body, err := askBlob(t, srv, http.MethodGet, repo, layer.Digest, "")
				if resp.ContentLength == 2<<20 { // the read that HEAD began was not done yet
					assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
					assert.True(t, bytes.HasPrefix(content, body))
				}
			}
			for _, at := range []pullthrough.Repo{repo, other} {
				resp, body, err := askBlob(t, srv, http.MethodGet, at, layer.Digest, "")
				require.NoError(t, err)
				assert.Equal(t, http.StatusOK, resp.StatusCode)
				assert.True(t, bytes.Equal(content, body))
				_, body, err = askBlob(t, srv, http.MethodGet, at, layer.Digest, "bytes=-100")
				require.NoError(t, err)
				assert.Equal(t, content[len(content)-100:], body)
			}
			assert.LessOrEqual(t, up.Count("GET /v2/library/*/blobs/*"), 2, "once for each repository, or once where the second found the file again")
		})
	}
}

// TestAStoredLargeBlobIsNotFetchedAgain while it is read in full: ranges before its last
// 64 KiB come at once, and a look-up does not wait.
func TestAStoredLargeBlobIsNotFetchedAgain(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 3, LayerSize: 3 << 20})
	layer := img.Layers[0]
	content := bytesOf(t, layer)
	dir := scratch(t)
	pull(t, open(t, dir), repo, img, "v1")
	s := verifying(t, dir)
	gate, reading := make(chan struct{}), make(chan struct{})
	reads := holdReads(s, reading, gate)
	up, srv := proxyTo(t, s, img)
	for range 2 {
		resp, body, err := askBlob(t, srv, http.MethodGet, repo, layer.Digest, "bytes=1000-99999")
		require.NoError(t, err)
		assert.Equal(t, http.StatusPartialContent, resp.StatusCode)
		assert.True(t, bytes.Equal(content[1000:100_000], body))
	}
	type answer struct {
		body []byte
		err  error
	}
	answers := make(chan answer)
	for range 4 {
		go func() {
			_, body, err := askBlob(t, srv, http.MethodGet, repo, layer.Digest, "")
			answers <- answer{body, err}
		}()
	}
	<-reading
	close(gate)
	for range 4 {
		a := <-answers
		assert.NoError(t, a.err)
		assert.True(t, bytes.Equal(content, a.body))
	}
	assert.EqualValues(t, 1, reads.Load())
	assert.Zero(t, up.Count("*"))
}

// TestDamageThatCannotBeRemovedIsAMissAllTheSame.
func TestDamageThatCannotBeRemovedIsAMissAllTheSame(t *testing.T) {
	dir := scratch(t)
	content := noise(37, 2<<20)
	d := putBlob(t, open(t, dir), repo, content)
	require.NoError(t, os.Remove(sizeNote(dir, repo.Name, d)))
	flip(t, dataFile(dir, d))
	s := open(t, dir)
	s.SetProbe(func(op, _ string) error {
		if op == "aside" || op == "create" {
			return fs.ErrPermission
		}
		return nil
	})
	b, err := s.Blob(t.Context(), repo, d)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, b.Body)
	assert.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, b.Body.Close())
	reads := holdReads(s, nil, nil)
	assertNoBlob(t, s, repo, d)
	assert.Zero(t, reads.Load(), "it is known by now")
}

// TestWhatCannotBeNotedIsKnownToTheProcess: the disk is read-only.
func TestWhatCannotBeNotedIsKnownToTheProcess(t *testing.T) {
	dir := scratch(t)
	content := noise(38, 2<<20)
	d := putBlob(t, open(t, dir), repo, content)
	require.NoError(t, os.Remove(sizeNote(dir, repo.Name, d)))
	s := open(t, dir)
	var reads atomic.Int32
	s.SetProbe(func(op, name string) error {
		switch {
		case op == "create":
			return syscall.EROFS
		case op == "open" && filepath.Base(name) == "data":
			reads.Add(1)
		}
		return nil
	})
	assert.True(t, bytes.Equal(content, readBlob(t, s, repo, d)))
	s.WaitForReads()
	assert.EqualValues(t, 2, reads.Load())
	for range 3 {
		assert.True(t, bytes.Equal(content, readBlob(t, s, repo, d)))
	}
	assert.EqualValues(t, 2+3, reads.Load())
	assert.NoFileExists(t, sizeNote(dir, repo.Name, d))
}

// TestADirectoryOfTheFirstFormatAsksNobody: all of it is served without upstream, and the
// sizes of its blobs are noted.
func TestADirectoryOfTheFirstFormatAsksNobody(t *testing.T) {
	dir := scratch(t)
	layouttest.Unpack(t, firstFormat, dir)
	up, srv := proxyTo(t, open(t, dir), image(1))
	served := 0
	for _, want := range layouttest.Blobs() {
		if want.Repo.Account != "" || !strings.HasPrefix(want.Repo.Name, "hub/") {
			continue // the proxy serves one account, and the rule one prefix
		}
		for _, method := range []string{http.MethodHead, http.MethodGet} {
			resp, body, err := askBlob(t, srv, method, want.Repo, want.Digest, "")
			require.NoError(t, err)
			assert.Equal(t, http.StatusOK, resp.StatusCode)
			assert.EqualValues(t, len(want.Content), resp.ContentLength)
			if method == http.MethodGet {
				assert.Equal(t, want.Content, string(body))
			}
		}
		noted, err := os.ReadFile(sizeNote(dir, want.Repo.Name, want.Digest))
		require.NoError(t, err)
		assert.Equal(t, strconv.Itoa(len(want.Content)), string(noted))
		served++
	}
	assert.GreaterOrEqual(t, served, 5)
	assert.Zero(t, up.Count("*"))
}

// A blob may be evicted while it is read, also where nobody knows yet whether it is right:
// who has it open reads it to its end.
func TestABlobThatIsEvictedWhileItIsReadIsWhole(t *testing.T) {
	content := noise(33, 2<<20)
	for name, evict := range map[string]func(file string) error{
		"removed":  os.Remove,
		"replaced": func(file string) error { return errors.Join(os.Remove(file), os.WriteFile(file, content, 0o600)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := scratch(t)
			d := putBlob(t, open(t, dir), repo, content)
			require.NoError(t, os.Remove(sizeNote(dir, repo.Name, d)))
			b, err := open(t, dir).Blob(t.Context(), repo, d)
			require.NoError(t, err)
			require.NoError(t, evict(dataFile(dir, d)))
			got, err := io.ReadAll(b.Body)
			assert.NoError(t, err)
			assert.True(t, bytes.Equal(content, got))
			assert.NoError(t, b.Body.Close())
		})
	}
}
