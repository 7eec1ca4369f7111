package fakeecr_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/fakeecr"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestPullIsColdOnce(t *testing.T) {
	up, img := newUpstream(t), newImage()
	up.Push("library/alpine", "3.22", img)
	i := start(t, fakeecr.Config{
		Rules:       []pullthrough.Rule{ruleTo("docker-hub", "registry-1.docker.io")},
		Credentials: map[string]pullthrough.Credential{"docker-hub": me},
		Endpoints:   endpoints(t, "registry-1.docker.io", up.URL),
	})
	i.pull(t, "docker-hub/library/alpine", "3.22", img)
	assert.Equal(t, coldPull("library/alpine", "3.22", img), up.Log())
	up.Reset()
	i.pull(t, "docker-hub/library/alpine", "3.22", img)
	i.pull(t, "docker-hub/library/alpine", img.Descriptor().Digest.String(), img)
	assert.Empty(t, up.Log())
	i.stop()
	assert.NotContains(t, i.log.String(), secret)
}

func endpoints(t *testing.T, host, to string) map[string]*url.URL {
	u, err := url.Parse(to)
	require.NoError(t, err)
	return map[string]*url.URL{host: u}
}

// The prefixes and hosts of rules have several spellings.
func TestRulesFindTheirUpstream(t *testing.T) {
	up, img := newUpstream(t), newImage()
	up.Push("team/app", "v1", img)
	at := up.URL
	team := func(prefix, upstream string) pullthrough.Rule {
		return pullthrough.Rule{Prefix: prefix, UpstreamURL: upstream, UpstreamPrefix: "team"}
	}
	for _, c := range []struct {
		name   string
		prefix string // the credential is for this one
		rules  []pullthrough.Rule
		host   string // has an endpoint
		repo   string
	}{
		{"URL", "p", []pullthrough.Rule{ruleTo("p", at)}, "quay.io", "p/team/app"},
		{"prefix with a slash", "p", []pullthrough.Rule{ruleTo("p/", at)}, "quay.io", "p/team/app"},
		{"credential with a slash", "p/", []pullthrough.Rule{ruleTo("p", at)}, "quay.io", "p/team/app"},
		{"longer prefix", "p/q", []pullthrough.Rule{ruleTo("p", at), team("p/q", at)}, "quay.io", "p/q/app"},
		{"upstream prefix", "p", []pullthrough.Rule{team("p", at)}, "quay.io", "p/app"},
		{"root", "ROOT", []pullthrough.Rule{ruleTo("ROOT", at)}, "quay.io", "team/app"},
		{"endpoint and upstream prefix", "p", []pullthrough.Rule{team("p", "quay.io")}, "quay.io", "p/app"},
		{"another of a host's names", "p", []pullthrough.Rule{ruleTo("p", "docker.io")}, "Registry-1.docker.io", "p/team/app"},
		{"upstream with a scheme", "p", []pullthrough.Rule{ruleTo("p", "https://index.docker.io")}, "docker.io", "p/team/app"},
	} {
		t.Run(c.name, func(t *testing.T) {
			up.Reset()
			i := start(t, fakeecr.Config{
				Rules: c.rules, Credentials: map[string]pullthrough.Credential{c.prefix: me}, Endpoints: endpoints(t, c.host, at),
			})
			i.pull(t, c.repo, "v1", img)
			assert.Equal(t, coldPull("team/app", "v1", img), up.Log())
		})
	}
}

// A token server on a host of its own gets the credential if RealmHosts names it.
func TestRealm(t *testing.T) {
	issuer := pullthroughtest.New(t, pullthroughtest.Config{Users: map[string]string{"me": secret}})
	up := pullthroughtest.New(t, pullthroughtest.Config{
		Auth:   pullthroughtest.Bearer,
		Issuer: issuer,
		Realm:  strings.Replace(issuer.URL, "127.0.0.1", "localhost", 1) + "/token",
	})
	img := newImage()
	up.Push("app", "v1", img)
	config := fakeecr.Config{Rules: []pullthrough.Rule{ruleTo("p", up.URL)}, Credentials: map[string]pullthrough.Credential{"p": me}}

	resp, body := start(t, config).get(t, "/v2/p/app/manifests/v1")
	assert.Equal(t, 403, resp.StatusCode, string(body))
	assert.Empty(t, issuer.Log())

	config.RealmHosts = map[string][]string{"p/": {"localhost"}}
	start(t, config).pull(t, "p/app", "v1", img)
	assert.Equal(t, []string{"GET /token 200"}, issuer.Log())
	assert.True(t, issuer.Saw(secret))
	assert.False(t, up.Saw(secret))
}

