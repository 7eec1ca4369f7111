package pullthrough_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// withCredential gives every rule c.
func withCredential(c pullthrough.Credential) func(*pullthrough.Proxy) {
	return func(p *pullthrough.Proxy) {
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			return c, nil
		}
	}
}

// withBoth has an identity token, and a password in case it is not taken.
var withBoth = withCredential(pullthrough.Credential{Username: "me", AccessToken: testkit.Canary, IdentityToken: testkit.Canary + "-identity"})

const (
	googleRegistry = "us-docker.pkg.dev"
	googleLogin    = "accounts.google.com"
	googleManifest = "GET /v2/project/images/app/manifests/1 "
)

// newArtifactRegistry has project/images/app:1, its blobs in another place of
// the same host. Its challenges name no scope, and its token server knows no POST.
func newArtifactRegistry(t *testing.T, img *pullthroughtest.Image) internet {
	t.Helper()
	server := tokenServer{issuer: newIssuer(t, nil), path: "/v2/token", fields: []string{"token", "expires_in", "issued_at"}, post: http.StatusNotFound}
	login := func(w http.ResponseWriter, r *http.Request) bool {
		return r.URL.Path == "/login" && say(w, http.StatusOK, "text/html; charset=utf-8", "<!doctype html><title>Sign in</title>")
	}
	downloads := func(w http.ResponseWriter, r *http.Request) bool {
		inner := r.Clone(r.Context())
		inner.Header.Del("Authorization") // it does not look at it
		return strings.HasPrefix(r.URL.Path, "/artifacts-downloads/") && bucket(img)(w, inner)
	}
	registry := server.registry(t, googleRegistry, googleRegistry, server.answer, login, downloads)
	registry.Fault(pullthroughtest.Fault{Match: "* 401", Header: http.Header{
		"Www-Authenticate": {`Bearer realm="https://` + googleRegistry + `/v2/token",service="` + googleRegistry + `"`},
	}})
	registry.Push("project/images/app", "1", img)
	redirectBlobs(registry, http.StatusFound, "https://"+googleRegistry+"/artifacts-downloads")
	return internet{googleRegistry: registry, googleLogin: newHost(t, login)}
}

// googlePull is a cold pull that began like this.
func googlePull(begin ...string) requests {
	const blobs = "/v2/project/images/app/blobs/"
	return requests{googleRegistry: append(
		begin,
		"GET "+blobs+"CONFIG 302", "GET /artifacts-downloads"+blobs+"CONFIG 200",
		"GET "+blobs+"LAYER 302", "GET /artifacts-downloads"+blobs+"LAYER 200",
	)}
}

func testQuirkArtifactRegistry(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	t.Run("with a password", func(t *testing.T) {
		google := newArtifactRegistry(t, img)
		synctest.Test(t, func(t *testing.T) {
			q := google.pullFrom(t, googleRegistry, testkit.WithSecret(nil)).of("project/images/app", img, googleRegistry)
			q.pullTwice(t, "1", googlePull(googleManifest+"401", "GET /v2/token 200", googleManifest+"200"))
		})
	})
	t.Run("with an identity token", func(t *testing.T) {
		google := newArtifactRegistry(t, img)
		synctest.Test(t, func(t *testing.T) {
			q := google.pullFrom(t, googleRegistry, withBoth).of("project/images/app", img, googleRegistry)
			q.pullTwice(t, "1", googlePull(googleManifest+"401", "POST /v2/token 404", "GET /v2/token 200", googleManifest+"200"))
		})
	})
	for name, tc := range map[string]struct {
		to   string
		want []string
	}{
		"a login on another host":    {"https://" + googleLogin + "/login?continue=x", []string{googleManifest + "401", "GET /v2/token 302"}},
		"a login on the host itself": {"/login?continue=x", []string{googleManifest + "401", "GET /v2/token 302", "GET /login 200"}},
	} {
		t.Run(name, func(t *testing.T) {
			google := newArtifactRegistry(t, img)
			google[googleRegistry].Fault(pullthroughtest.Fault{Match: "GET /v2/token *", Status: 302, Redirect: tc.to})
			synctest.Test(t, func(t *testing.T) {
				q := google.pullFrom(t, googleRegistry, testkit.WithSecret(nil)).of("project/images/app", img, googleRegistry)
				e := q.refused(t, "1", pullthrough.ErrUnavailable)
				assert.Equal(t, googleRegistry, e.Host)
				assert.Equal(t, requests{googleRegistry: tc.want}, q.requests())
				if len(tc.want) == 3 {
					assert.ErrorContains(t, e, "text/html", "whoever wrote the rule learns what is wrong")
				}
			})
		})
	}
}

