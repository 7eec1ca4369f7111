package pullthrough_test

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// protocols are the ways in which an answer can say that it was cut short:
// each pulls a path and reads what comes, to its end or to the error. Where
// not even the header came through there is only the error.
var protocols = map[string]func(*testing.T, http.Handler, string) reply{
	"HTTP/1.1": func(t *testing.T, h http.Handler, path string) reply {
		return fetch(t, serve(t, h), path)
	},
	"HTTP/1.0": func(t *testing.T, h http.Handler, path string) reply {
		conn, err := net.Dial("tcp", serve(t, h).Listener.Addr().String())
		require.NoError(t, err)
		defer func() { assert.NoError(t, conn.Close()) }()
		_, err = io.WriteString(conn, "GET "+path+" HTTP/1.0\r\n\r\n")
		require.NoError(t, err)
		// A close is no error to such a client; only the length tells.
		in := bufio.NewReader(conn)
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return reply{err: err}
		}
		r := read(t, resp)
		assert.NotEmpty(t, resp.Header.Get("Content-Length"), "the length is all that tells a whole from a part")
		rest, _ := io.ReadAll(in)
		assert.Empty(t, rest, "nothing follows an answer that was cut")
		return r
	},
	"HTTP/2": func(t *testing.T, h http.Handler, path string) reply {
		srv := httptest.NewUnstartedServer(h)
		srv.EnableHTTP2 = true
		srv.StartTLS()
		t.Cleanup(srv.Close)
		r := fetch(t, srv, path)
		if r.Response != nil {
			assert.Equal(t, 2, r.ProtoMajor)
		}
		return r
	},
}

func fetch(t *testing.T, srv *httptest.Server, path string) reply {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+path, nil)
	require.NoError(t, err)
	resp, err := srv.Client().Transport.RoundTrip(r)
	if err != nil {
		return reply{err: err}
	}
	return read(t, resp)
}

// assertBroken checks that the client of a blob was told that it failed.
func assertBroken(t *testing.T, r reply, content []byte) {
	t.Helper()
	if r.Response != nil && r.StatusCode != http.StatusOK { // it failed before the header
		assertOCI(t, r, 502, "UNKNOWN")
		return
	}
	assert.Error(t, r.err, "the client is told")
	assert.Less(t, len(r.content), len(content))
	if r.Response != nil {
		assert.Equal(t, strconv.Itoa(len(content)), r.Header.Get("Content-Length"))
		assert.Empty(t, r.TransferEncoding)
	}
}

// brokenDownloads fail after the header, for good.
var brokenDownloads = map[string][]pullthroughtest.Fault{
	"first byte wrong":     {{Flip: new(int64(0))}},
	"last byte wrong":      {{Flip: new(int64(-1))}},
	"cut, then gone":       {{Times: 1, CutAfter: new(int64(2 << 20))}, {Status: 404}},
	"reset, then refused":  {{Times: 1, CutAfter: new(int64(2 << 20)), Reset: true}, {Status: 403}},
	"short, then gone":     {{Times: 1, Truncate: 1}, {Status: 404}},
	"close-delimited":      {{Truncate: 1000, CloseDelimited: true}},
	"wrong and of no size": {{Flip: new(int64(5)), NoLength: true}},
}

// U2, U3, U5: no client takes a part for the whole, and no wrong byte stays.
func TestAFailingDownloadIsNeverAWholeAnswer(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 3 << 20})
	layer := img.Layers[0]
	path, content := blobPath("a", layer.Digest), blobContent(t, layer)
	for protocol, pull := range protocols {
		for name, faults := range brokenDownloads {
			t.Run(protocol+", "+name, func(t *testing.T) {
				w := newWorld(t, pullthroughtest.Config{}, nil)
				w.up.Push("a", "v1", img)
				require.Equal(t, 200, send(t, serve(t, w.Proxy), http.MethodGet, manifestPath("a", "v1"), "").StatusCode) // tells the size
				for _, fault := range faults {
					fault.Match = "GET /v2/a/blobs/*"
					w.up.Fault(fault)
				}
				w.up.Reset()

				assertBroken(t, pull(t, w.Proxy, path), content)
				w.settled(t)
				assert.NotZero(t, w.up.Count("GET /v2/a/blobs/*"))
				assert.Zero(t, w.up.Count("HEAD *"))
				_, err := w.store.Blob(t.Context(), repo("a"), layer.Digest)
				assert.ErrorIs(t, err, fs.ErrNotExist, "nothing is stored")

				w.up.Heal()
				w.up.Reset()
				r := pull(t, w.Proxy, path)
				require.NoError(t, r.err)
				assertContent(t, r, layer.Digest, octetStream, len(content))
				assertSame(t, content, r.content)
				w.settled(t)
				assert.Equal(t, []string{upstreamGet(path, 200)}, w.up.Log())
				r = pull(t, w.Proxy, path)
				require.NoError(t, r.err)
				assertSame(t, content, r.content)
				assert.Len(t, w.up.Log(), 1, "a warm pull asks nobody")
			})
		}
	}
}

