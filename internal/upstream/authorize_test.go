package upstream_test

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
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

func TestAHerdIsChallengedOnceAndFetchesOneToken(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	w.push(pullthroughtest.ImageOptions{})
	hold := make(chan struct{})
	w.up.Fault(pullthroughtest.Fault{Match: "GET /v2/* 401", Stall: hold})
	var wg sync.WaitGroup
	pull := func() {
		_, err := w.Manifest(t.Context(), w.target, "1", upstream.Pull)
		assert.NoError(t, err)
	}
	wg.Go(pull)
	require.NoError(t, w.up.Wait(t.Context(), "GET /v2/*", 1))
	for range 50 {
		wg.Go(pull)
	}
	close(hold)
	wg.Wait()
	assert.Equal(t, 1, w.up.Count("* 401"))
	assert.Equal(t, 1, w.up.Count("GET /token*"))
	assert.Equal(t, 51, w.up.Count("GET /v2/a/manifests/1 200"))
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

func TestARefusedTokenIsReplacedOnce(t *testing.T) {
	for name, refusal := range map[string]pullthroughtest.Fault{
		"401": {}, "403, as ECR": {Status: 403}, "400, as ECR Public": {Status: 400},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
			w.push(pullthroughtest.ImageOptions{})
			_, err := w.Manifest(t.Context(), w.target, "1", upstream.Pull)
			require.NoError(t, err)
			w.up.RevokeTokens()
			w.up.Reset()
			refusal.Match = "GET /v2/a/* 401"
			w.up.Fault(refusal)
			_, err = w.Manifest(t.Context(), w.target, "1", upstream.Pull)
			require.NoError(t, err)
			assert.Len(t, w.up.Log(), 3)
			assert.Equal(t, 1, w.up.Count("GET /token 200"))
			assert.Equal(t, 1, w.up.Count("GET /v2/a/manifests/1 200"))
		})
	}
}

func TestACredentialThatChangesIsAskedForAgain(t *testing.T) {
	const old, next = "canary-old-secret", "canary-new-secret"
	w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: map[string]string{"old": old, "new": next}})
	w.push(pullthroughtest.ImageOptions{})
	var now atomic.Pointer[upstream.Credential]
	now.Store(&upstream.Credential{Username: "old", AccessToken: old})
	w.target.Credential = func(context.Context) (upstream.Credential, error) { return *now.Load(), nil }
	_, err := w.Manifest(t.Context(), w.target, "1", upstream.Pull)
	require.NoError(t, err)
	w.up.Reset()
	now.Store(&upstream.Credential{Username: "new", AccessToken: next})
	w.up.Fault(pullthroughtest.Fault{Status: 401, Times: 1})
	_, err = w.Manifest(t.Context(), w.target, "1", upstream.Pull)
	require.NoError(t, err)
	assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "GET /v2/a/manifests/1 200"}, w.up.Log())
	assert.True(t, w.up.Saw(next))
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

func TestIdentityTokensAreExchangedAndRotated(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, IdentityTokens: []string{canary}})
	w.push(pullthroughtest.ImageOptions{})
	next := make(chan string, 1)
	w.target.Credential = give(upstream.Credential{IdentityToken: canary})
	w.target.Rotated = func(_ context.Context, s string) { next <- s }
	token := w.up.IssueToken(0, "repository:a:pull")
	w.up.Fault(pullthroughtest.Fault{Match: "POST /token", Body: []byte(`{"access_token":"` + token + `","refresh_token":"canary-next"}`)})
	_, err := w.Manifest(t.Context(), w.target, "1", upstream.Pull)
	require.NoError(t, err)
	assert.Equal(t, "canary-next", <-next)
	assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "POST /token 200", "GET /v2/a/manifests/1 200"}, w.up.Log())
}

func TestNoCredentialGoesToATokenServerThatIsNotAllowed(t *testing.T) {
	elsewhere := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: users})
	w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Realm: "http://localhost:1/token"})
	w.push(pullthroughtest.ImageOptions{})
	w.target.Credential = give(upstream.Credential{Username: "me", AccessToken: canary})
	_, err := w.Manifest(t.Context(), w.target, "1", upstream.Pull)
	require.ErrorIs(t, err, upstream.ErrDenied)
	assert.NotContains(t, err.Error(), canary)
	assert.Equal(t, []string{"GET /v2/a/manifests/1 401"}, w.up.Log())
	assert.Empty(t, elsewhere.Log())
}

func TestTheTraceHasTheFacts(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: users, Anonymous: true})
	w.push(pullthroughtest.ImageOptions{})
	w.target.Credential = give(upstream.Credential{Username: "me", AccessToken: "canary-wrong"})
	w.target.Options.AnonymousFallback = true
	w.up.Fault(pullthroughtest.Fault{Match: "GET /v2/* 200", Header: http.Header{
		"Warning": {`299 - "this tag is old"`, `110 - "no such form"`}, "Docker-Content-Digest": {"sha256:00"},
	}})
	trace := new(upstream.Trace)
	ctx := trace.Attach(t.Context())
	_, err := w.Manifest(ctx, w.target, "1", upstream.Pull)
	require.NoError(t, err)
	assert.Equal(t, upstream.Facts{Requests: 4, Anonymous: true, WrongDigest: true, Warnings: []string{"this tag is old"}}, trace.Facts())
	assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "GET /token 401", "GET /token 200", "GET /v2/a/manifests/1 200"}, paths(w.up))
}
