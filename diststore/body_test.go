package diststore_test

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/diststore"
)

// closer is a reader as a driver returns it.
type closer struct {
	io.Reader
	close func() error
}

func (c closer) Close() error { return c.close() }

// newBlobs is a store with one blob, whose reads go through wrap.
func newBlobs(t *testing.T, content []byte, wrap func(r io.ReadCloser, offset int64) io.ReadCloser) (*diststore.Store, *probe, digest.Digest) {
	t.Helper()
	driver := drivers["inmemory"](t)
	d := putBlob(t, diststore.New(driver), repo, content)
	p := &probe{StorageDriver: driver}
	data := "/" + dataFile(d)
	var reading string
	p.fail = func(_, path string) error { reading = path; return nil }
	p.wrap = func(r io.ReadCloser, offset int64) io.ReadCloser {
		if reading != data || wrap == nil {
			return r
		}
		return wrap(r, offset)
	}
	return diststore.New(p), p, d
}

func gets(asked []string) (n int) {
	for _, op := range asked {
		if op == "get" {
			n++
		}
	}
	return n
}

// TestABodyThatBreaksGoesOn where it broke: with an error, or as if it had ended.
func TestABodyThatBreaksGoesOn(t *testing.T) {
	content := noise(1, 100_000)
	for name, fault := range map[string]io.Reader{"error": iotest.ErrReader(errDriver), "end": bytes.NewReader(nil)} {
		t.Run(name, func(t *testing.T) {
			open := 0
			s, p, d := newBlobs(t, content, func(r io.ReadCloser, offset int64) io.ReadCloser {
				open++
				return closer{io.MultiReader(io.LimitReader(r, 10_000), fault), func() error { open--; return r.Close() }}
			})
			b := openBlob(t, s, repo, d)
			got, err := io.ReadAll(b.Body)
			require.NoError(t, err)
			assert.True(t, bytes.Equal(content, got))
			assert.Equal(t, 2+10, gets(p.asked())) // a link and a size first
			require.NoError(t, b.Body.Close())
			assert.Zero(t, open)
		})
	}
}

// TestABodyGivesUp when nothing more comes, and when too little does.
func TestABodyGivesUp(t *testing.T) {
	content := noise(1, 100_000)
	for name, c := range map[string]struct{ each, gets int64 }{"nothing": {0, 3}, "little": {100, 16}} {
		t.Run(name, func(t *testing.T) {
			s, p, d := newBlobs(t, content, func(r io.ReadCloser, offset int64) io.ReadCloser {
				return closer{io.MultiReader(io.LimitReader(r, c.each), iotest.ErrReader(errDriver)), r.Close}
			})
			b := openBlob(t, s, repo, d)
			got, err := io.ReadAll(b.Body)
			assert.ErrorIs(t, err, errDriver)
			assert.True(t, bytes.HasPrefix(content, got))
			assert.Equal(t, 2+int(c.gets), gets(p.asked()))
		})
	}
	t.Run("a short object", func(t *testing.T) {
		s, p, d := newBlobs(t, content, nil)
		b := openBlob(t, s, repo, d)
		write(t, p.StorageDriver, dataFile(d), string(content[:500]))
		got, err := io.ReadAll(b.Body)
		assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
		assert.Len(t, got, 500)
	})
	t.Run("a long object", func(t *testing.T) {
		s, p, d := newBlobs(t, content, nil)
		b := openBlob(t, s, repo, d)
		write(t, p.StorageDriver, dataFile(d), string(content)+"more")
		got, err := io.ReadAll(b.Body)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(content, got))
	})
}

// TestABlobThatWasRemovedIsForgotten: the next look-up is a miss, and fills.
func TestABlobThatWasRemovedIsForgotten(t *testing.T) {
	s, p, d := newBlobs(t, noise(1, 1000), nil)
	b := openBlob(t, s, repo, d)
	require.NoError(t, p.StorageDriver.Delete(t.Context(), "/"+dataFile(d)))
	_, err := io.ReadAll(b.Body)
	assert.ErrorIs(t, err, fs.ErrNotExist)
	assertNoBlob(t, s, repo, d)
	putBlob(t, s, repo, noise(1, 1000))
	assertBlob(t, s, repo, noise(1, 1000))
}

// stalling is a driver whose first readers never read anything.
type stalling struct {
	storagedriver.StorageDriver
	times int
}