// The credential of a rule is for that rule only: a rule that the API has put in its
// place for another registry does not get it.
func TestACredentialStaysWithItsRule(t *testing.T) {
	up, img := newUpstream(t), newImage()
	up.Push("app", "v1", img)
	quay := newUpstream(t)
	quay.Push("app", "v1", img)
	i := start(t, fakeecr.Config{
		Rules:       []pullthrough.Rule{ruleTo("pp", up.URL)},
		Credentials: map[string]pullthrough.Credential{"pp": me},
		Secrets:     map[string]pullthrough.Credential{hubName: me},
		Endpoints:   endpoints(t, "quay.io", quay.URL),
	})
	i.pull(t, "pp/app", "v1", img)
	i.ok(t, "DeletePullThroughCacheRule", `{"ecrRepositoryPrefix":"pp"}`)
	i.ok(t, "CreatePullThroughCacheRule", `{"ecrRepositoryPrefix":"pp","upstreamRegistryUrl":"quay.io"}`)
	assert.Equal(t, []any{"quay.io"}, i.list(t, "DescribePullThroughCacheRules", "{}", "pullThroughCacheRules", "upstreamRegistryUrl"))
	resp, _ := i.get(t, "/v2/pp/app/manifests/v2")
	assert.Equal(t, 403, resp.StatusCode)
	assert.Equal(t, []string{"GET /v2/app/manifests/v2 401", "GET /token 401"}, quay.Log())
	assert.False(t, quay.Saw(secret))
}

func TestPolicyIsThatOfAllRules(t *testing.T) {
	up, img := pullthroughtest.New(t, pullthroughtest.Config{}), newImage()
	up.Push("app", "v1", img)
	config := fakeecr.Config{
		Data: t.TempDir(), Rules: []pullthrough.Rule{ruleTo("pp", up.URL)},
		Policy: pullthrough.Policy{TagTTL: pullthrough.EveryPull},
	}
	i := start(t, config)
	i.pull(t, "pp/app", "v1", img)
	up.Reset()
	i.pull(t, "pp/app", "v1", img)
	assert.Equal(t, []string{"HEAD /v2/app/manifests/v1 200"}, up.Log())
	i.stop()
	up.Reset()

	config.Policy.Offline = true
	i = start(t, config)
	i.pull(t, "pp/app", "v1", img)
	for _, path := range []string{"/v2/pp/app/manifests/v2", "/v2/pp/other/manifests/v1"} {
		resp, body := i.get(t, path)
		assert.Equal(t, 502, resp.StatusCode, string(body))
		assert.Contains(t, string(body), "offline")
	}
	assert.Empty(t, up.Log())
}

func TestFillBackground(t *testing.T) {
	up, img := pullthroughtest.New(t, pullthroughtest.Config{}), newImage()
	up.Push("app", "v1", img)
	i := start(t, fakeecr.Config{Rules: []pullthrough.Rule{ruleTo("p", up.URL)}, Fill: pullthrough.FillBackground})
	resp, _ := i.get(t, "/v2/p/app/manifests/v1")
	require.Equal(t, 200, resp.StatusCode)
	require.NoError(t, up.Wait(t.Context(), "GET /v2/app/blobs/*", len(img.Blobs())))
	i.stop() // waits for the downloads
	assert.Equal(t, 1+len(img.Blobs()), up.Count("GET * 200"))
}

// A client that takes the Server for a mirror of an upstream makes the repository of the rule,
// and no other.
func TestAMirrorOfTheAPIsRules(t *testing.T) {
	up, img := newUpstream(t), newImage()
	up.Push("library/alpine", "3.22", img)
	config := fakeecr.Config{Secrets: map[string]pullthrough.Credential{hubName: me}, Endpoints: endpoints(t, "registry-1.docker.io", up.URL), Mirror: true}
	config.Policy.Library = true
	i := start(t, config)
	resp, _ := i.get(t, "/v2/library/alpine/manifests/3.22?ns=docker.io")
	assert.Equal(t, 404, resp.StatusCode, "there is no rule yet")
	i.ok(t, "CreatePullThroughCacheRule", hubRule)
	for _, path := range []string{"/v2/library/alpine/manifests/3.22?ns=docker.io", "/v2/docker-hub/library/alpine/manifests/3.22", "/v2/docker-hub/alpine/manifests/3.22"} {
		resp, body := i.get(t, path)
		assert.Equal(t, 200, resp.StatusCode, path)
		assert.Equal(t, img.Content, body)
		i.idle(t)
	}
	assert.Equal(t, []any{"docker-hub/alpine", "docker-hub/library/alpine"}, i.repositories(t))
	assert.Equal(t, 2, up.Count("GET /v2/library/alpine/manifests/3.22 200"), "once for each repository")
	assert.Equal(t, []any{"3.22"}, i.list(t, "ListImages", `{"repositoryName":"docker-hub/library/alpine"}`, "imageIds", "imageTag"))
}
