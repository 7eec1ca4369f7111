package pullthrough_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// The challenge is upstream's word. Whoever it names, the secret stays.
func TestCredentialsGoToNoTokenServerTheRuleDoesNotAllow(t *testing.T) {
	elsewhere := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: users})
	for name, realm := range map[string]string{
		"another host":      "http://localhost:1/token",
		"another scheme":    "https://" + elsewhere.Host() + "/token",
		"userinfo":          "http://u:p@" + elsewhere.Host() + "/token",
		"a fragment":        elsewhere.URL() + "/token#x",
		"no host":           "http:///token",
		"relative":          "/token",
		"without a scheme":  "//" + elsewhere.Host() + "/token",
		"no http":           "ftp://" + elsewhere.Host() + "/token",
		"an opaque URL":     "http:token",
		"line breaks in it": "http://" + elsewhere.Host() + "/token\r\nx: y",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: users, Realm: realm}, withSecret(nil))
			w.up.Push("a", "1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "1"})
			require.ErrorIs(t, err, pullthrough.ErrDenied)
			assert.NotContains(t, err.Error(), canary)
			assert.False(t, w.up.Saw(canary))
			assert.Empty(t, elsewhere.Log())
			assert.Equal(t, []string{"GET /v2/a/manifests/1 401"}, w.up.Log())
		})
	}
}

func TestTokenServersTheRuleAllows(t *testing.T) {
	issuer := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: users})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	t.Run("the registry's host on another port", func(t *testing.T) {
		w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Issuer: issuer}, withSecret(nil))
		w.up.Push("a", "1", img)
		w.pull(t, "a", "1", img)
		assert.Equal(t, 1, issuer.Count("GET /token 200"))
		assert.False(t, w.up.Saw(canary))
	})
	t.Run("one that the policy names", func(t *testing.T) {
		issuer.Reset()
		w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Issuer: issuer}, func(p *pullthrough.Proxy) {
			withSecret(nil)(p)
			p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
				return pullthrough.Policy{RealmHosts: []string{"127.0.0.1"}}
			}
		})
		w.Rules = pullthrough.StaticRules{{Prefix: prefix, UpstreamURL: "http://localhost:" + port(w.up)}}
		w.up.Push("a", "1", img)
		w.pull(t, "a", "1", img)
		assert.Equal(t, 1, issuer.Count("GET /token 200"))
	})
}

func port(u *pullthroughtest.Upstream) string { return u.Host()[len("127.0.0.1:"):] }

func TestChallengesNeverWidenTheScope(t *testing.T) {
	for challenged, want := range map[string]string{
		"repository:other/secret:pull,push": "repository:a:pull",
		"repository:a:pull,push,delete":     "repository:a:pull",
		"repository:user/image:pull":        "repository:a:pull", // GHCR's placeholder
		"registry:catalog:*":                "repository:a:pull",
		"":                                  "repository:a:pull",
		"aws":                               "aws repository:a:pull", // ECR Public's
	} {
		t.Run(challenged, func(t *testing.T) {
			var scope []string
			w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
			w.up.Fault(pullthroughtest.Fault{Match: "GET /v2/*", Times: 1, Status: 401, Header: http.Header{
				"Www-Authenticate": {`Bearer realm="` + w.up.URL() + `/token",service="registry.test",scope="` + challenged + `"`},
			}})
			w.up.Push("a", "1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))
			_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "1"})
			require.NoError(t, err)
			for _, r := range w.up.Requests() {
				if r.Path == "/token" {
					scope = (&http.Request{URL: mustURL(t, "/?"+r.Query)}).URL.Query()["scope"]
				}
			}
			assert.Equal(t, want, strings.Join(scope, " "))
		})
	}
}

func TestRedirectsLeaveCredentialsBehind(t *testing.T) {
	elsewhere := pullthroughtest.New(t, pullthroughtest.Config{})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	elsewhere.Push("a", "1", img)
	for _, status := range []int{301, 302, 303, 307, 308} {
		t.Run(fmt.Sprint("to another port by ", status), func(t *testing.T) {
			elsewhere.Reset()
			w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: users}, withSecret(nil))
			w.up.Push("a", "1", img)
			w.up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/* 200", Status: status, Redirect: elsewhere.URL() + "{path}"})
			w.pull(t, "a", "1", img)
			assert.Equal(t, len(img.Blobs()), elsewhere.Count("GET /v2/a/blobs/* 200"))
			for _, r := range elsewhere.Requests() {
				assert.Empty(t, r.Header.Get("Authorization"))
				assert.Empty(t, r.Header.Get("Referer"))
			}
		})
	}
	t.Run("and come back without them", func(t *testing.T) {
		elsewhere.Reset()
		w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Basic, Users: users}, withSecret(nil))
		w.up.Push("a", "1", img)
		defer elsewhere.Fault(pullthroughtest.Fault{Redirect: w.up.URL() + "/back"})()
		w.up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/* 200", Redirect: elsewhere.URL() + "{path}"})
		_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "1"})
		require.Error(t, err)
		for _, r := range w.up.Requests() {
			if r.Path == "/back" {
				assert.Empty(t, r.Header.Get("Authorization"))
			}
		}
		assert.Equal(t, 1, w.up.Count("GET /back*"))
	})
	t.Run("a token request is not redirected to another origin", func(t *testing.T) {
		elsewhere.Reset()
		w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: users}, withSecret(nil))
		w.up.Push("a", "1", img)
		w.up.Fault(pullthroughtest.Fault{Match: "GET /token*", Redirect: elsewhere.URL() + "/token"})
		_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "1"})
		assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
		assert.Empty(t, elsewhere.Log())
	})
	t.Run("from https to http not at all", func(t *testing.T) {
		elsewhere.Reset()
		w := newWorld(t, pullthroughtest.Config{TLS: true}, nil)
		w.Transport = w.up.Client().Transport
		w.up.Push("a", "1", img)
		w.up.Fault(pullthroughtest.Fault{Match: "GET /v2/*", Redirect: elsewhere.URL() + "{path}"})
		_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "1"})
		assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
		assert.Empty(t, elsewhere.Log())
	})
}
