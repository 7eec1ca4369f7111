package pullthrough_test

import (
	"net/http"
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
	hubRegistry = "registry-1.docker.io"
	hubTokens   = "auth.docker.io"
	hubBlobs    = "production.cloudflare.docker.com"
	hubImage    = "library/alpine"
)

// newDockerHub has library/alpine:3.20. Its token answers are the older ones,
// which have no access_token.
func newDockerHub(t *testing.T, img *pullthroughtest.Image) internet {
	t.Helper()
	server := tokenServer{
		issuer: newIssuer(t, func(c *pullthroughtest.Config) {
			c.Allow = func(_, repo string) bool { return repo == hubImage }
		}),
		path:   "/token",
		fields: []string{"token", "expires_in", "issued_at"},
	}
	registry := server.registry(t, hubTokens, "registry.docker.io")
	registry.Push(hubImage, "3.20", img)
	redirectBlobs(registry, http.StatusTemporaryRedirect, "https://"+hubBlobs+"/registry-v2")
	return internet{hubRegistry: registry, hubTokens: newHost(t, server.answer), hubBlobs: newHost(t, bucket(img))}
}

// hubPull is a cold pull from Docker Hub, whose manifest was answered so
// before it was answered 200.
func hubPull(before ...string) requests {
	const manifest = "GET /v2/" + hubImage + "/manifests/3.20 "
	var manifests []string
	for _, status := range append(before, "200") {
		manifests = append(manifests, manifest+status)
	}
	return requests{
		hubRegistry: append(manifests, "GET /v2/"+hubImage+"/blobs/CONFIG 307", "GET /v2/"+hubImage+"/blobs/LAYER 307"),
		hubTokens:   {"GET /token 200"},
		hubBlobs: {
			"GET /registry-v2/v2/" + hubImage + "/blobs/CONFIG 200",
			"GET /registry-v2/v2/" + hubImage + "/blobs/LAYER 200",
		},
	}
}

func testQuirkDockerHub(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Docker: true})
	for _, registry := range []string{hubRegistry, "docker.io"} {
		t.Run(registry, func(t *testing.T) {
			hub := newDockerHub(t, img)
			synctest.Test(t, func(t *testing.T) {
				q := hub.pullFrom(t, registry, testkit.WithSecret(nil)).of(hubImage, img, hubTokens)
				q.Up = hub[hubRegistry]
				q.pullTwice(t, "3.20", hubPull("401"))
			})
		})
	}
	t.Run("what the token server is asked for", func(t *testing.T) {
		hub := newDockerHub(t, img)
		synctest.Test(t, func(t *testing.T) {
			q := hub.pullFrom(t, hubRegistry, testkit.WithSecret(nil)).of(hubImage, img, hubTokens)
			q.Pull(t, hubImage, "3.20", img)
			query := tokenQuery(t, hub[hubTokens], "/token")
			assert.Equal(t, []string{"registry.docker.io"}, query["service"])
			assert.Equal(t, []string{"repository:library/alpine:pull"}, query["scope"])
			assert.Empty(t, query["offline_token"])
		})
	})
	t.Run("its token server belongs to no other registry", func(t *testing.T) {
		hub := newDockerHub(t, img)
		const other = "registry.example.com"
		hub[other] = hub[hubRegistry]
		synctest.Test(t, func(t *testing.T) {
			q := hub.pullFrom(t, other, testkit.WithSecret(nil))
			delete(q.hosts, hubRegistry)
			assert.ErrorContains(t, q.of(hubImage, img).refused(t, "3.20", pullthrough.ErrDenied), hubTokens)
			assert.Equal(t, requests{other: {"GET /v2/" + hubImage + "/manifests/3.20 401"}}, q.requests())
		})
	})
	t.Run("a name of one part is asked for as it is", func(t *testing.T) {
		hub := newDockerHub(t, img)
		synctest.Test(t, func(t *testing.T) {
			q := hub.pullFrom(t, hubRegistry, testkit.WithSecret(nil)).of("alpine", img, hubTokens)
			q.refused(t, "3.20", pullthrough.ErrDenied)
			assert.Positive(t, hub[hubRegistry].Count("GET /v2/alpine/manifests/3.20 401"))
			assert.LessOrEqual(t, len(hub[hubRegistry].Log()), 3)
			assert.Zero(t, hub[hubRegistry].Count("* /v2/library/*"))
		})
	})
}

