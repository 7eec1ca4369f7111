package ecrapi_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A rule that was created through the API pulls, with the secret that it names, from
// where registry-1.docker.io is in tests.
func TestARulePulls(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: map[string]string{"canary-robot": "canary-token"}})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	up.Push("library/alpine", "latest", img)
	v := &vault{content: "not yet"}
	api := &ecrapi.API{Secrets: v.secret}
	c := start(t, api)
	proxy := &pullthrough.Proxy{
		Store: memstore.New(), Rules: api, Credentials: api.Credentials,
		Endpoint: func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) {
			return url.Parse(up.URL)
		},
	}
	t.Cleanup(func() { assert.NoError(t, proxy.Shutdown(context.Background())) })
	pull := func() error {
		_, err := proxy.Manifest(t.Context(), pullthrough.Request{Repo: pullthrough.Repo{Name: "docker-hub/library/alpine"}, Ref: "latest"})
		return errors.Join(err, proxy.Idle(t.Context()))
	}

	require.ErrorIs(t, pull(), pullthrough.ErrNoRule)
	assert.Empty(t, up.Log())
	resp, body := c.send(t, target+"CreatePullThroughCacheRule", object("ecrRepositoryPrefix", "docker-hub", "upstreamRegistryUrl", "registry-1.docker.io", "credentialArn", secret))
	require.Equal(t, http.StatusOK, resp.StatusCode, body)

	err := pull()
	exception, failure, message := pullthrough.AWS(err, "BatchGetImage")
	assert.Equal(t, "UnableToGetUpstreamImageException", exception, "the secret is malformed: %v", err)
	assert.Empty(t, failure)
	assert.NotContains(t, message, "canary")
	status, code, _ := pullthrough.OCI(err)
	assert.Equal(t, http.StatusForbidden, status)
	assert.Equal(t, "DENIED", code)
	assert.Zero(t, up.Count("GET /token *"))

	v.content = goodSecret
	require.NoError(t, pull())
	assert.Equal(t, 1, up.Count("GET /v2/library/alpine/manifests/latest 200"), "%s", up.Log())

	resp, body = c.send(t, target+"DeletePullThroughCacheRule", object("ecrRepositoryPrefix", "docker-hub"))
	require.Equal(t, http.StatusOK, resp.StatusCode, body)
	before := len(up.Log())
	require.NoError(t, pull(), "what is cached stays")
	_, err = proxy.Manifest(t.Context(), pullthrough.Request{Repo: pullthrough.Repo{Name: "docker-hub/library/alpine"}, Ref: "edge"})
	assert.ErrorIs(t, err, pullthrough.ErrNoRule)
	assert.Len(t, up.Log(), before)
}

// cross-account-no-role: the pull is denied access, which is no trouble with a secret.
func TestAPullFromAnotherAccountWithoutARole(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Basic})
	api := &ecrapi.API{}
	c := start(t, api)
	resp, body := c.send(t, target+"CreatePullThroughCacheRule", object("ecrRepositoryPrefix", "far", "upstreamRegistryUrl", "111122223333.dkr.ecr.us-east-1.amazonaws.com"))
	require.Equal(t, http.StatusOK, resp.StatusCode, body)
	proxy := &pullthrough.Proxy{
		Store: memstore.New(), Rules: api, Credentials: api.Credentials,
		Endpoint: func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) {
			return url.Parse(up.URL)
		},
	}
	t.Cleanup(func() { assert.NoError(t, proxy.Shutdown(context.Background())) })
	_, err := proxy.Manifest(t.Context(), pullthrough.Request{Repo: pullthrough.Repo{Name: "far/a"}, Ref: "v1"})
	require.ErrorIs(t, err, pullthrough.ErrDenied)
	_, failure, _ := pullthrough.AWS(err, "BatchGetImage")
	assert.Equal(t, "UpstreamAccessDenied", failure)
	for _, line := range up.Log() {
		assert.Contains(t, line, " 401", "nobody got in")
	}
}

func TestTheAPIAndTheRegistryOnOneMux(t *testing.T) {
	api := &ecrapi.API{Next: http.NotFoundHandler()}
	proxy := &pullthrough.Proxy{Store: memstore.New(), Rules: api}
	t.Cleanup(func() { assert.NoError(t, proxy.Shutdown(context.Background())) })
	mux := http.NewServeMux()
	mux.Handle("/v2/", proxy)
	mux.Handle("/", api)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	c := &client{api: api, url: server.URL}
	c.ok(t, "DescribePullThroughCacheRules", "{}", `{"pullThroughCacheRules":[]}`)
	for path, status := range map[string]int{"/v2/": http.StatusOK, "/v2/hub/a/manifests/v1": http.StatusNotFound, "/else": http.StatusNotFound} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+path, nil)
		require.NoError(t, err)
		resp, _, err := do(r)
		require.NoError(t, err)
		assert.Equal(t, status, resp.StatusCode, path)
	}
}
