package pullthrough_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// settledBut waits until so many fetches are left.
func settledBut(t *testing.T, w *testkit.World, n int) {
	t.Helper()
	require.Eventually(t, func() bool { return w.Running() == n }, 10*time.Second, time.Millisecond)
}

func TestAStoreThatFailsHarmsNoPull(t *testing.T) {
	boom := errors.New("disk on fire")
	fails := func() error { return boom }
	panics := func() error { panic("disk on fire") }
	for name, store := range map[string]*testkit.FaultyStore{
		"Manifest fails":     {OnManifest: fails},
		"Manifest panics":    {OnManifest: panics},
		"PutManifest fails":  {OnPutManifest: fails},
		"PutManifest panics": {OnPutManifest: panics},
		"Blob fails":         {OnBlob: fails},
		"Blob panics":        {OnBlob: panics},
		"PutBlob fails":      {OnPutBlob: func(io.ReadSeeker) error { return boom }},
		"PutBlob panics":     {OnPutBlob: func(io.ReadSeeker) error { panic("disk on fire") }},
		"PutBlob reads half": {OnPutBlob: func(r io.ReadSeeker) error {
			_, err := io.CopyN(io.Discard, r, 10)
			return errors.Join(err, boom)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			failures := 0
			store.Store = memstore.New()
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.Store = store
				p.OnEvent = func(_ context.Context, e pullthrough.Event) {
					mu.Lock()
					defer mu.Unlock()
					if e.Kind == pullthrough.EventStoreFailed {
						assert.ErrorContains(t, e.Err, "disk on fire")
						failures++
					}
				}
			})
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 2, LayerSize: 2 << 20})
			w.Up.Push("a", "1", img)
			for range 2 {
				w.Pull(t, "a", "1", img)
			}
			assert.Positive(t, failures, "the host hears of it")
			assert.LessOrEqual(t, w.Up.Count("GET *"), 8)
			*store = testkit.FaultyStore{Store: store.Store}
			w.Pull(t, "a", "1", img)
			w.Up.Reset()
			w.Pull(t, "a", "1", img)
			assert.Empty(t, w.Up.Log(), "once the Store is well, it is used")
		})
	}
	t.Run("a failing Store is not taken for an empty one", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
			p.Store = &testkit.FaultyStore{Store: memstore.New(), OnManifest: fails, OnBlob: fails}
		})
		none := pullthrough.Repo{Name: "no/rule"}
		_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: none, Ref: "1"})
		assert.ErrorIs(t, err, boom)
		assert.NotErrorIs(t, err, pullthrough.ErrNoRule)
		_, err = w.Blob(t.Context(), pullthrough.Request{Repo: none, Ref: digest.FromString("x").String()})
		assert.ErrorIs(t, err, boom)
		assert.Empty(t, w.Up.Log())
	})
}

// The host has one mutex for everything, and its PutBlob reads while it holds
// it. Pulls, hits and the Credentials callback want the same mutex.
func TestAStoreBehindTheHostsOneMutexDoesNotDeadlock(t *testing.T) {
	var mu sync.Mutex
	store := &lockedStore{mu: &mu, inner: memstore.New()}
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, func(p *pullthrough.Proxy) {
		p.Store = store
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			mu.Lock()
			defer mu.Unlock()
			return pullthrough.Credential{Username: "me", AccessToken: testkit.Canary}, nil
		}
	})
	hit := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1})
	w.Up.Push("hit", "1", hit)
	w.Pull(t, "hit", "1", hit)
	layer := w.Layer(4 << 20)
	gate := make(chan struct{})
	w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/*", Stall: gate, StallAfter: new(int64(2 << 20))})
	b, err := w.Open(t.Context(), layer.Digest)
	require.NoError(t, err)
	settledBut(t, w, 1)
	w.Up.Push("cold", "1", hit)
	for _, name := range []string{"hit", "cold"} { // neither is held up by the download
		w.ReadImage(t, testkit.Repo(name), "1", hit)
	}
	close(gate)
	testkit.AssertBody(t, layer.Digest, b)
	w.Settled(t)
	assert.Equal(t, 1, w.Up.Count("GET /v2/a/blobs/* 200"))
}

type lockedStore struct {
	mu    *sync.Mutex
	inner pullthrough.Store
}

func (s *lockedStore) Manifest(ctx context.Context, r pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inner.Manifest(ctx, r, ref)
}

func (s *lockedStore) PutManifest(ctx context.Context, r pullthrough.Repo, m *pullthrough.Manifest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inner.PutManifest(ctx, r, m)
}

func (s *lockedStore) Blob(ctx context.Context, r pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inner.Blob(ctx, r, d)
}

func (s *lockedStore) PutBlob(ctx context.Context, r pullthrough.Repo, desc ocispec.Descriptor, body io.ReadSeeker) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inner.PutBlob(ctx, r, desc, body)
}

func TestAStoresOwnHandlerAnswersItself(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	d := digest.FromString("x")
	w.Store = presigned{w.Mem}
	rec := testkit.Serve(t, w.Proxy)
	c := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := c.Get(rec.URL + "/v2/hub/a/blobs/" + d.String())
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, "https://bucket.example/x", resp.Header.Get("Location"))
	assert.Empty(t, w.Up.Log())
}

// presigned answers blobs by a redirect to its bucket.
type presigned struct{ pullthrough.Store }

func (presigned) Blob(context.Context, pullthrough.Repo, digest.Digest) (*pullthrough.Blob, error) {
	return &pullthrough.Blob{Descriptor: ocispec.Descriptor{Size: 1}, Body: redirectBody{http.RedirectHandler("https://bucket.example/x", http.StatusTemporaryRedirect)}}, nil
}

type redirectBody struct{ http.Handler }

func (redirectBody) Read([]byte) (int, error) { return 0, io.EOF }

func (redirectBody) Close() error { return nil }

func TestStoresMustNotLoseWhatTheHostKnows(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	w.Up.Push("a", "2", img)
	w.Pull(t, "a", "1", img)
	first, err := w.Stored(t, img.Digest.String())
	require.NoError(t, err)
	w.Pull(t, "a", "2", img)
	again, err := w.Stored(t, img.Digest.String())
	require.NoError(t, err)
	assert.Same(t, first, again, "a second tag of a known digest changes nothing else")
	assert.Equal(t, 2, w.Up.Count("GET /v2/a/manifests/* 200"))
}

func TestADamagedStoreHeals(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	bad := testkit.LocalManifest("1")
	bad.CheckedAt = time.Now()
	bad.Content = append([]byte(nil), bad.Content...)
	bad.Content[3] ^= 1
	require.NoError(t, w.Mem.PutManifest(t.Context(), testkit.Repo("a"), bad))
	w.Pull(t, "a", "1", img)
	assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/1 200"))
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
