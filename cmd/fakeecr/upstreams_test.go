package main

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// The rules' prefixes and hosts in the spellings that users type.
func TestRulesThatParse(t *testing.T) {
	for value, want := range map[string]pullthrough.Rule{
		"p=quay.io":                      {Prefix: "p", UpstreamURL: "quay.io"},
		"p=quay.io/":                     {Prefix: "p", UpstreamURL: "quay.io"},
		"p/=quay.io":                     {Prefix: "p", UpstreamURL: "quay.io"},
		"p/q=quay.io/team":               {Prefix: "p/q", UpstreamURL: "quay.io", UpstreamPrefix: "team"},
		"p=quay.io/team/":                {Prefix: "p", UpstreamURL: "quay.io", UpstreamPrefix: "team/"},
		"p=http://127.0.0.1:7701/a/team": {Prefix: "p", UpstreamURL: "http://127.0.0.1:7701", UpstreamPrefix: "a/team"},
		"p=docker.io/v2":                 {Prefix: "p", UpstreamURL: "docker.io", UpstreamPrefix: "v2"},
		"ROOT=docker.io":                 {Prefix: "ROOT", UpstreamURL: "docker.io"},
	} {
		c, err := parse([]string{"-rule", value}, nil)
		require.NoError(t, err, value)
		assert.Equal(t, []pullthrough.Rule{want}, c.Rules, value)
	}
}

// The flags that are about a rule may stand before it.
func TestWhatIsSaidOfRules(t *testing.T) {
	const name = "ecr-pullthroughcache/docker-hub"
	c, err := parse([]string{
		"-credential", "p/=me:" + secret, "-realm", "p=auth.test", "-realm", "p/=localhost:5001", "-endpoint", "Docker.io=http://127.0.0.1:7701/",
		"-rule", "p=docker.io", "-rule", "q=quay.io", "-secret", name + "=you:" + secret,
	}, nil)
	require.NoError(t, err)
	assert.Equal(t, map[string]pullthrough.Credential{"p": {Username: "me", AccessToken: secret}}, c.Credentials)
	assert.Equal(t, map[string][]string{"p": {"auth.test", "localhost:5001"}}, c.RealmHosts)
	assert.Equal(t, map[string]*url.URL{"registry-1.docker.io": {Scheme: "http", Host: "127.0.0.1:7701", Path: "/"}}, c.Endpoints)
	assert.Equal(t, map[string]pullthrough.Credential{name: {Username: "you", AccessToken: secret}}, c.Secrets)
	assert.Empty(t, c.warnings)
}

// All that flags say of an upstream is heeded in one pull.
func TestAPullByFlags(t *testing.T) {
	issuer := pullthroughtest.New(t, pullthroughtest.Config{Users: map[string]string{"me": secret}})
	up := pullthroughtest.New(t, pullthroughtest.Config{
		Auth:   pullthroughtest.Bearer,
		Issuer: issuer,
		Realm:  strings.Replace(issuer.URL, "127.0.0.1", "localhost", 1) + "/token",
	})
	img := newImage()
	up.Push("team/app", "v1", img)
	i := start(t, "-endpoint", "registry-1.docker.io="+up.URL+"/", "-rule", "p/q=docker.io/team", "-rule", "p=quay.io",
		"-credential", "p/q/=me:"+secret, "-realm", "p/q=localhost", "-tag-ttl", "0")
	i.pull(t, "p/q/app", "v1", img)
	assert.Equal(t, []string{"GET /token 200"}, issuer.Log())
	assert.Equal(t, 1+len(img.Blobs()), up.Count("GET /v2/team/app/* 200"))
	up.Reset()
	i.pull(t, "p/q/app", "v1", img)
	assert.Equal(t, []string{"HEAD /v2/team/app/manifests/v1 200"}, up.Log())
	i.stop(t)
	assert.NotContains(t, i.stderr.String(), secret)
}

// A rule of the API has the secret of the command line.
func TestARuleOfTheAPI(t *testing.T) {
	up, img := newUpstream(t), newImage()
	up.Push("library/alpine", "3.22", img)
	i := start(t, "-secret", "ecr-pullthroughcache/hub=me:"+secret, "-endpoint", "registry-1.docker.io="+up.URL)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, i.url+"/", strings.NewReader(`{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"registry-1.docker.io",
		"credentialArn":"arn:aws:secretsmanager:us-east-1:123456789012:secret:ecr-pullthroughcache/hub"}`))
	require.NoError(t, err)
	r.Header.Set("X-Amz-Target", "AmazonEC2ContainerRegistry_V20150921.CreatePullThroughCacheRule")
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, 200, resp.StatusCode)
	i.pull(t, "hub/library/alpine", "3.22", img)
	i.stop(t)
	assert.NotContains(t, i.stderr.String(), secret)
}

func TestUnusedEndpointIsWarnedOf(t *testing.T) {
	i := start(t, "-rule", "p=quay.io",
		"-endpoint", "ghcr.io=http://127.0.0.1:1", // the API may make a rule for it
		"-endpoint", "my.azurecr.io=http://127.0.0.1:1",
		"-endpoint", "docker.io=http://127.0.0.1:1",
		"-endpoint", "ghrc.io=http://127.0.0.1:1")
	i.stop(t)
	assert.Contains(t, i.stderr.String(), "ghrc.io=http://127.0.0.1:1")
	assert.Equal(t, 1, strings.Count(i.stderr.String(), "level=WARN"), "one warning and nothing else")
}