func (d *stalling) Reader(ctx context.Context, path string, offset int64) (io.ReadCloser, error) {
	if d.times--; d.times < 0 {
		return d.StorageDriver.Reader(ctx, path, offset)
	}
	return closer{readFunc(func([]byte) (int, error) { <-ctx.Done(); return 0, ctx.Err() }), func() error { return nil }}, nil
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// TestABodyThatStallsGoesOn after a minute, and not for ever.
func TestABodyThatStallsGoesOn(t *testing.T) {
	for times, want := range map[int]error{2: nil, 3: context.Canceled} {
		synctest.Test(t, func(t *testing.T) {
			content := noise(1, 1000)
			driver := &stalling{StorageDriver: drivers["inmemory"](t)}
			s := diststore.New(driver)
			b := openBlob(t, s, repo, putBlob(t, s, repo, content))
			driver.times = times
			began := time.Now()
			_, err := io.ReadAll(b.Body)
			assert.ErrorIs(t, err, want)
			assert.Equal(t, time.Duration(times)*time.Minute, time.Since(began))
		})
	}
}

// TestASeekMakesNoRequest, and a body that is not read none at all.
func TestASeekMakesNoRequest(t *testing.T) {
	content := noise(1, 1000)
	s, p, d := newBlobs(t, content, nil)
	b := openBlob(t, s, repo, d)
	p.asked()
	body := b.Body.(io.ReadSeeker)
	for _, to := range []int64{1000, 0, 400, 400} {
		at, err := body.Seek(to, io.SeekStart)
		require.NoError(t, err)
		assert.Equal(t, to, at)
	}
	assert.Empty(t, p.asked())
	part := make([]byte, 100)
	for range 2 { // the second needs no new request
		_, err := io.ReadFull(body, part)
		require.NoError(t, err)
	}
	assert.Equal(t, content[500:600], part)
	assert.Equal(t, []string{"get"}, p.asked())
	_, err := body.Seek(-1, io.SeekStart)
	assert.Error(t, err)
	_, err = body.Seek(0, 7)
	assert.Error(t, err)
	require.NoError(t, b.Body.Close())
	_, err = body.Read(part)
	assert.ErrorIs(t, err, fs.ErrClosed)
	_, err = body.Seek(0, io.SeekStart)
	assert.ErrorIs(t, err, fs.ErrClosed)
}

// TestABodyOutlivesItsLookUp: a proxy ends the context of each look-up.
func TestABodyOutlivesItsLookUp(t *testing.T) {
	s, _, d := newBlobs(t, noise(1, 1000), nil)
	ctx, cancel := context.WithCancel(t.Context())
	b, err := s.Blob(ctx, repo, d)
	require.NoError(t, err)
	cancel()
	got, err := io.ReadAll(b.Body)
	require.NoError(t, err)
	assert.Len(t, got, 1000)
	assert.NoError(t, b.Body.Close())
}

// TestRedirect: with a URL of the driver's, if it has one.
func TestRedirect(t *testing.T) {
	content := noise(1, 1000)
	serve := func(s *diststore.Store, method, ranges string) *httptest.ResponseRecorder {
		b, err := s.Blob(t.Context(), repo, digest.FromBytes(content))
		require.NoError(t, err)
		r := httptest.NewRequest(method, "/v2/x/blobs/y", nil)
		if ranges != "" {
			r.Header.Set("Range", ranges)
		}
		w := httptest.NewRecorder()
		pullthrough.WriteBlob(w, r, b)
		return w
	}
	s, p, d := newBlobs(t, content, nil)
	p.url = "https://bucket.example/signed"
	assert.Equal(t, http.StatusOK, serve(s, http.MethodGet, "").Code) // it is off

	s.Redirect = true
	w := serve(s, http.MethodGet, "")
	assert.Equal(t, http.StatusTemporaryRedirect, w.Code)
	assert.Equal(t, "https://bucket.example/signed/"+dataFile(d), w.Header().Get("Location"))
	assert.Equal(t, d.String(), w.Header().Get("Docker-Content-Digest"))
	assert.Empty(t, w.Body.Bytes())

	w = serve(s, http.MethodHead, "")
	assert.Equal(t, http.StatusOK, w.Code)
	assert.Equal(t, "1000", w.Header().Get("Content-Length"))

	for _, broken := range []func(){func() { p.url = "" }, func() { p.fail = failing("redirect") }} {
		broken()
		w = serve(s, http.MethodGet, "bytes=10-19")
		assert.Equal(t, http.StatusPartialContent, w.Code)
		assert.Equal(t, content[10:20], w.Body.Bytes())
	}
}

// failing is a fault of one operation.
func failing(op string) func(string, string) error {
	return func(asked, _ string) error {
		if asked == op {
			return errDriver
		}
		return nil
	}
}