const (
	acrRegistry = "myregistry.azurecr.io"
	acrBlobs    = "eusmanaged84.blob.core.windows.net"
	nullGUID    = "00000000-0000-0000-0000-000000000000"
)

// newACR has app:1. Its token server takes a refresh token by POST, or in place
// of the password of the user with the null GUID, but no password by POST.
func newACR(t *testing.T, img *pullthroughtest.Image) internet {
	t.Helper()
	server := tokenServer{
		issuer: newIssuer(t, func(c *pullthroughtest.Config) {
			c.Users = map[string]string{nullGUID: testkit.Canary}
			c.IdentityTokens = []string{testkit.Canary}
		}),
		path:   "/oauth2/token",
		fields: []string{"access_token"},
	}
	registry := server.registry(t, acrRegistry, acrRegistry, func(w http.ResponseWriter, r *http.Request) bool {
		return r.Method == http.MethodPost && r.FormValue("grant_type") != "refresh_token" &&
			say(w, http.StatusBadRequest, "application/json", ociErrors("UNSUPPORTED", "grant_type is not supported"))
	}, server.answer)
	registry.Push("app", "1", img)
	redirectBlobs(registry, http.StatusTemporaryRedirect, "https://"+acrBlobs)
	return internet{acrRegistry: registry, acrBlobs: newHost(t, bucket(img))}
}

func acrPull(token string) requests {
	return requests{
		acrRegistry: {
			"GET /v2/app/manifests/1 401", token, "GET /v2/app/manifests/1 200",
			"GET /v2/app/blobs/CONFIG 307", "GET /v2/app/blobs/LAYER 307",
		},
		acrBlobs: {"GET /v2/app/blobs/CONFIG 200", "GET /v2/app/blobs/LAYER 200"},
	}
}

func testQuirkACR(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	identity := withCredential(pullthrough.Credential{Username: nullGUID, IdentityToken: testkit.Canary})
	t.Run("with an identity token", func(t *testing.T) {
		acr := newACR(t, img)
		synctest.Test(t, func(t *testing.T) {
			q := acr.pullFrom(t, acrRegistry, identity).of("app", img, acrRegistry)
			q.pullTwice(t, "1", acrPull("POST /oauth2/token 200"))
		})
	})
	t.Run("with an identity token that has expired", func(t *testing.T) {
		acr := newACR(t, img)
		synctest.Test(t, func(t *testing.T) {
			expired := withCredential(pullthrough.Credential{Username: nullGUID, IdentityToken: testkit.Canary + "-expired"})
			q := acr.pullFrom(t, acrRegistry, expired).of("app", img, acrRegistry)
			assert.Equal(t, 401, q.refused(t, "1", pullthrough.ErrDenied).Status)
			// The user with the null GUID has no password, so there is nothing else to try.
			assert.Equal(t, requests{acrRegistry: {"GET /v2/app/manifests/1 401", "POST /oauth2/token 401"}}, q.requests())
		})
	})
	t.Run("with a password that is a refresh token", func(t *testing.T) {
		acr := newACR(t, img)
		synctest.Test(t, func(t *testing.T) {
			q := acr.pullFrom(t, acrRegistry, withCredential(pullthrough.Credential{Username: nullGUID, AccessToken: testkit.Canary})).of("app", img, acrRegistry)
			q.pullTwice(t, "1", acrPull("GET /oauth2/token 200"))
		})
	})
	t.Run("what the token server is asked for", func(t *testing.T) {
		acr := newACR(t, img)
		synctest.Test(t, func(t *testing.T) {
			q := acr.pullFrom(t, acrRegistry, identity).of("app", img, acrRegistry)
			q.Pull(t, "app", "1", img)
			asked := acr[acrRegistry].Requests()[1]
			require.Equal(t, "POST /oauth2/token 200", asked.String())
			assert.Equal(t, "application/x-www-form-urlencoded", asked.Header.Get("Content-Type"))
			assert.Empty(t, asked.Header.Get("Authorization")+asked.Query)
			form, err := url.ParseQuery(string(asked.Body))
			require.NoError(t, err)
			assert.NotEmpty(t, form.Get("client_id"))
			form.Del("client_id")
			assert.Equal(t, url.Values{
				"grant_type": {"refresh_token"}, "refresh_token": {testkit.Canary},
				"service": {acrRegistry}, "scope": {"repository:app:pull"},
			}, form)
		})
	})
}

