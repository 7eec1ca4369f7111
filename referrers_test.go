package pullthrough_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// Where the Store keeps no lists of referrers, the short ones are kept in memory. A
// longer list is served, and upstream is asked for it again.
func TestShortListsOfReferrersAreKeptInMemory(t *testing.T) {
	for name, tc := range map[string]struct {
		note     int // the length of an annotation
		requests int
	}{
		"60 KiB": {60 << 10, 1},
		"64 KiB": {64 << 10, 2},
	} {
		t.Run(name, func(t *testing.T) {
			want := ocispec.Descriptor{
				MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("a"), Size: 1, ArtifactType: "text/plain",
				Annotations: map[string]string{"note": strings.Repeat("x", tc.note)},
			}
			list, err := json.Marshal(ocispec.Index{
				Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{want},
			})
			require.NoError(t, err)
			w := testkit.NewWorld(t, pullthroughtest.Config{Handler: func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
				_, err := w.Write(list)
				assert.NoError(t, err)
				return true
			}}, nil)
			r := pullthrough.Request{Repo: testkit.Repo("a"), Ref: digest.FromString("subject").String()}
			for range 2 {
				got, err := w.Referrers(t.Context(), r, "")
				require.NoError(t, err)
				assert.Equal(t, []ocispec.Descriptor{want}, got.Manifests)
				w.Settled(t)
			}
			assert.Equal(t, tc.requests, w.Up.Count("GET /v2/a/referrers/*"))
			assert.Equal(t, tc.requests, w.Up.Count("*"))
		})
	}
}

