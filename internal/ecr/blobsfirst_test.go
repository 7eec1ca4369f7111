package ecr_test

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A blob alone is served and makes no repository, whose absence the Store may mind.
func TestBlobsFirst(t *testing.T) {
	e, s := startRepoECR(t, nil, testkit.WithPolicy(pullthrough.Policy{BlobsFirst: true}))
	img := testkit.Image(1)
	e.push("1", img)
	assert.Equal(t, 200, e.Ask(t, http.MethodHead, testkit.BlobPath("a", img.Layers[0].Digest)).StatusCode)
	e.servesBlobs(t, img)
	e.Settled(t)
	assert.Empty(t, s.creations())
	assert.Equal(t, len(img.Blobs()), e.Up.Count("GET /v2/a/blobs/* 200"))
	e.Up.Reset()
	e.serves(t, "1", img)
	e.asked(t, asks("GET", "1", 200))
	assert.Len(t, s.creations(), 1)
}

// Who may not make the repository gets no blob of it either.
func TestBlobsFirstNeedsThePermissionToCreate(t *testing.T) {
	e, s := startRepoECR(t, nil, testkit.WithPolicy(pullthrough.Policy{BlobsFirst: true}), func(p *pullthrough.Proxy) {
		p.Authorize = func(_ context.Context, a pullthrough.Action, _ pullthrough.Request) error {
			if a == pullthrough.ActionCreate {
				return errors.New("not you")
			}
			return nil
		}
	})
	img := testkit.Image(1)
	e.push("1", img)
	e.refusesAt(t, testkit.BlobPath("a", img.Layers[0].Digest), 404, "NAME_UNKNOWN", testkit.SayNoRepository("hub/a", testkit.RegistryAccount))
	e.asked(t)
	assert.Empty(t, s.creations())
}

func TestMemStoreListsRepositoriesWithImages(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	img := testkit.Image(1)
	e.push("1", img)
	e.servesBlobs(t, img)
	e.Settled(t)
	lister, ok := e.Store.(pullthrough.RepoLister)
	require.True(t, ok)
	names := func() []string {
		names, err := lister.Repos(t.Context(), testkit.RegistryAccount, "eu-west-1")
		assert.NoError(t, err)
		return names
	}
	assert.Empty(t, names())
	e.serves(t, "1", img)
	assert.Equal(t, []string{"hub/a"}, names())
}
