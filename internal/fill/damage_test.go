package fill_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

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

func TestADamagedBlobIsFetchedAgain(t *testing.T) {
	for name, body := range map[string]func() io.ReadCloser{
		"cut":         func() io.ReadCloser { return seeker{bytes.NewReader(make([]byte, 500))} },
		"empty":       func() io.ReadCloser { return seeker{bytes.NewReader(nil)} },
		"of no size":  func() io.ReadCloser { return io.NopCloser(strings.NewReader("x")) },
		"of no bytes": func() io.ReadCloser { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			var failed atomic.Int32
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.OnEvent = func(_ context.Context, e pullthrough.Event) {
					if e.Kind == pullthrough.EventStoreFailed {
						failed.Add(1)
					}
				}
			})
			layer := w.Layer(1000)
			size := map[bool]int64{true: 1000, false: 0}[name == "cut"]
			w.Store = &damaged{Store: w.Mem, blob: func() *pullthrough.Blob {
				return &pullthrough.Blob{Descriptor: ocispec.Descriptor{Size: size}, Body: body()}
			}}
			w.PullBlob(t, "a", layer.Digest)
			assert.Positive(t, failed.Load())
			assert.Equal(t, 1, w.Up.Count(testkit.Blobs))
		})
	}
}

type seeker struct{ *bytes.Reader }

func (seeker) Close() error { return nil }

type damaged struct {
	pullthrough.Store
	blob func() *pullthrough.Blob
}

func (d *damaged) Blob(context.Context, pullthrough.Repo, digest.Digest) (*pullthrough.Blob, error) {
	return d.blob(), nil
}
