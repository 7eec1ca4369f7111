package handlerstore_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/handlerstore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

// blobServer is a registry with one blob, whose answers to GET may be spoilt.
type blobServer struct {
	content []byte
	get     func(w http.ResponseWriter, r *http.Request) // nil: as it should be
	ranges  []string
	asked   int
}

func newBlobServer(size int) *blobServer {
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i / 255)
	}
	return &blobServer{content: content}
}

func (b *blobServer) digest() digest.Digest { return digest.FromBytes(b.content) }

func (b *blobServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.asked++
	if r.Method == http.MethodGet {
		b.ranges = append(b.ranges, r.Header.Get("Range"))
		if b.get != nil {
			b.get(w, r)
			return
		}
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b.content))
}

func (b *blobServer) open(t *testing.T) *pullthrough.Blob {
	t.Helper()
	blob, err := (&handlerstore.Store{Handler: b}).Blob(t.Context(), testkit.Repo("a"), b.digest())
	require.NoError(t, err)
	assert.Equal(t, int64(len(b.content)), blob.Descriptor.Size)
	return blob
}

func TestBodiesAskWhenTheyAreRead(t *testing.T) {
	b := newBlobServer(300_000)
	blob := b.open(t)
	body := blob.Body.(io.ReadSeeker)
	assert.Equal(t, 1, b.asked, "by HEAD")
	for _, step := range []struct{ from, n int64 }{{0, 100}, {100, 200}, {50_000, 300}, {299_999, 1}, {10, 5}} {
		_, err := body.Seek(step.from, io.SeekStart)
		require.NoError(t, err)
		assert.Equal(t, b.content[step.from:step.from+step.n], testkit.RequireRead(t, body, step.n))
	}
	_, err := body.Seek(0, io.SeekEnd)
	require.NoError(t, err)
	_, err = body.Read(make([]byte, 1))
	assert.ErrorIs(t, err, io.EOF)
	assert.Equal(t, []string{"", "bytes=50000-299999", "bytes=299999-299999", "bytes=10-299999"}, b.ranges, "on from where it is, and with an end")
	require.NoError(t, blob.Body.Close())
	_, err = blob.Body.Read(make([]byte, 1))
	assert.Error(t, err)
}

// What is wrong with an answer is the reader's error, never a shorter blob.
func TestAnswersThatAreSpoilt(t *testing.T) {
	b := newBlobServer(100_000)
	for name, tc := range map[string]struct {
		get func(w http.ResponseWriter, r *http.Request)
		ok  bool
	}{
		"whole for a part": {func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(b.content) }, true},
		"too long": {func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			_, _ = w.Write(append(b.content[:len(b.content):len(b.content)], "more"...))
		}, true},
		"too short": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(b.content[:99_999]) }, false},
		"nothing":   {func(http.ResponseWriter, *http.Request) {}, false},
		"another range": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 1-99999/100000")
			w.WriteHeader(206)
			_, _ = w.Write(b.content[1:])
		}, false},
		"no range":  {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(206); _, _ = w.Write(b.content) }, false},
		"gone":      {http.NotFound, false},
		"a failure": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, false},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://elsewhere.example/", http.StatusTemporaryRedirect)
		}, false},
		"a panic": {func(http.ResponseWriter, *http.Request) { panic("boom") }, false},
		"a panic later": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(b.content[:70_000])
			panic(http.ErrAbortHandler)
		}, false},
	} {
		for _, from := range []int64{0, 60_000} {
			t.Run(fmt.Sprint(name, " from ", from), func(t *testing.T) {
				spoilt := &blobServer{content: b.content, get: tc.get}
				blob := spoilt.open(t)
				_, err := blob.Body.(io.Seeker).Seek(from, io.SeekStart)
				require.NoError(t, err)
				got, err := io.ReadAll(blob.Body)
				assert.NoError(t, blob.Body.Close())
				if tc.ok {
					require.NoError(t, err)
					assert.True(t, bytes.Equal(b.content[from:], got))
					return
				}
				assert.Error(t, err)
				assert.NotErrorIs(t, err, io.EOF)
				assert.Less(t, len(got), len(b.content)-int(from))

				w := testkit.ServeSink(t.Context(), http.HandlerFunc(spoilt.open(t).Body.(http.Handler).ServeHTTP), "/v2/x")
				assert.True(t, w.Aborted, "the client's connection is cut")
				assert.Equal(t, strconv.Itoa(len(b.content)), w.Headers.Get("Content-Length"))
			})
		}
	}
}

func TestHeads(t *testing.T) {
	content := []byte("some content")
	d := digest.FromBytes(content)
	for name, tc := range map[string]struct {
		digest digest.Digest
		answer http.HandlerFunc
		size   int64 // -1: an error
	}{
		"with a length":             {d, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "12") }, 12},
		"as for GET":                {d, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) }, 12},
		"the empty blob":            {digest.FromBytes(nil), func(http.ResponseWriter, *http.Request) {}, 0},
		"empty, and should not be":  {d, func(http.ResponseWriter, *http.Request) {}, -1},
		"an odd length":             {d, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "-1") }, -1},
		"a length beyond all sense": {d, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "99999999999999999999") }, -1},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := handlerStore(tc.answer).Blob(t.Context(), testkit.Repo("a"), tc.digest)
			if tc.size < 0 {
				assert.Error(t, err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, tc.size, b.Descriptor.Size)
			assert.NoError(t, b.Body.Close())
		})
	}
}

