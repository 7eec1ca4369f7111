package pullthrough_test

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// U2, U3, U5: no client takes a part for the whole, and no wrong byte stays.
func TestAFailingDownloadIsNeverAWholeAnswer(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 3 << 20})
	layer := img.Layers[0]
	path, content := testkit.BlobPath("a", layer.Digest), testkit.BlobContent(t, layer)
	for protocol, pull := range testkit.Protocols {
		for name, faults := range testkit.BrokenDownloads {
			t.Run(protocol+", "+name, func(t *testing.T) {
				w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
				w.Up.Push("a", "v1", img)
				require.Equal(t, 200, testkit.Send(t, testkit.Serve(t, w.Proxy), http.MethodGet, testkit.ManifestPath("a", "v1"), "").StatusCode) // tells the size
				for _, fault := range faults {
					fault.Match = "GET /v2/a/blobs/*"
					w.Up.Fault(fault)
				}
				w.Up.Reset()

				testkit.AssertBroken(t, pull(t, w.Proxy, path), content)
				w.Settled(t)
				assert.NotZero(t, w.Up.Count("GET /v2/a/blobs/*"))
				assert.Zero(t, w.Up.Count("HEAD *"))
				_, err := w.Mem.Blob(t.Context(), testkit.Repo("a"), layer.Digest)
				assert.ErrorIs(t, err, fs.ErrNotExist, "nothing is stored")

				w.Up.Heal()
				w.Up.Reset()
				r := pull(t, w.Proxy, path)
				require.NoError(t, r.Err)
				testkit.AssertContent(t, r, layer.Digest, testkit.OctetStream, len(content))
				testkit.AssertSame(t, content, r.Content)
				w.Settled(t)
				assert.Equal(t, []string{testkit.UpstreamGet(path, 200)}, w.Up.Log())
				r = pull(t, w.Proxy, path)
				require.NoError(t, r.Err)
				testkit.AssertSame(t, content, r.Content)
				assert.Len(t, w.Up.Log(), 1, "a warm pull asks nobody")
			})
		}
	}
}

// The header of a big blob is out when upstream's is in, and all the same no
// wrong answer is whole.
func TestAFailureAfterTheHeaderCutsEveryClient(t *testing.T) {
	for protocol, pull := range testkit.Protocols {
		t.Run(protocol, func(t *testing.T) {
			s := testkit.NewStalled(t, pullthroughtest.Fault{Flip: new(int64(3 << 20))})
			part := s.Get(t, s.Path, "Range", "bytes=0-9")
			assert.Equal(t, 206, part.StatusCode)
			testkit.AssertSame(t, s.Content[:10], part.Content)
			s.Release()
			testkit.AssertBroken(t, pull(t, s.Proxy, s.Path), s.Content)
			leader := s.WaitLeader(t)
			assert.Equal(t, http.StatusOK, leader.StatusCode, "its header was out")
			testkit.AssertBroken(t, leader, s.Content)
			s.Settled(t)
			assert.NotZero(t, s.Up.Count(testkit.UpstreamGet(s.Path, 200)))
			_, err := s.Mem.Blob(t.Context(), testkit.Repo("a"), s.Blob.Digest)
			assert.ErrorIs(t, err, fs.ErrNotExist)
		})
	}
}

// A manifest, and a small blob, is known to be right before its first byte.
func TestSmallObjectsAreVerifiedBeforeTheHeader(t *testing.T) {
	for protocol, pull := range testkit.Protocols {
		t.Run(protocol, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 128 << 10})
			w.Up.Push("a", "v1", img)
			w.Up.Fault(pullthroughtest.Fault{Flip: new(int64(-1))})
			w.Up.Reset()
			for _, path := range []string{
				testkit.BlobPath("a", img.Layers[0].Digest), testkit.BlobPath("a", img.Config.Digest), testkit.ManifestPath("a", img.Digest.String()),
			} {
				r := pull(t, w.Proxy, path)
				require.NoError(t, r.Err)
				testkit.AssertOCI(t, r, 502, "UNKNOWN")
				assert.NotZero(t, w.Up.Count(testkit.UpstreamGet(path, 200)))
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

// A file may be cut after its size was looked at, and before net/http looks at it again.
func TestWriteBlobAbortsWhenTheContentIsShorterByNow(t *testing.T) {
	for _, header := range []string{"", "bytes=5-40", "bytes=60-", "bytes=-10"} {
		t.Run(header, func(t *testing.T) {
			b := pullthrough.NewBlob(someDigest, make([]byte, 50))
			b.Descriptor.Size = 100
			r := httptest.NewRequest(http.MethodGet, "/v2/hub/a/blobs/"+someDigest.String(), nil)
			if header != "" {
				r.Header.Set("Range", header)
			}
			w := httptest.NewRecorder()
			assert.PanicsWithValue(t, http.ErrAbortHandler, func() { pullthrough.WriteBlob(w, r, b) })
			assert.Zero(t, w.Body.Len(), "nothing of it is sent with a length that looks right")
		})
	}
}

// A middleware that sets Content-Encoding makes net/http send no Content-Length.
func TestAFailedBodyIsSeenWithoutAContentLengthToo(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	layer := w.Layer(3 << 20)
	g := testkit.NewGate(t)
	w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Flip: new(int64(-1)), Stall: g.C, StallAfter: new(int64(2 << 20))})
	s := testkit.Serve(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Encoding", "x-odd")
		w.ServeHTTP(rw, r)
	}))
	resp, err := http.Get(s.URL + "/v2/hub/a/blobs/" + layer.Digest.String())
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
	g.Open() // the header has left
	_, err = io.Copy(io.Discard, resp.Body)
	if resp.StatusCode == http.StatusOK { // not where the download had failed before the answer began
		assert.Error(t, err)
	}
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, 1, w.Up.Count(testkit.Blobs))
}