const (
	k8sRegistry = "registry.k8s.io"
	k8sBackend  = "us-west2-docker.pkg.dev"
	k8sBlobs    = "prod-registry-k8s-io-us-west-2.s3.dualstack.us-west-2.amazonaws.com"
	k8sPrefix   = "/v2/k8s-artifacts-prod/images/"
)

// newK8s has pause:3.10: the layer is in a bucket, the rest in a registry that
// wants a token for the name that the image has there.
func newK8s(t *testing.T, img *pullthroughtest.Image) internet {
	t.Helper()
	server := tokenServer{issuer: newIssuer(t, func(c *pullthroughtest.Config) { c.Users = nil }), path: "/v2/token"}
	backend := server.registry(t, k8sBackend, k8sBackend, server.answer)
	backend.Push("k8s-artifacts-prod/images/pause", "3.10", img)
	front := newHost(t, func(w http.ResponseWriter, r *http.Request) bool {
		to := "https://" + k8sBackend + k8sPrefix + strings.TrimPrefix(r.URL.Path, "/v2/")
		if layer := img.Layers[0].Digest.String(); strings.HasSuffix(r.URL.Path, layer) {
			to = "https://" + k8sBlobs + "/containers/images/" + layer
		}
		w.Header().Set("Location", to)
		return say(w, http.StatusTemporaryRedirect, "text/html", "")
	})
	return internet{k8sRegistry: front, k8sBackend: backend, k8sBlobs: newHost(t, openBucket(img))}
}

func testQuirkK8s(t *testing.T) {
	t.Run("redirects to a registry", func(t *testing.T) {
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
		k8s := newK8s(t, img)
		synctest.Test(t, func(t *testing.T) {
			q := k8s.pullFrom(t, k8sRegistry, testkit.WithSecret(nil)).of("pause", img)
			q.shown = []string{k8sBackend} // a token of its own
			q.pullTwice(t, "3.10", requests{
				k8sRegistry: {"GET /v2/pause/manifests/3.10 307", "GET /v2/pause/blobs/CONFIG 307", "GET /v2/pause/blobs/LAYER 307"},
				k8sBackend: {
					"GET " + k8sPrefix + "pause/manifests/3.10 401", "GET /v2/token 200", "GET " + k8sPrefix + "pause/manifests/3.10 200",
					"GET " + k8sPrefix + "pause/blobs/CONFIG 401", "GET /v2/token 200", "GET " + k8sPrefix + "pause/blobs/CONFIG 200",
				},
				k8sBlobs: {"GET /containers/images/LAYER 200"},
			})
		})
	})
	for name, times := range map[string]int{"a resume is answered 400": 1, "every resume is answered 400": 0} {
		t.Run(name, func(t *testing.T) {
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 3 << 20})
			k8s := newK8s(t, img)
			k8s[k8sBlobs].Fault(pullthroughtest.Fault{Match: "* 200", Times: 1, CutAfter: new(int64(1 << 20))})
			k8s[k8sBlobs].Fault(pullthroughtest.Fault{Match: "* 206", Times: times, Status: 400, Body: []byte(s3Error("BadRequest")), Header: http.Header{"Content-Type": {"application/xml"}}})
			synctest.Test(t, func(t *testing.T) {
				q := k8s.pullFrom(t, k8sRegistry, testkit.WithSecret(nil)).of("pause", img)
				q.PullBlob(t, "pause", img.Layers[0].Digest)
				q.Settled(t)
				q.checkSecrets(t)
				asked := k8s[k8sRegistry].Count("GET /v2/pause/blobs/* 307")
				assert.Equal(t, len(k8s[k8sBlobs].Log()), asked, "each time by way of the registry")
				assert.LessOrEqual(t, asked, 6)
				assert.Positive(t, k8s[k8sBlobs].Count("* 400"))
				q.forget()
				q.PullBlob(t, "pause", img.Layers[0].Digest)
				assert.Empty(t, q.requests())
			})
		})
	}
}
