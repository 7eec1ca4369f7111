package upstream_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const secureRegistry = "https://registry.test"

func testOddRealmsGetNothing(t *testing.T) {
	for name, credentials := range map[string]func(*pullthrough.Proxy){"with a secret": testkit.WithSecret(nil), "anonymous": nil} {
		for _, realm := range []string{
			"http://registry.test/token", "http://", "//auth.test/token", "/token", "token", "https://", "https:///token",
			"https://:443/token", "https://u:p@registry.test/token", "https://u@registry.test/token", "https://registry.test/token#x",
			"ftp://registry.test/token", "file:///etc/passwd", "javascript:x", "https:token", "https:registry.test/token",
			"https://registry.test/token\r\nX-Y: z", "https://registry.test/to ken", "https://registry.test:x/token",
			"https://registry.test/%zz", "https://[::1/token",
		} {
			t.Run(name+" "+realm, func(t *testing.T) {
				n := new(network)
				w := newNamedWorld(t, n, secureRegistry, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users, Anonymous: true, Realm: realm}, credentials)
				plain := pullthroughtest.New(t, pullthroughtest.Config{Users: testkit.Users, Anonymous: true})
				n.put(t, "http://registry.test", plain)
				pushEach(w, "a", "1")
				err := pullTag(t, w, "a", "1")
				require.ErrorIs(t, err, pullthrough.ErrDenied)
				assert.NotContains(t, err.Error(), testkit.Canary)
				assert.Equal(t, []string{"registry.test:443"}, n.calls())
				assert.Equal(t, []string{"GET /v2/a/manifests/1 401"}, w.Up.Log())
			})
		}
	}
	t.Run("as it should be", testGoodRealms)
}

func testGoodRealms(t *testing.T) {
	for registry, realm := range map[string]string{
		secureRegistry:         secureRegistry + "/token",
		"http://registry.test": "http://registry.test/token",
	} {
		t.Run(realm, func(t *testing.T) {
			w := newNamedWorld(t, new(network), registry, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users, Realm: realm}, testkit.WithSecret(nil))
			pushEach(w, "a", "1")
			require.NoError(t, pullTag(t, w, "a", "1"))
			assert.Equal(t, 1, w.Up.Count("GET /token 200"))
		})
	}
	t.Run("https for a registry without", func(t *testing.T) {
		n := new(network)
		w := newNamedWorld(t, n, "http://registry.test", pullthroughtest.Config{Auth: pullthroughtest.Bearer, Realm: "https://auth.test/token"}, nil)
		auth := pullthroughtest.New(t, pullthroughtest.Config{TLS: true})
		n.put(t, "https://auth.test", auth)
		auth.Fault(pullthroughtest.Fault{Match: "GET /token 200", Body: []byte(`{"token":"` + w.Up.IssueToken(0, "repository:a:pull") + `"}`)})
		pushEach(w, "a", "1")
		require.NoError(t, pullTag(t, w, "a", "1"))
		assert.Equal(t, 1, auth.Count("GET /token 200"))
	})
}

// trust is a registry, the token server that it names, and whether that one
// may have the rule's credentials.
type trust struct {
	registry, realm string
	allowed         []string // Policy.RealmHosts
	trusted         bool
}