// Lists take memory while they come, so few come at a time. Who waits too long is told when
// to come again.
func TestFewListsOfReferrersAreFetchedAtATime(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		stall := make(chan struct{})
		w.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/referrers/*", Stall: stall})
		var refused, answered atomic.Int32
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				_, err := w.Referrers(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: digest.FromString(fmt.Sprint(i)).String()}, "")
				if err == nil {
					answered.Add(1)
					return
				}
				e, _ := errors.AsType[*pullthrough.Error](err)
				assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
				assert.Positive(t, e.RetryAfter)
				refused.Add(1)
			})
		}
		time.Sleep(9 * time.Second)
		assert.Equal(t, 8, w.Up.Count("*"))
		img := testkit.Image(1)
		w.Up.Push("a", "1", img)
		w.ReadImage(t, testkit.Repo("a"), "1", img) // which does not wait for them
		time.Sleep(2 * time.Second)
		assert.EqualValues(t, 12, refused.Load())
		close(stall)
		all.Wait()
		assert.EqualValues(t, 8, answered.Load())
	})
}

// TestListsOfWhatNobodyHasAreNotStored: a client may make up subjects and repositories.
// Their lists are in memory, and what is stored keeps its list in the Store.
func TestListsOfWhatNobodyHasAreNotStored(t *testing.T) {
	store, err := dirstore.Open(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, store.Close()) })
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store = store })
	img := testkit.Image(1)
	w.Up.Push("a", "v1", img)
	w.Up.Push("a", "sig", pullthroughtest.NewImage(pullthroughtest.ImageOptions{ArtifactType: "text/plain", Subject: img}))
	for i := range 20 {
		r := pullthrough.Request{Repo: testkit.Repo(fmt.Sprint("junk", i)), Ref: digest.FromString(fmt.Sprint(i)).String()}
		for range 2 {
			_, err := w.Referrers(t.Context(), r, "")
			require.NoError(t, err)
		}
		_, _, err := store.Referrers(t.Context(), r.Repo, digest.Digest(r.Ref))
		assert.ErrorIs(t, err, fs.ErrNotExist)
	}
	assert.Equal(t, 20, w.Up.Count("GET /v2/*/referrers/*"), "memory has them")

	r := pullthrough.Request{Repo: testkit.Repo("a"), Ref: img.Digest.String()}
	_, err = w.Manifest(t.Context(), r)
	require.NoError(t, err)
	w.Settled(t)
	_, err = w.Referrers(t.Context(), r, "")
	require.NoError(t, err)
	list, _, err := store.Referrers(t.Context(), r.Repo, img.Digest)
	require.NoError(t, err)
	assert.Len(t, list.Manifests, 1)
	assert.Equal(t, 21, w.Up.Count("GET /v2/*/referrers/*"))
	assert.Equal(t, 1, w.Up.Count("GET /v2/a/manifests/*"))
}

// listing is an upstream that answers lists of referrers as answer says, and the lists of
// the world before it.
type listing struct {
	*testkit.World
	answer func(w http.ResponseWriter)
}

func newListing(t *testing.T, change func(*pullthrough.Proxy)) *listing {
	t.Helper()
	l := &listing{}
	l.World = testkit.NewWorld(t, pullthroughtest.Config{Handler: func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/referrers/") {
			return false
		}
		l.answer(w)
		return true
	}}, change)
	return l
}

func status(code int) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) { w.WriteHeader(code) }
}

func oneReferrer(name string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		_ = json.NewEncoder(w).Encode(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{
			{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(name), Size: 1},
		}})
	}
}

func (l *listing) list(t *testing.T, subject digest.Digest) (digests []digest.Digest) {
	t.Helper()
	index, err := l.Referrers(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: subject.String()}, "")
	require.NoError(t, err)
	l.Settled(t)
	for _, d := range index.Manifests {
		digests = append(digests, d.Digest)
	}
	return digests
}

// That upstream has no referrers API is a guess, unless it says 404. A guess is not stored,
// is forgotten soon, and takes the place of no list that is known, wherever that is kept.
func TestAGuessThatThereIsNoListReplacesNone(t *testing.T) {
	for name, stored := range map[string]bool{"in the Store": true, "in memory": false} {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1e9, 0)
			var store pullthrough.ReferrerStore
			l := newListing(t, func(p *pullthrough.Proxy) {
				p.Now = func() time.Time { return now }
				if stored {
					dir, err := dirstore.Open(t.TempDir())
					require.NoError(t, err)
					t.Cleanup(func() { assert.NoError(t, dir.Close()) })
					p.Store, store = dir, dir
				}
			})
			img := testkit.Image(1)
			l.Up.Push("a", "1", img)
			_, err := l.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
			require.NoError(t, err)
			l.Settled(t)
			l.Up.Reset()

			l.answer = status(405)
			for range 2 {
				assert.Empty(t, l.list(t, img.Digest))
			}
			assert.Equal(t, 1, l.Up.Count("*"), "it is remembered")
			if stored {
				_, _, err := store.Referrers(t.Context(), testkit.Repo("a"), img.Digest)
				assert.ErrorIs(t, err, fs.ErrNotExist)
			}
			now = now.Add(10 * time.Second)
			assert.Empty(t, l.list(t, img.Digest))
			assert.Equal(t, 2, l.Up.Count("*"), "and not for long")

			now = now.Add(10 * time.Second)
			l.answer = oneReferrer("signature")
			want := []digest.Digest{digest.FromString("signature")}
			for _, code := range []int{405, 501, 403, 400, 500} {
				assert.Equal(t, want, l.list(t, img.Digest))
				now = now.Add(6 * time.Hour)
				l.answer = status(code)
				assert.Equal(t, want, l.list(t, img.Digest), code)
			}
			l.answer = oneReferrer("another")
			assert.Equal(t, []digest.Digest{digest.FromString("another")}, l.list(t, img.Digest), "upstream is asked again at once")
			now = now.Add(6 * time.Hour)
			l.answer = status(404)
			assert.Empty(t, l.list(t, img.Digest), "that is sure")
			before := l.Up.Count("*")
			now = now.Add(time.Hour)
			assert.Empty(t, l.list(t, img.Digest))
			assert.Equal(t, before, l.Up.Count("*"))
		})
	}
}

// Where nothing is remembered of what is missing, a guess is none either; and a guess that is
// old is not served in place of a failure.
func TestAGuessIsForgotten(t *testing.T) {
	now, ttl := time.Unix(1e9, 0), time.Duration(-1)
	l := newListing(t, func(p *pullthrough.Proxy) {
		p.Now = func() time.Time { return now }
		p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{NotFoundTTL: ttl, Retries: -1}
		}
	})
	subject := digest.FromString("subject")
	l.answer = status(406)
	for range 2 {
		assert.Empty(t, l.list(t, subject))
	}
	assert.Equal(t, 2, l.Up.Count("*"))
	ttl = time.Minute
	assert.Empty(t, l.list(t, subject))
	now = now.Add(59 * time.Second)
	l.answer = status(500)
	assert.Empty(t, l.list(t, subject))
	assert.Equal(t, 3, l.Up.Count("*"))
	now = now.Add(time.Second)
	_, err := l.Referrers(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: subject.String()}, "")
	assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
	assert.Equal(t, 4, l.Up.Count("*"))
}
