package pullthrough_test

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// The next pull of a tag that was deleted asks upstream, however fresh the tag was, and so
// it does right after upstream did not have it.
func TestDeletingATagForcesARefresh(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	w.Up.Push("a", "1", testkit.Image(1))
	pull := func() *pullthrough.Manifest {
		m, err := w.Tagged(t, "1")
		require.NoError(t, err)
		require.NoError(t, w.Idle(t.Context()))
		return m
	}
	pull()
	w.Up.Push("a", "1", testkit.Image(2))
	assert.Equal(t, testkit.Image(1).Digest, pull().Descriptor.Digest, "it is fresh")
	require.NoError(t, w.DeleteImage(t.Context(), testkit.Repo("a"), "1"))
	assert.Equal(t, testkit.Image(2).Digest, pull().Descriptor.Digest)
	assert.Equal(t, 2, w.Up.Count("GET /v2/a/manifests/1 200"))
	old, err := w.Mem.Manifest(t.Context(), testkit.Repo("a"), testkit.Image(1).Digest.String())
	require.NoError(t, err)
	assert.Equal(t, testkit.Image(1).Digest, old.Descriptor.Digest, "the image is there without its tag")

	w.Up.Delete("a", "1")
	require.NoError(t, w.DeleteImage(t.Context(), testkit.Repo("a"), testkit.Image(2).Digest.String()))
	_, err = w.Tagged(t, "1")
	require.ErrorIs(t, err, pullthrough.ErrNotFound)
	assert.ErrorIs(t, w.DeleteImage(t.Context(), testkit.Repo("a"), "1"), fs.ErrNotExist)
	w.Up.Push("a", "1", testkit.Image(1))
	assert.Equal(t, testkit.Image(1).Digest, pull().Descriptor.Digest, "that it was missing is forgotten")
}

// What names nothing deletes nothing: an empty name does not stand for a whole account, nor an
// empty reference for the repository.
func TestOnlyWhatIsNamedIsDeleted(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	w.Up.Push("a", "1", testkit.Image(1))
	_, err := w.Tagged(t, "1")
	require.NoError(t, err)
	require.NoError(t, w.Idle(t.Context()))
	for _, repo := range []pullthrough.Repo{{}, testkit.Repo(""), {Name: "../a"}} {
		assert.ErrorIs(t, w.DeleteRepo(t.Context(), repo), pullthrough.ErrInvalid)
		assert.ErrorIs(t, w.DeleteImage(t.Context(), repo, "1"), pullthrough.ErrInvalid)
	}
	for _, ref := range []string{"", "a/b", "sha256:0"} {
		assert.ErrorIs(t, w.DeleteImage(t.Context(), testkit.Repo("a"), ref), pullthrough.ErrInvalid)
	}
	_, err = w.Tagged(t, "1")
	require.NoError(t, err)
	assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/1 200"), "it is stored still")
}

// A fetch that began before a deletion is answered and does not bring back what was deleted.
func TestAFetchDoesNotBringBackWhatWasDeleted(t *testing.T) {
	img := testkit.Image(1)
	for name, c := range map[string]struct {
		due    bool // the tag is stored, and is checked
		delete func(w *testkit.World) error
		want   error // of the deletion
	}{
		"a tag that is checked":     {true, func(w *testkit.World) error { return w.DeleteImage(context.Background(), testkit.Repo("a"), "1") }, nil},
		"a tag that is first there": {false, func(w *testkit.World) error { return w.DeleteImage(context.Background(), testkit.Repo("a"), "1") }, fs.ErrNotExist},
		"the image of the tag": {true, func(w *testkit.World) error {
			return w.DeleteImage(context.Background(), testkit.Repo("a"), img.Digest.String())
		}, nil},
		"the repository":        {true, func(w *testkit.World) error { return w.DeleteRepo(context.Background(), testkit.Repo("a")) }, nil},
		"by way of the Store":   {true, func(w *testkit.World) error { return w.Mem.DeleteImage(context.Background(), testkit.Repo("a"), "1") }, nil},
		"before it was created": {false, func(w *testkit.World) error { return w.DeleteRepo(context.Background(), testkit.Repo("a")) }, fs.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			clock, net := new(testkit.HandClock), new(http.Transport)
			t.Cleanup(net.CloseIdleConnections)
			asked := func() {}
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.Now = clock.Now
				p.Transport = testkit.RoundTripper(func(r *http.Request) (*http.Response, error) {
					asked()
					return net.RoundTrip(r)
				})
			})
			w.Up.Push("a", "1", img)
			pull := func() {
				m, err := w.Tagged(t, "1")
				require.NoError(t, err)
				assert.Equal(t, img.Digest, m.Descriptor.Digest)
				require.NoError(t, w.Idle(t.Context()))
			}
			if c.due {
				pull()
				clock.Pass(25 * time.Hour)
			}
			deleted := false
			asked = func() {
				if !deleted {
					deleted = true
					assert.ErrorIs(t, c.delete(w), c.want)
				}
			}
			pull()
			require.True(t, deleted)
			_, err := w.Mem.Manifest(t.Context(), testkit.Repo("a"), "1")
			assert.ErrorIs(t, err, fs.ErrNotExist, "it was brought back")
			before := len(w.Up.Log())
			pull()
			assert.Len(t, w.Up.Log(), before+1, "upstream is asked")
			_, err = w.Mem.Manifest(t.Context(), testkit.Repo("a"), "1")
			assert.NoError(t, err, "a later fetch is stored")
		})
	}
}

