package pullthrough_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// faultyStore fails as its functions say; nil functions do what MemStore does.
type faultyStore struct {
	*memstore.Store
	manifest    func() error
	putManifest func() error
	blob        func() error
	putBlob     func(io.ReadSeeker) error
}

func (s *faultyStore) Manifest(ctx context.Context, r pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	if s.manifest != nil {
		if err := s.manifest(); err != nil {
			return nil, err
		}
	}
	return s.Store.Manifest(ctx, r, ref)
}

func (s *faultyStore) PutManifest(ctx context.Context, r pullthrough.Repo, m *pullthrough.Manifest) error {
	if s.putManifest != nil {
		if err := s.putManifest(); err != nil {
			return err
		}
	}
	return s.Store.PutManifest(ctx, r, m)
}

func (s *faultyStore) Blob(ctx context.Context, r pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	if s.blob != nil {
		if err := s.blob(); err != nil {
			return nil, err
		}
	}
	return s.Store.Blob(ctx, r, d)
}

func (s *faultyStore) PutBlob(ctx context.Context, r pullthrough.Repo, desc ocispec.Descriptor, body io.ReadSeeker) error {
	if s.putBlob != nil {
		if err := s.putBlob(body); err != nil {
			return err
		}
	}
	return s.Store.PutBlob(ctx, r, desc, body)
}

func TestAStoreThatFailsHarmsNoPull(t *testing.T) {
	boom := errors.New("disk on fire")
	fails := func() error { return boom }
	panics := func() error { panic("disk on fire") }
	for name, store := range map[string]*faultyStore{
		"Manifest fails":     {manifest: fails},
		"Manifest panics":    {manifest: panics},
		"PutManifest fails":  {putManifest: fails},
		"PutManifest panics": {putManifest: panics},
		"Blob fails":         {blob: fails},
		"Blob panics":        {blob: panics},
		"PutBlob fails":      {putBlob: func(io.ReadSeeker) error { return boom }},
		"PutBlob panics":     {putBlob: func(io.ReadSeeker) error { panic("disk on fire") }},
		"PutBlob reads half": {putBlob: func(r io.ReadSeeker) error {
			_, err := io.CopyN(io.Discard, r, 10)
			return errors.Join(err, boom)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			failures := 0
			store.Store = memstore.New()
			w := newWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
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
			w.up.Push("a", "1", img)
			for range 2 {
				w.pull(t, "a", "1", img)
			}
			assert.Positive(t, failures, "the host hears of it")
			assert.LessOrEqual(t, w.up.Count("GET *"), 8)
			*store = faultyStore{Store: store.Store}
			w.pull(t, "a", "1", img)
			w.up.Reset()
			w.pull(t, "a", "1", img)
			assert.Empty(t, w.up.Log(), "once the Store is well, it is used")
		})
	}
	t.Run("a failing Store is not taken for an empty one", func(t *testing.T) {
		w := newWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
			p.Store = &faultyStore{Store: memstore.New(), manifest: fails, blob: fails}
		})
		none := pullthrough.Repo{Name: "no/rule"}
		_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: none, Ref: "1"})
		assert.ErrorIs(t, err, boom)
		assert.NotErrorIs(t, err, pullthrough.ErrNoRule)
		_, err = w.Blob(t.Context(), pullthrough.Request{Repo: none, Ref: digest.FromString("x").String()})
		assert.ErrorIs(t, err, boom)
		assert.Empty(t, w.up.Log())
	})
}

// The host has one mutex for everything, and its PutBlob reads while it holds
// it. Pulls, hits and the Credentials callback want the same mutex.
func TestAStoreBehindTheHostsOneMutexDoesNotDeadlock(t *testing.T) {
	var mu sync.Mutex
	store := &lockedStore{mu: &mu, inner: memstore.New()}
	w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: users}, func(p *pullthrough.Proxy) {
		p.Store = store
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			mu.Lock()
			defer mu.Unlock()
			return pullthrough.Credential{Username: "me", AccessToken: canary}, nil
		}
	})
	hit := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1})
	w.up.Push("hit", "1", hit)
	w.pull(t, "hit", "1", hit)
	layer := w.layer(4 << 20)
	gate := make(chan struct{})
	w.up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/*", Stall: gate, StallAfter: new(int64(2 << 20))})
	b, err := w.open(t.Context(), layer.Digest)
	require.NoError(t, err)
	w.settledBut(t, 1)
	w.up.Push("cold", "1", hit)
	for _, name := range []string{"hit", "cold"} { // neither is held up by the download
		w.readImage(t, repo(name), "1", hit)
	}
	close(gate)
	assertBody(t, layer.Digest, b)
	w.settled(t)
	assert.Equal(t, 1, w.up.Count("GET /v2/a/blobs/* 200"))
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

func TestOneCallerMayImportAndTheOtherMayNot(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	d := img.Blobs()[0].Digest.String()
	for name, order := range map[string][]string{"refused first": {"guest", "admin"}, "allowed first": {"admin", "guest"}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.Authorize = func(_ context.Context, a pullthrough.Action, r pullthrough.Request) error {
					if a == pullthrough.ActionImport && r.Caller == "guest" {
						return errors.New("guests import nothing")
					}
					return nil
				}
			})
			w.up.Push("a", "1", img)
			gate := make(chan struct{})
			w.up.Fault(pullthroughtest.Fault{Stall: gate})
			results := map[string]chan error{"guest": make(chan error, 2), "admin": make(chan error, 2)}
			for _, caller := range order {
				go func() {
					_, err := w.Manifest(context.Background(), pullthrough.Request{Repo: repo("a"), Ref: "1", Caller: caller})
					results[caller] <- err
				}()
				go func() {
					b, err := w.Blob(context.Background(), pullthrough.Request{Repo: repo("a"), Ref: d, Caller: caller})
					if err == nil {
						err = b.Body.Close()
					}
					results[caller] <- err
				}()
				if caller == "guest" {
					for range 2 {
						err := <-results["guest"]
						assert.ErrorIs(t, err, pullthrough.ErrNotFound, "masked, as Amazon ECR does")
						assert.ErrorIs(t, err, pullthrough.ErrDenied)
					}
				} else {
					require.Eventually(t, func() bool { return w.Running() == 2 }, 10*time.Second, time.Millisecond)
				}
			}
			close(gate)
			for range 2 {
				assert.NoError(t, <-results["admin"])
			}
			w.settled(t)
			assert.Len(t, w.up.Log(), 2)
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "1", Caller: "guest"})
			assert.NoError(t, err, "what is stored needs no import")
		})
	}
}

func TestAStoresOwnHandlerAnswersItself(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{}, nil)
	d := digest.FromString("x")
	w.Store = presigned{w.store}
	rec := serve(t, w.Proxy)
	c := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := c.Get(rec.URL + "/v2/hub/a/blobs/" + d.String())
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, "https://bucket.example/x", resp.Header.Get("Location"))
	assert.Empty(t, w.up.Log())
}

// presigned answers blobs by a redirect to its bucket.
type presigned struct{ pullthrough.Store }

func (presigned) Blob(context.Context, pullthrough.Repo, digest.Digest) (*pullthrough.Blob, error) {
	return &pullthrough.Blob{Descriptor: ocispec.Descriptor{Size: 1}, Body: redirectBody{http.RedirectHandler("https://bucket.example/x", http.StatusTemporaryRedirect)}}, nil
}

type redirectBody struct{ http.Handler }

func (redirectBody) Read([]byte) (int, error) { return 0, io.EOF }

func (redirectBody) Close() error { return nil }