// A registry that hangs is let go with the client, or with the body.
func TestRegistryThatHangs(t *testing.T) {
	for _, after := range []int{0, 50_000} {
		b := newBlobServer(100_000)
		begun, ended := make(chan struct{}), make(chan error, 1)
		b.get = func(w http.ResponseWriter, r *http.Request) {
			close(begun)
			if after > 0 {
				_, _ = w.Write(b.content[:after])
			}
			<-r.Context().Done()
			ended <- r.Context().Err()
		}
		t.Run(fmt.Sprint("a client leaves after ", after), func(t *testing.T) {
			body := b.open(t).Body.(http.Handler)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				assert.True(t, testkit.ServeSink(ctx, http.HandlerFunc(body.ServeHTTP), "/v2/x").Aborted)
			}()
			<-begun
			cancel()
			<-done
			assert.ErrorIs(t, <-ended, context.Canceled)
		})
	}
	t.Run("a body is closed", func(t *testing.T) {
		b := newBlobServer(100_000)
		ended := make(chan error, 1)
		b.get = func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(b.content[:50_000])
			_, err := w.Write(b.content[50_000:])
			assert.Error(t, err)
			ended <- r.Context().Err()
		}
		blob := b.open(t)
		testkit.RequireRead(t, blob.Body, 50_000)
		require.NoError(t, blob.Body.Close())
		assert.ErrorIs(t, <-ended, context.Canceled)
	})
}

// What is stored is served in parts and whole, with our own headers, whatever
// the registry's are.
func TestAnswers(t *testing.T) {
	b := newBlobServer(100_000)
	p := &pullthrough.Proxy{Store: &handlerstore.Store{Handler: b}, Rules: pullthrough.StaticRules{}}
	srv := testkit.Serve(t, p)
	path := testkit.BlobPath("a", b.digest())
	r := testkit.Send(t, srv, http.MethodGet, path, "")
	testkit.AssertContent(t, r, b.digest(), testkit.OctetStream, len(b.content))
	testkit.AssertSame(t, b.content, r.Content)
	b.ranges = nil
	testkit.AssertContent(t, testkit.Send(t, srv, http.MethodHead, path, ""), b.digest(), testkit.OctetStream, len(b.content))
	assert.Empty(t, b.ranges, "an existence check reads nothing")
	part := testkit.RangeCase{Header: "bytes=5000-5999", From: 5000, To: 6000, Status: http.StatusPartialContent}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+path, nil)
	require.NoError(t, err)
	req.Header.Set("Range", part.Header)
	resp, err := srv.Client().Do(req)
	require.NoError(t, err)
	got, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, http.StatusPartialContent, resp.StatusCode)
	testkit.AssertSame(t, b.content[5000:6000], got)
	assert.Equal(t, []string{"bytes=5000-99999"}, b.ranges)
}

func TestRedirects(t *testing.T) {
	const elsewhere = "https://bucket.example/blob?X-Amz-Signature=abc"
	var seen []*http.Request
	broken := false
	s := &handlerstore.Store{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			seen = append(seen, r)
			if broken {
				panic("boom")
			}
			http.Redirect(w, r, elsewhere, http.StatusTemporaryRedirect)
		}),
		Name: func(r pullthrough.Repo) (string, error) { return "inner/" + r.Name, nil },
	}
	d := digest.FromString("x")
	b, err := s.Blob(t.Context(), testkit.Repo("a"), d)
	require.NoError(t, err)
	_, err = b.Body.Read(make([]byte, 1))
	assert.ErrorContains(t, err, "elsewhere")
	r := httptest.NewRequest(http.MethodGet, "http://registry.test/v2/hub/a/blobs/"+d.String(), nil)
	r.Header.Set("Range", "bytes=1-2")
	r.Header.Set("Authorization", testkit.Canary)
	w := httptest.NewRecorder()
	pullthrough.WriteBlob(w, r, b)
	assert.Equal(t, http.StatusTemporaryRedirect, w.Code)
	assert.Equal(t, elsewhere, w.Header().Get("Location"))
	last := seen[len(seen)-1]
	assert.Equal(t, "/v2/inner/hub/a/blobs/"+d.String(), last.URL.Path, "the registry's name, not the client's")
	assert.Equal(t, "bytes=1-2", last.Header.Get("Range"))
	assert.Empty(t, last.Header.Get("Authorization"), "the client's credentials are for the proxy")

	desc := b.Descriptor
	desc.Size = 1
	asked := len(seen)
	require.NoError(t, s.PutBlob(t.Context(), testkit.Repo("a"), desc, nil), "it is there")
	assert.Len(t, seen, asked+1)

	b, err = s.Blob(t.Context(), testkit.Repo("a"), d)
	require.NoError(t, err)
	broken = true
	assert.PanicsWithValue(t, http.ErrAbortHandler, func() { pullthrough.WriteBlob(httptest.NewRecorder(), r, b) })
}
