package upstream_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestAPullWithBearerIsChallengedOnce(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: users})
	w.target.Credential = give(upstream.Credential{Username: "me", AccessToken: canary})
	img := w.push(pullthroughtest.ImageOptions{})
	for range 2 {
		m, err := w.Manifest(t.Context(), w.target, "1", upstream.Pull)
		require.NoError(t, err)
		assert.Equal(t, img.Content, m.Content)
		assert.Equal(t, img.Digest, m.Descriptor.Digest)
		assert.Equal(t, img.MediaType, m.Descriptor.MediaType)
		assert.Len(t, m.Info.Blobs, 2)
	}
	d, err := w.Head(t.Context(), w.target, "1")
	require.NoError(t, err)
	assert.Equal(t, img.Digest, d)
	assert.Equal(t, []string{
		"GET /v2/a/manifests/1 401", "GET /token 200", "GET /v2/a/manifests/1 200", "GET /v2/a/manifests/1 200", "HEAD /v2/a/manifests/1 200",
	}, paths(w.up))
}

// paths is the upstream's log without queries.
func paths(up *pullthroughtest.Upstream) []string {
	var all []string
	for _, r := range up.Requests() {
		r.Query = ""
		all = append(all, r.String())
	}
	return all
}

func TestTheOtherRepositoriesOfARegistryAreNotChallengedAgain(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	img := w.push(pullthroughtest.ImageOptions{})
	w.up.Push("b", "1", img)
	for _, name := range []string{"a", "b"} {
		_, err := w.Manifest(t.Context(), w.repository(name), "1", upstream.Pull)
		require.NoError(t, err)
	}
	assert.Equal(t, []string{
		"GET /v2/a/manifests/1 401", "GET /token 200", "GET /v2/a/manifests/1 200", "GET /token 200", "GET /v2/b/manifests/1 200",
	}, paths(w.up))
}

func TestAnErrorOfTheCredentialIsHandedOnUnchanged(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	w.push(pullthroughtest.ImageOptions{})
	gone := errors.New("the secret is gone")
	w.target.Credential = func(context.Context) (upstream.Credential, error) { return upstream.Credential{}, gone }
	for range 2 {
		_, err := w.Manifest(t.Context(), w.target, "1", upstream.Pull)
		assert.True(t, err == gone, "%v", err)
	}
	assert.Equal(t, 2, w.up.Count("GET /v2/a/manifests/1 401"), "the challenge is not kept")
	assert.Zero(t, w.up.Count("GET /token*"))

	w.target.Credential = func(context.Context) (upstream.Credential, error) { panic("oops") }
	_, err := w.Manifest(t.Context(), w.target, "1", upstream.Pull)
	_, ok := errors.AsType[*hostcall.PanicError](err)
	assert.True(t, ok, "%v", err)
}

func TestACredentialThatDoesNotComeHoldsUpNobodyWhoLeaves(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	w.push(pullthroughtest.ImageOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	hold := make(chan struct{})
	defer close(hold)
	w.target.Credential = func(context.Context) (upstream.Credential, error) {
		cancel()
		<-hold // whatever its context says
		return upstream.Credential{}, nil
	}
	_, err := w.Manifest(ctx, w.target, "1", upstream.Pull)
	assert.ErrorIs(t, err, context.Canceled)
}