// Docker Hub limits how many manifests one may GET in six hours, and, apart from
// that, how many requests of any kind one may send in a minute.
func testQuirkDockerHub429(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Docker: true})
	limits := http.Header{"Content-Type": {"text/plain"}, "Ratelimit-Limit": {"100;w=21600"}, "Ratelimit-Remaining": {"0;w=21600"}}
	abuse := http.Header{"Content-Type": {"text/plain"}, "Retry-After": {"60"}}
	const text = "Too Many Requests (HAP429).\n"
	t.Run("passes", func(t *testing.T) {
		hub := newDockerHub(t, img)
		hub[hubRegistry].Fault(pullthroughtest.Fault{Match: "GET * 200", Times: 2, Status: 429, Header: limits, Body: []byte(text)})
		synctest.Test(t, func(t *testing.T) {
			q := hub.pullFrom(t, hubRegistry, testkit.WithSecret(nil)).of(hubImage, img, hubTokens)
			q.pullTwice(t, "3.20", hubPull("401", "429", "429"))
		})
	})
	t.Run("does not pass", func(t *testing.T) {
		hub := newDockerHub(t, img)
		hub[hubRegistry].Fault(pullthroughtest.Fault{Match: "GET * 200", Status: 429, Header: limits, Body: []byte(text)})
		synctest.Test(t, func(t *testing.T) {
			q := hub.pullFrom(t, hubRegistry, testkit.WithSecret(nil)).of(hubImage, img, hubTokens)
			e := q.refused(t, "3.20", pullthrough.ErrRateLimited)
			_, _, message := pullthrough.OCI(e)
			assert.NotContains(t, message, "HAP429", "clients do not read what upstream wrote")
			assert.Equal(t, 4, hub[hubRegistry].Count("GET * 429"), "one try and three more")
		})
	})
	t.Run("says for how long", func(t *testing.T) {
		hub := newDockerHub(t, img)
		hub[hubRegistry].Fault(pullthroughtest.Fault{Match: "GET * 200", Times: 1, Status: 429, Header: abuse, Body: []byte(text)})
		synctest.Test(t, func(t *testing.T) {
			q := hub.pullFrom(t, hubRegistry, testkit.WithSecret(nil)).of(hubImage, img, hubTokens)
			start := time.Now()
			e := q.refused(t, "3.20", pullthrough.ErrRateLimited)
			assert.Zero(t, time.Since(start), "a minute is too long to hold a client")
			assert.Equal(t, time.Minute, e.RetryAfter)
			status, code, message := pullthrough.OCI(e)
			assert.Equal(t, 429, status)
			assert.Equal(t, "TOOMANYREQUESTS", code)
			assert.NotContains(t, message, "HAP429")
			assert.Equal(t, requests{hubRegistry: hubPull("401", "429")[hubRegistry][:2], hubTokens: {"GET /token 200"}}, q.requests())
			time.Sleep(time.Minute)
			q.Pull(t, hubImage, "3.20", img)
		})
	})
	t.Run("answers the check of a stored tag", testQuirkDockerHubCheck429)
}

// testQuirkDockerHubCheck429: HEAD is what the limit on pulls does not count.
func testQuirkDockerHubCheck429(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Docker: true})
	hub := newDockerHub(t, img)
	synctest.Test(t, func(t *testing.T) {
		q := hub.pullFrom(t, hubRegistry, func(p *pullthrough.Proxy) { testkit.WithSecret(nil)(p); testkit.EveryPull(p) }).of(hubImage, img, hubTokens)
		q.Pull(t, hubImage, "3.20", img)
		q.Settled(t)
		q.forget()
		hub[hubRegistry].Fault(pullthroughtest.Fault{Match: "* 200", Status: 429, Header: http.Header{"Retry-After": {"60"}}})
		m, err := q.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo(hubImage), Ref: "3.20"})
		require.NoError(t, err)
		assert.Equal(t, pullthrough.SourceStale, m.Source)
		assert.Equal(t, requests{hubRegistry: {"HEAD /v2/" + hubImage + "/manifests/3.20 429"}}, q.requests())
	})
}
