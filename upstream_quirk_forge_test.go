package pullthrough_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const (
	ghcrRegistry = "ghcr.io"
	ghcrBlobs    = "pkg-containers.githubusercontent.com"
	ghcrManifest = "GET /v2/org/app/manifests/1 "
)

// newGHCR has org/app:1, which is public. Its challenges ask for a placeholder,
// and whoever brings a token for that is answered 403.
func newGHCR(t *testing.T, img *pullthroughtest.Image) internet {
	t.Helper()
	server := tokenServer{issuer: newIssuer(t, anonymous), path: "/token", fields: []string{"token"}, refused: http.StatusForbidden}
	registry := server.registry(t, ghcrRegistry, ghcrRegistry, server.answer,
		refusing(server.issuer, http.StatusForbidden, "DENIED", "requested access to the resource is denied"))
	registry.Fault(pullthroughtest.Fault{Match: "* 401", Header: http.Header{
		"Www-Authenticate": {`Bearer realm="https://ghcr.io/token",service="ghcr.io",scope="repository:user/image:pull"`},
	}})
	registry.Push("org/app", "1", img)
	redirectBlobs(registry, http.StatusTemporaryRedirect, "https://"+ghcrBlobs+"/ghcr1")
	return internet{ghcrRegistry: registry, ghcrBlobs: newHost(t, bucket(img))}
}

// ghcrPull is a cold pull for which the token server was asked so.
func ghcrPull(tokens ...string) requests {
	begin := append([]string{ghcrManifest + "401"}, tokens...)
	return requests{
		ghcrRegistry: append(begin, ghcrManifest+"200", "GET /v2/org/app/blobs/CONFIG 307", "GET /v2/org/app/blobs/LAYER 307"),
		ghcrBlobs:    {"GET /ghcr1/v2/org/app/blobs/CONFIG 200", "GET /ghcr1/v2/org/app/blobs/LAYER 200"},
	}
}

func testQuirkGHCR(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	for name, change := range map[string]func(*pullthrough.Proxy){"anonymous": nil, "with a token of the user's": testkit.WithSecret(nil)} {
		t.Run(name, func(t *testing.T) {
			ghcr := newGHCR(t, img)
			synctest.Test(t, func(t *testing.T) {
				q := ghcr.pullFrom(t, ghcrRegistry, change).of("org/app", img)
				if change != nil {
					q.told = []string{ghcrRegistry}
				}
				q.pullTwice(t, "1", ghcrPull("GET /token 200"))
			})
		})
	}
	t.Run("what the token server is asked for", func(t *testing.T) {
		ghcr := newGHCR(t, img)
		synctest.Test(t, func(t *testing.T) {
			q := ghcr.pullFrom(t, ghcrRegistry, nil).of("org/app", img)
			q.Pull(t, "org/app", "1", img)
			query := tokenQuery(t, ghcr[ghcrRegistry], "/token")
			assert.Equal(t, []string{"repository:org/app:pull"}, query["scope"], "the placeholder is nobody's repository")
		})
	})
	t.Run("with an expired token of the user's", func(t *testing.T) { testQuirkGHCRExpired(t, img) })
}

// testQuirkGHCRExpired: 403, though the image is public.
func testQuirkGHCRExpired(t *testing.T, img *pullthroughtest.Image) {
	expired := func(p *pullthrough.Proxy) {
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			return pullthrough.Credential{Username: "me", AccessToken: testkit.Canary + "-expired"}, nil
		}
	}
	t.Run("is refused", func(t *testing.T) {
		ghcr := newGHCR(t, img)
		synctest.Test(t, func(t *testing.T) {
			q := ghcr.pullFrom(t, ghcrRegistry, expired).of("org/app", img, ghcrRegistry)
			e := q.refused(t, "1", pullthrough.ErrDenied)
			assert.Equal(t, 403, e.Status)
			assert.Equal(t, requests{ghcrRegistry: {ghcrManifest + "401", "GET /token 403"}}, q.requests())
		})
	})
	t.Run("or gone without", func(t *testing.T) {
		ghcr := newGHCR(t, img)
		synctest.Test(t, func(t *testing.T) {
			var told testkit.Events
			q := ghcr.pullFrom(t, ghcrRegistry, func(p *pullthrough.Proxy) {
				expired(p)
				p.OnEvent = told.On
				p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
					return pullthrough.Policy{AnonymousFallback: true}
				}
			}).of("org/app", img, ghcrRegistry)
			q.pullTwice(t, "1", ghcrPull("GET /token 403", "GET /token 200"))
			assert.True(t, anonymousFetches(&told), "somebody should notice")
		})
	})
}

// anonymousFetches reports whether a fetch went without its credentials.
func anonymousFetches(e *testkit.Events) bool {
	for _, event := range e.Of(pullthrough.EventFetch) {
		if event.Anonymous {
			return true
		}
	}
	return false
}

const (
	gitlabRegistry = "registry.gitlab.com"
	gitlabTokens   = "gitlab.com"
	gitlabBlobs    = "cdn.registry.gitlab-static.net"
)