// The header of a big blob is out when upstream's is in, and all the same no
// wrong answer is whole.
func TestAFailureAfterTheHeaderCutsEveryClient(t *testing.T) {
	for protocol, pull := range protocols {
		t.Run(protocol, func(t *testing.T) {
			s := newStalled(t, pullthroughtest.Fault{Flip: new(int64(3 << 20))})
			part := s.get(t, s.path, "Range", "bytes=0-9")
			assert.Equal(t, 206, part.StatusCode)
			assertSame(t, s.content[:10], part.content)
			s.release()
			assertBroken(t, pull(t, s.Proxy, s.path), s.content)
			leader := s.waitLeader(t)
			assert.Equal(t, http.StatusOK, leader.StatusCode, "its header was out")
			assertBroken(t, leader, s.content)
			s.settled(t)
			assert.NotZero(t, s.up.Count(upstreamGet(s.path, 200)))
			_, err := s.store.Blob(t.Context(), repo("a"), s.blob.Digest)
			assert.ErrorIs(t, err, fs.ErrNotExist)
		})
	}
}

// A manifest, and a small blob, is known to be right before its first byte.
func TestSmallObjectsAreVerifiedBeforeTheHeader(t *testing.T) {
	for protocol, pull := range protocols {
		t.Run(protocol, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{}, nil)
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 1 << 20})
			w.up.Push("a", "v1", img)
			w.up.Fault(pullthroughtest.Fault{Flip: new(int64(-1))})
			w.up.Reset()
			for _, path := range []string{
				blobPath("a", img.Layers[0].Digest), blobPath("a", img.Config.Digest), manifestPath("a", img.Digest.String()),
			} {
				r := pull(t, w.Proxy, path)
				require.NoError(t, r.err)
				assertOCI(t, r, 502, "UNKNOWN")
				assert.NotZero(t, w.up.Count(upstreamGet(path, 200)))
			}
		})
	}
}

// cutBody fails in the middle, as a body does whose content was wrong.
type cutBody struct{ closed bool }

func (b *cutBody) Read(p []byte) (int, error) {
	clear(p)
	return min(len(p), 10), errors.New("canary: wrong content")
}

func (b *cutBody) Close() error {
	b.closed = true
	return nil
}

// net/http's servers, and those of hosts that wrap them, know by this panic
// that the answer must not look complete.
func TestWriteBlobAbortsWhenTheContentEndsEarly(t *testing.T) {
	for name, header := range map[string]string{"whole": "", "range": "bytes=5-99"} {
		t.Run(name, func(t *testing.T) {
			body := &cutBody{}
			b := &pullthrough.Blob{Descriptor: ocispec.Descriptor{Digest: someDigest, Size: 100}, Body: body}
			r := httptest.NewRequest(http.MethodGet, "/v2/hub/a/blobs/"+someDigest.String(), nil)
			if header != "" {
				r.Header.Set("Range", header)
			}
			w := httptest.NewRecorder()
			assert.PanicsWithValue(t, http.ErrAbortHandler, func() { pullthrough.WriteBlob(w, r, b) })
			assert.Less(t, w.Body.Len(), 100)
			assert.NotContains(t, w.Body.String(), "canary")
			assert.True(t, body.closed, "WriteBlob closes it in any case")
		})
	}
}
