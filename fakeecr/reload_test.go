package fakeecr_test

import (
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/fakeecr"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// rulesOf are the rules that the API knows.
func rulesOf(t *testing.T, ecr *fakeecr.Server) []pullthrough.Rule {
	t.Helper()
	rules, err := ecr.API.Rules(t.Context(), "123456789012", "us-east-1")
	require.NoError(t, err)
	return rules
}

// What a new Config says of upstreams is in force; a rule that is the same is the same.
func TestReload(t *testing.T) {
	up, img := newUpstream(t), newImage()
	up.Push("app", "v1", img)
	up.Push("app", "v2", img)
	config := fakeecr.Config{
		Rules:       []pullthrough.Rule{ruleTo("p", up.URL), ruleTo("gone", "quay.io")},
		Credentials: map[string]pullthrough.Credential{"p": me},
	}
	i := start(t, config)
	before := rulesOf(t, i.ecr)
	i.expect(t, "/v2/p/app/manifests/v1", 200)

	config.Rules = []pullthrough.Rule{ruleTo("p/", up.URL), ruleTo("new", "quay.io")}
	at, err := url.Parse(up.URL)
	require.NoError(t, err)
	config.Endpoints = map[string]*url.URL{"*": at}
	config.Credentials = map[string]pullthrough.Credential{"p": me, "new": me}
	require.NoError(t, i.ecr.Reload(config))
	after := rulesOf(t, i.ecr)
	require.Len(t, after, 2)
	assert.Equal(t, before[0], after[0], "it is not another rule")
	assert.Equal(t, "new", after[1].Prefix)
	up.Reset()
	i.expect(t, "/v2/p/app/manifests/v2", 200)
	assert.Equal(t, []string{"GET /v2/app/manifests/v2 200"}, up.Log(), "with the token that it had")
	i.expect(t, "/v2/new/app/manifests/v1", 200)
	i.expect(t, "/v2/gone/app/manifests/v1", 404)

	config.Credentials = map[string]pullthrough.Credential{"p": {Username: "me", AccessToken: "wrong"}, "new": me}
	require.NoError(t, i.ecr.Reload(config))
	up.Reset()
	i.get(t, "/v2/p/team/manifests/v1") // needs a token of its own
	assert.Equal(t, 1, up.Count("GET /token 401"), "the password is another one: %v", up.Log())
}

// A Config that New would refuse changes nothing.
func TestReloadOfAConfigThatIsRefused(t *testing.T) {
	up, img := pullthroughtest.New(t, pullthroughtest.Config{}), newImage()
	up.Push("app", "v1", img)
	config := fakeecr.Config{Rules: []pullthrough.Rule{ruleTo("p", up.URL)}}
	i := start(t, config)
	before := rulesOf(t, i.ecr)
	config.Rules = []pullthrough.Rule{ruleTo("q", up.URL), ruleTo("Q", up.URL)}
	assert.ErrorContains(t, i.ecr.Reload(config), "fakeecr: ")
	assert.Equal(t, before, rulesOf(t, i.ecr))
	i.expect(t, "/v2/p/app/manifests/v1", 200)
	assert.Equal(t, []string{"GET /v2/app/manifests/v1 200"}, up.Log())
}

// A rule that the API has deleted is there again, and one that the API has made stays.
func TestReloadAfterTheAPI(t *testing.T) {
	config := fakeecr.Config{Rules: []pullthrough.Rule{ruleTo("hub", "quay.io")}, Data: t.TempDir()}
	i := start(t, config)
	i.ok(t, "DeletePullThroughCacheRule", `{"ecrRepositoryPrefix":"hub"}`)
	i.ok(t, "CreatePullThroughCacheRule", `{"ecrRepositoryPrefix":"mine","upstreamRegistryUrl":"quay.io"}`)
	require.NoError(t, i.ecr.Reload(config))
	rules := rulesOf(t, i.ecr)
	require.Len(t, rules, 2)
	assert.Equal(t, []string{"hub", "mine"}, []string{rules[0].Prefix, rules[1].Prefix})
}

// "*" is every host that a rule names by its name only and that has no endpoint of its own.
func TestTheEndpointOfAllOtherHosts(t *testing.T) {
	img := newImage()
	var at [3]*url.URL
	var ups [3]*pullthroughtest.Upstream
	for n := range at {
		ups[n] = pullthroughtest.New(t, pullthroughtest.Config{})
		ups[n].Push("app", "v1", img)
		var err error
		at[n], err = url.Parse(ups[n].URL)
		require.NoError(t, err)
	}
	i := start(t, fakeecr.Config{
		Rules:     []pullthrough.Rule{ruleTo("any", "quay.io"), ruleTo("own", "ghcr.io"), ruleTo("url", ups[2].URL)},
		Endpoints: map[string]*url.URL{"*": at[0], "ghcr.io": at[1]},
	})
	for n, prefix := range []string{"any", "own", "url"} {
		i.expect(t, "/v2/"+prefix+"/app/manifests/v1", 200)
		assert.Equal(t, []string{"GET /v2/app/manifests/v1 200"}, ups[n].Log(), prefix)
		ups[n].Reset()
	}
}

// expect returns the body of an answer that has the status.
func (i *instance) expect(t *testing.T, path string, status int) string {
	t.Helper()
	resp, body := i.get(t, path)
	require.Equal(t, status, resp.StatusCode, string(body))
	return string(body)
}
