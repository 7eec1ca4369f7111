package pullthrough_test

import (
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