var trusts = map[string]trust{
	"Docker Hub":            {"https://registry-1.docker.io", "https://auth.docker.io/token", nil, true},
	"GHCR":                  {"https://ghcr.io", "https://ghcr.io/token", nil, true},
	"GCR":                   {"https://gcr.io", "https://gcr.io/v2/token", nil, true},
	"Artifact Registry":     {"https://europe-docker.pkg.dev", "https://europe-docker.pkg.dev/v2/token", nil, true},
	"ECR Public":            {"https://public.ecr.aws", "https://public.ecr.aws/token/", nil, true},
	"ACR":                   {"https://me.azurecr.io", "https://me.azurecr.io/oauth2/token", nil, true},
	"Quay":                  {"https://quay.io", "https://quay.io/v2/auth", nil, true},
	"GitLab":                {"https://registry.gitlab.com", "https://gitlab.com/jwt/auth", nil, true},
	"registry.k8s.io":       {"https://registry.k8s.io", "https://registry.k8s.io/token", nil, true},
	"Harbor":                {"https://harbor.test", "https://harbor.test/service/token", nil, true},
	"JFrog":                 {"https://me.jfrog.io", "https://me.jfrog.io/v2/token", nil, true},
	"Red Hat":               {"https://registry.redhat.io", "https://registry.redhat.io/auth/realms/rhcc/protocol/redhat-docker-v2/auth", nil, true},
	"Nexus":                 {"https://nexus.test:5000", "https://nexus.test:5000/token", nil, true},
	"GHES":                  {"https://containers.ghes.test", "https://containers.ghes.test/token", nil, true},
	"another port":          {secureRegistry, "https://registry.test:8443/token", nil, true},
	"in capitals":           {secureRegistry, "https://REGISTRY.Test/token", nil, true},
	"a GitLab of one's own": {"https://registry.git.test", "https://git.test/jwt/auth", []string{"git.test"}, true},
	"one of several":        {secureRegistry, "https://auth.test/token", []string{"x.test", "auth.test"}, true},

	"another host":                 {secureRegistry, "https://evil.example/token", nil, false},
	"one that was not meant":       {secureRegistry, "https://evil.example/token", []string{"auth.test"}, false},
	"below the registry":           {secureRegistry, "https://auth.registry.test/token", nil, false},
	"above the registry":           {"https://hub.registry.test", secureRegistry + "/token", nil, false},
	"beside the registry":          {"https://hub.registry.test", "https://auth.registry.test/token", nil, false},
	"below what is allowed":        {secureRegistry, "https://x.auth.test/token", []string{"auth.test"}, false},
	"that ends alike":              {secureRegistry, "https://evilregistry.test/token", nil, false},
	"that begins alike":            {secureRegistry, "https://registry.test.evil.example/token", nil, false},
	"Docker Hub's, not for others": {secureRegistry, "https://auth.docker.io/token", nil, false},
	"Docker Hub's, not by http":    {"http://registry-1.docker.io", "http://auth.docker.io/token", nil, false},
	"like Docker Hub's":            {"https://registry-1.docker.io", "https://auth.docker.io.evil.example/token", nil, false},
	"Docker Hub's other way round": {"https://auth.docker.io", "https://registry-1.docker.io/token", nil, false},
	"with another scheme":          {"http://registry.test", secureRegistry + "/token", nil, false},
}

func testRealmElsewhereGetsNoCredentials(t *testing.T) {
	for name, tc := range trusts {
		t.Run(name, func(t *testing.T) { testTrust(t, tc) })
	}
	t.Run("another host, and the policy allows anonymous pulls", func(t *testing.T) {
		n := new(network)
		w := newNamedWorld(t, n, secureRegistry, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users, Anonymous: true, Realm: "https://evil.example/token"}, testkit.WithSecret(nil))
		w.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{AnonymousFallback: true}
		}
		n.put(t, "https://evil.example", w.Up)
		pushEach(w, "a", "1")
		assert.ErrorIs(t, pullTag(t, w, "a", "1"), pullthrough.ErrDenied, "no token server has refused the credentials")
		assert.Equal(t, []string{"registry.test:443"}, n.calls())
		assert.Equal(t, []string{"GET /v2/a/manifests/1 401"}, w.Up.Log())
	})
	t.Run("another host, nothing to lose", func(t *testing.T) {
		n := new(network)
		w := newNamedWorld(t, n, secureRegistry, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Realm: "https://auth.test/token"}, nil)
		n.put(t, "https://auth.test", w.Up)
		pushEach(w, "a", "1")
		require.NoError(t, pullTag(t, w, "a", "1"))
		assert.Equal(t, []string{"auth.test:443", "registry.test:443"}, n.calls())
		assert.Equal(t, []string{""}, authorizations(w.Up, "GET /token"))
	})
}

func testTrust(t *testing.T, tc trust) {
	n, realm := new(network), testkit.MustURL(t, tc.realm)
	config := pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users, Realm: tc.realm}
	config.Handler = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == realm.Path {
			r.URL.Path = "/token"
		}
		return false
	}
	w := newNamedWorld(t, n, tc.registry, config, testkit.WithSecret(nil))
	w.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
		return pullthrough.Policy{RealmHosts: tc.allowed}
	}
	issuer := w.Up
	if realm.Scheme != testkit.MustURL(t, tc.registry).Scheme {
		issuer = pullthroughtest.New(t, pullthroughtest.Config{TLS: true, Users: testkit.Users})
	}
	place := realm.Scheme + "://" + realm.Host
	if place != tc.registry {
		n.put(t, place, issuer)
	}
	pushEach(w, "a", "1")
	err := pullTag(t, w, "a", "1")
	for _, r := range w.Up.Requests() {
		_, _, basic := (&http.Request{Header: r.Header}).BasicAuth()
		assert.Equal(t, r.Path == realm.Path, basic)
		assert.True(t, !basic || strings.EqualFold(r.Host, realm.Host))
	}
	if tc.trusted {
		require.NoError(t, err)
		assert.Equal(t, 1, w.Up.Count("GET "+realm.Path+" 200"))
		return
	}
	assert.ErrorIs(t, err, pullthrough.ErrDenied)
	assert.Len(t, n.calls(), 1, "nobody else was called")
	assert.False(t, w.Up.Saw(testkit.Canary))
	assert.Equal(t, []string{"GET /v2/a/manifests/1 401"}, w.Up.Log())
}