// gatedStore keeps puts of manifests waiting.
type gatedStore struct {
	*memstore.Store
	gate *testkit.Gate
}

func (s *gatedStore) PutManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	<-s.gate.C
	return s.Store.PutManifest(ctx, repo, m)
}

// What was answered and is just being put is deleted, too.
func TestADeletionWaitsForThePut(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		w.Store = &gatedStore{w.Mem, testkit.NewGate(t)}
		w.Up.Push("a", "1", testkit.Image(1))
		_, err := w.Resolve(t.Context(), "1")
		require.NoError(t, err)
		soon, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		assert.ErrorIs(t, w.DeleteImage(soon, testkit.Repo("a"), "1"), context.DeadlineExceeded)
		done := make(chan error, 1)
		go func() { done <- w.DeleteImage(context.Background(), testkit.Repo("a"), "1") }()
		synctest.Wait()
		assert.Empty(t, done)
		w.Store.(*gatedStore).gate.Open()
		require.NoError(t, <-done)
		_, err = w.Mem.Manifest(t.Context(), testkit.Repo("a"), "1")
		assert.ErrorIs(t, err, fs.ErrNotExist)
		assert.Equal(t, 1, w.Up.Count("*"))
	})
}

func TestAStoreThatCannotDelete(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Store = struct{ pullthrough.Store }{memstore.New()}
	})
	assert.ErrorIs(t, w.DeleteImage(t.Context(), testkit.Repo("a"), "1"), errors.ErrUnsupported)
	assert.ErrorIs(t, w.DeleteRepo(t.Context(), testkit.Repo("a")), errors.ErrUnsupported)
	assert.ErrorIs(t, w.DeleteImage(t.Context(), testkit.Repo("a"), "a b"), pullthrough.ErrInvalid)
	assert.Zero(t, w.Up.Count("*"))
}

// Idle of a repository waits for what was answered from it, and for nothing else.
func TestIdleOfARepository(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		w.Store = &gatedStore{w.Mem, testkit.NewGate(t)}
		w.Up.Push("a", "1", testkit.Image(1))
		_, err := w.Resolve(t.Context(), "1")
		require.NoError(t, err)
		require.NoError(t, w.Idle(t.Context(), testkit.Repo("b")))
		elsewhere := testkit.Repo("")
		elsewhere.Region += "-2"
		elsewhere.Name = ""
		require.NoError(t, w.Idle(t.Context(), elsewhere))
		registry := testkit.Repo("")
		registry.Name = ""
		for _, repo := range []pullthrough.Repo{testkit.Repo("a"), registry} {
			soon, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			assert.ErrorIs(t, w.Idle(soon, repo), context.DeadlineExceeded)
		}
		w.Store.(*gatedStore).gate.Open()
		require.NoError(t, w.Idle(t.Context(), testkit.Repo("a")))
		_, err = w.Mem.Manifest(t.Context(), testkit.Repo("a"), "1")
		assert.NoError(t, err)
	})
}
