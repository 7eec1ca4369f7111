package pullthrough_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// bucket is a Store that says what it has, and reads it when it is asked to: what it
// reads may be gone.
type bucket struct {
	*memstore.Store
	blob  *pullthroughtest.Blob
	seeks bool
	err   error // of reading; nil: it is there
	reads atomic.Int32
}

func (s *bucket) Blob(ctx context.Context, r pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	if d != s.blob.Digest {
		return s.Store.Blob(ctx, r, d)
	}
	b := &pullthrough.Blob{Body: &object{s, s.blob.Open(), 0}}
	b.Descriptor.Size = s.blob.Size
	if s.seeks {
		b.Body = &seekingObject{object{s, s.blob.Open(), 0}}
	}
	return b, nil
}

type object struct {
	s   *bucket
	r   io.Reader
	off int64
}

func (o *object) Read(p []byte) (int, error) {
	o.s.reads.Add(1)
	if o.s.err != nil {
		return 0, o.s.err
	}
	if o.off > 0 {
		_, err := io.CopyN(io.Discard, o.r, o.off)
		o.off = 0
		if err != nil {
			return 0, err
		}
	}
	return o.r.Read(p)
}

func (o *object) Close() error { return nil }

type seekingObject struct{ object }

func (o *seekingObject) Seek(off int64, whence int) (int64, error) {
	if whence == io.SeekEnd {
		off += o.s.blob.Size
	}
	o.off = off
	return off, nil
}

// A stored blob whose content is gone when it is read is fetched inside the answer.
func TestABlobThatIsGoneWhenItIsReadIsFetched(t *testing.T) {
	for name, tc := range map[string]struct {
		size   int64
		seeks  bool
		err    error
		fault  int // upstream's status; 0: it has the blob
		policy pullthrough.Policy

		status int
		events int
	}{
		"small":                      {1000, true, fs.ErrNotExist, 0, pullthrough.Policy{}, 200, 0},
		"large":                      {3<<20 + 7, true, fs.ErrNotExist, 0, pullthrough.Policy{}, 200, 0},
		"large, and it cannot seek":  {3<<20 + 7, false, fs.ErrNotExist, 0, pullthrough.Policy{}, 200, 0},
		"a failure, which is told":   {3<<20 + 7, true, errors.New("disk broken"), 0, pullthrough.Policy{}, 200, 1},
		"upstream has it no longer":  {1000, true, fs.ErrNotExist, 404, pullthrough.Policy{}, 404, 0},
		"upstream refuses it":        {1000, true, fs.ErrNotExist, 403, pullthrough.Policy{}, 403, 0},
		"there is no upstream":       {1000, true, fs.ErrNotExist, 0, pullthrough.Policy{Offline: true}, 502, 0},
		"it is there after all":      {3<<20 + 7, true, nil, 0, pullthrough.Policy{}, 200, 0},
		"it is there, and no seeker": {3<<20 + 7, false, nil, 0, pullthrough.Policy{}, 200, 0},
	} {
		t.Run(name, func(t *testing.T) {
			heard := &testkit.Events{}
			store := &bucket{Store: memstore.New(), seeks: tc.seeks, err: tc.err}
			f := testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				testkit.WithPolicy(tc.policy)(p)
				p.Store, p.OnEvent = store, heard.On
			})
			store.blob = f.Layer(tc.size)
			if tc.fault != 0 {
				f.Up.Fault(testkit.Status(tc.fault))
			}
			path, want := testkit.BlobPath("a", store.blob.Digest), testkit.BlobContent(t, store.blob)
			assert.Equal(t, 200, f.Ask(t, http.MethodHead, path).StatusCode)
			assert.Zero(t, store.reads.Load())
			r := f.Get(t, path)
			if tc.status != 200 {
				code := map[int]string{404: "BLOB_UNKNOWN", 403: "DENIED", 502: "UNKNOWN"}[tc.status]
				testkit.AssertOCI(t, r, tc.status, code)
				assert.Empty(t, r.Header.Get("Docker-Content-Digest"))
				assert.Empty(t, r.Header.Get("ETag"))
			} else {
				testkit.AssertContent(t, r, store.blob.Digest, testkit.OctetStream, len(want))
				testkit.AssertSame(t, want, r.Content)
			}
			f.Settled(t)
			gets := 0
			if tc.err != nil && !tc.policy.Offline {
				gets = 1
			}
			assert.Equal(t, gets, f.Up.Count("*"))
			assert.Len(t, heard.StoreFailures(), tc.events)
			if tc.status == 200 && tc.seeks {
				r := f.Get(t, path, "Range", "bytes=500-599")
				assert.Equal(t, 206, r.StatusCode)
				testkit.AssertSame(t, want[500:600], r.Content)
				f.Settled(t)
				assert.Equal(t, 2*gets, f.Up.Count("*"))
			}
		})
	}
}

// Many who find it gone fetch it once, also by Go.
func TestAGoneBlobIsFetchedOnceForAll(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		store := &bucket{Store: w.Mem, seeks: true, err: fs.ErrNotExist}
		w.Store = store
		store.blob = w.Layer(3<<20 + 7)
		stall := testkit.NewGate(t)
		w.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Stall: stall.C})
		want := testkit.BlobContent(t, store.blob)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				b, err := w.Open(t.Context(), store.blob.Digest)
				if !assert.NoError(t, err) {
					return
				}
				seeker := b.Body.(io.Seeker)
				_, err = seeker.Seek(int64(i), io.SeekStart)
				assert.NoError(t, err)
				got, err := io.ReadAll(b.Body)
				assert.NoError(t, err)
				assert.True(t, bytes.Equal(want[i:], got))
				assert.NoError(t, b.Body.Close())
			})
		}
		time.Sleep(time.Second)
		stall.Open()
		wg.Wait()
		w.Settled(t)
		assert.Equal(t, 1, w.Up.Count("*"))
		require.Empty(t, w.Downloads())
	})
}