// testQuirkGitLab: its tokens live for 5 minutes, of which its answers say
// nothing, so that they are good for one.
func testQuirkGitLab(t *testing.T) {
	t.Run("self-managed", testQuirkGitLabSelfManaged)
	server := tokenServer{issuer: newIssuer(t, nil), path: "/jwt/auth", fields: []string{"token"}}
	registry := server.registry(t, gitlabTokens, "container_registry")
	const name = "group/project/app"
	var images []*pullthroughtest.Image
	for i, tag := range []string{"1", "2", "3"} {
		images = append(images, pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i)}))
		registry.Push(name, tag, images[i])
	}
	redirectBlobs(registry, http.StatusTemporaryRedirect, "https://"+gitlabBlobs+"/gitlab")
	gitlab := internet{gitlabRegistry: registry, gitlabTokens: newHost(t, server.answer), gitlabBlobs: newHost(t, bucket(images...))}
	pull := func(manifests ...string) requests {
		return requests{
			gitlabRegistry: append(manifests, "GET /v2/"+name+"/blobs/CONFIG 307", "GET /v2/"+name+"/blobs/LAYER 307"),
			gitlabBlobs:    {"GET /gitlab/v2/" + name + "/blobs/CONFIG 200", "GET /gitlab/v2/" + name + "/blobs/LAYER 200"},
		}
	}
	withToken := func(r requests) requests {
		r[gitlabTokens] = []string{"GET /jwt/auth 200"}
		return r
	}
	const manifest = "GET /v2/" + name + "/manifests/"
	synctest.Test(t, func(t *testing.T) {
		q := gitlab.pullFrom(t, gitlabRegistry, testkit.WithSecret(nil)).of(name, images[0], gitlabTokens)
		q.pullTwice(t, "1", withToken(pull(manifest+"1 401", manifest+"1 200")))

		time.Sleep(40 * time.Second)
		q.of(name, images[1]).pullTwice(t, "2", pull(manifest+"2 200"))

		time.Sleep(20 * time.Second)
		q.of(name, images[2], gitlabTokens).pullTwice(t, "3", withToken(pull(manifest+"3 200")))
	})
}

// testQuirkGitLabSelfManaged: only the rule can know that these two hosts
// belong together.
func testQuirkGitLabSelfManaged(t *testing.T) {
	const registry, gitlab, manifest = "registry.example.com", "gitlab.example.com", "GET /v2/group/app/manifests/1 "
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	server := tokenServer{issuer: newIssuer(t, nil), path: "/jwt/auth", fields: []string{"token"}}
	up := server.registry(t, gitlab, "container_registry")
	up.Push("group/app", "1", img)
	hosts := internet{registry: up, gitlab: newHost(t, server.answer)}
	synctest.Test(t, func(t *testing.T) {
		q := hosts.pullFrom(t, registry, testkit.WithSecret(nil)).of("group/app", img)
		assert.ErrorContains(t, q.refused(t, "1", pullthrough.ErrDenied), gitlab)
		assert.Equal(t, requests{registry: {manifest + "401"}}, q.requests())
		q.forget()

		q = hosts.pullFrom(t, registry, func(p *pullthrough.Proxy) {
			testkit.WithSecret(nil)(p)
			p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
				return pullthrough.Policy{RealmHosts: []string{gitlab}}
			}
		}).of("group/app", img, gitlab)
		want := plainPull(registry, "group/app", manifest+"401", manifest+"200")
		want[gitlab] = []string{"GET /jwt/auth 200"}
		q.pullTwice(t, "1", want)
	})
}

// testQuirkGHES: GitHub Enterprise Server knows no HEAD of a manifest.
func testQuirkGHES(t *testing.T) {
	const ghes = "containers.github.example.com"
	one, two := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	server := tokenServer{issuer: newIssuer(t, nil), path: "/token", fields: []string{"token"}}
	registry := server.registry(t, ghes, ghes, server.answer, func(w http.ResponseWriter, r *http.Request) bool {
		return r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/manifests/") &&
			say(w, http.StatusMethodNotAllowed, "application/json", ociErrors("UNSUPPORTED", "The operation is unsupported."))
	})
	registry.Push("org/app", "1", one)
	synctest.Test(t, func(t *testing.T) {
		q := internet{ghes: registry}.pullFrom(t, ghes, testkit.WithSecret(nil)).of("org/app", one, ghes)
		q.pullTwice(t, "1", requests{ghes: {
			"GET /v2/org/app/manifests/1 401", "GET /token 200", "GET /v2/org/app/manifests/1 200",
			"GET /v2/org/app/blobs/CONFIG 200", "GET /v2/org/app/blobs/LAYER 200",
		}})
		for _, now := range []*pullthroughtest.Image{one, two} {
			time.Sleep(24 * time.Hour) // the tag is due
			registry.Push("org/app", "1", now)
			m, err := q.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("org/app"), Ref: "1"})
			require.NoError(t, err)
			assert.Equal(t, now.Digest, m.Descriptor.Digest)
			assert.NotEqual(t, pullthrough.SourceStale, m.Source)
			assert.Equal(t, requests{ghes: {
				"GET /token 200", "HEAD /v2/org/app/manifests/1 405", "GET /v2/org/app/manifests/1 200",
			}}, q.requests())
			q.checkSecrets(t)
			q.forget()
		}
	})
}
