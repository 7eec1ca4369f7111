package pullthrough_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
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
	ecrRegistry = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
	ecrBlobs    = "prod-us-east-1-starport-layer-bucket.s3.us-east-1.amazonaws.com"
	ecrTokenTTL = 12 * time.Hour
)

// awsTokens gives out passwords for ECR that are good for 12 hours, each of its
// own: canary-secret-1, canary-secret-2.
type awsTokens struct {
	given   atomic.Int32
	expires atomic.Pointer[time.Time] // of the last one
	says    bool                      // when it expires
	wrong   bool                      // none of them is good
}

func (a *awsTokens) change(p *pullthrough.Proxy) {
	p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
		c := pullthrough.Credential{Username: "AWS", AccessToken: fmt.Sprint(testkit.Canary, "-", a.given.Add(1))}
		expires := time.Now().Add(ecrTokenTTL)
		a.expires.Store(&expires)
		if a.says {
			c.ExpiresAt = expires
		}
		return c, nil
	}
}

// check lets nobody through whose password is not the last one, or has expired.
func (a *awsTokens) check(w http.ResponseWriter, r *http.Request) bool {
	user, password, ok := r.BasicAuth()
	if !ok {
		return false
	}
	last := fmt.Sprint(testkit.Canary, "-", a.given.Load())
	if user != "AWS" || password != last || a.wrong || !time.Now().Before(*a.expires.Load()) {
		return say(w, http.StatusForbidden, "application/json", ociErrors("DENIED", "Your authorization token has expired. Reauthenticate and try again."))
	}
	r.SetBasicAuth("me", testkit.Canary)
	return false
}

// newECR has app:1 and app:2.
func newECR(t *testing.T, tokens *awsTokens, one, two *pullthroughtest.Image) internet {
	t.Helper()
	registry := pullthroughtest.New(t, pullthroughtest.Config{TLS: true, Auth: pullthroughtest.Basic, Users: testkit.Users, Handler: tokens.check})
	registry.Fault(pullthroughtest.Fault{Match: "* 401", Header: http.Header{
		"Www-Authenticate": {`Basic realm="https://` + ecrRegistry + `/",service="ecr.amazonaws.com"`},
	}})
	registry.Push("app", "1", one)
	registry.Push("app", "2", two)
	redirectBlobs(registry, http.StatusTemporaryRedirect, "https://"+ecrBlobs)
	return internet{ecrRegistry: registry, ecrBlobs: newHost(t, bucket(one, two))}
}

// ecrPull is a cold pull of a tag, whose manifest was answered so one after the other.
func ecrPull(tag string, manifest ...string) requests {
	var lines []string
	for _, status := range manifest {
		lines = append(lines, "GET /v2/app/manifests/"+tag+" "+status)
	}
	return requests{
		ecrRegistry: append(lines, "GET /v2/app/blobs/CONFIG 307", "GET /v2/app/blobs/LAYER 307"),
		ecrBlobs:    {"GET /v2/app/blobs/CONFIG 200", "GET /v2/app/blobs/LAYER 200"},
	}
}

func testQuirkECR(t *testing.T) {
	one, two := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	for name, tc := range map[string]struct {
		says   bool
		second requests
	}{
		"an expired password is answered 403": {false, ecrPull("2", "403", "200")},
		"one that says when it expires":       {true, ecrPull("2", "200")},
	} {
		t.Run(name, func(t *testing.T) {
			tokens := &awsTokens{says: tc.says}
			ecr := newECR(t, tokens, one, two)
			synctest.Test(t, func(t *testing.T) {
				q := ecr.pullFrom(t, ecrRegistry, tokens.change).of("app", one, ecrRegistry)
				q.pullTwice(t, "1", ecrPull("1", "401", "200"))
				assert.EqualValues(t, 1, tokens.given.Load())

				time.Sleep(ecrTokenTTL)
				q.of("app", two, ecrRegistry).pullTwice(t, "2", tc.second)
				assert.EqualValues(t, 2, tokens.given.Load())
			})
		})
	}
	t.Run("a new password is answered 403 too", func(t *testing.T) {
		tokens := &awsTokens{wrong: true}
		ecr := newECR(t, tokens, one, two)
		synctest.Test(t, func(t *testing.T) {
			q := ecr.pullFrom(t, ecrRegistry, tokens.change).of("app", one, ecrRegistry)
			e := q.refused(t, "1", pullthrough.ErrDenied)
			assert.Equal(t, 403, e.Status)
			assert.Equal(t, requests{ecrRegistry: ecrPull("1", "401", "403")[ecrRegistry][:2]}, q.requests())
			assert.EqualValues(t, 1, tokens.given.Load(), "a second guess could lock the account")
		})
	})
}

const (
	publicRegistry = "public.ecr.aws"
	publicBlobs    = "d2glxqk2uabbnd.cloudfront.net"
	publicImage    = "docker/library/alpine"
)

// newECRPublic has docker/library/alpine:1 and 2. Its token answers say nothing
// of a lifetime, and a HEAD of a blob is always 401.
func newECRPublic(t *testing.T, one, two *pullthroughtest.Image) (public internet, revoke func()) {
	t.Helper()
	server := tokenServer{
		issuer: pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Scope: "aws"}),
		path:   "/token/",
		fields: []string{"token"},
	}
	registry := pullthroughtest.New(t, pullthroughtest.Config{
		TLS: true, Auth: pullthroughtest.Bearer, Issuer: server.issuer, Scope: "aws",
		Realm: "https://" + publicRegistry + server.path, Service: publicRegistry,
		Handler: firstOf(server.answer, func(w http.ResponseWriter, r *http.Request) bool {
			return r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/blobs/") &&
				say(w, http.StatusUnauthorized, "application/json", ociErrors("UNAUTHORIZED", "Not Authorized"))
		}, refusing(server.issuer, http.StatusBadRequest, "DENIED", "Your Authorization Token is invalid.")),
	})
	registry.Push(publicImage, "1", one)
	registry.Push(publicImage, "2", two)
	redirectBlobs(registry, http.StatusTemporaryRedirect, "https://"+publicBlobs)
	return internet{publicRegistry: registry, publicBlobs: newHost(t, bucket(one, two))}, server.issuer.RevokeTokens
}

// publicPull is a cold pull that began like this.
func publicPull(begin ...string) requests {
	return requests{
		publicRegistry: append(begin, "GET /v2/"+publicImage+"/blobs/CONFIG 307", "GET /v2/"+publicImage+"/blobs/LAYER 307"),
		publicBlobs:    {"GET /v2/" + publicImage + "/blobs/CONFIG 200", "GET /v2/" + publicImage + "/blobs/LAYER 200"},
	}
}

func testQuirkECRPublic(t *testing.T) {
	one, two := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	const manifest = "GET /v2/" + publicImage + "/manifests/"
	public, revoke := newECRPublic(t, one, two)
	synctest.Test(t, func(t *testing.T) {
		q := public.pullFrom(t, publicRegistry, nil).of(publicImage, one)
		q.pullTwice(t, "1", publicPull(manifest+"1 401", "GET /token/ 200", manifest+"1 200"))

		revoke()
		q.of(publicImage, two).pullTwice(t, "2", publicPull(manifest+"2 400", "GET /token/ 200", manifest+"2 200"))
	})
	t.Run("what the token server is asked for", func(t *testing.T) {
		public, _ := newECRPublic(t, one, two)
		synctest.Test(t, func(t *testing.T) {
			q := public.pullFrom(t, publicRegistry, nil).of(publicImage, one)
			q.Pull(t, publicImage, "1", one)
			query := tokenQuery(t, public[publicRegistry], "/token/")
			assert.Equal(t, []string{publicRegistry}, query["service"])
			assert.Equal(t, "aws repository:"+publicImage+":pull", join(query["scope"]), "the challenged one first")
		})
	})
	t.Run("400 to a new token is final", func(t *testing.T) {
		public, _ := newECRPublic(t, one, two)
		public[publicRegistry].Push("docker/library/other", "1", one)
		public[publicRegistry].Fault(pullthroughtest.Fault{Match: "GET /v2/* 200", Status: 400})
		synctest.Test(t, func(t *testing.T) {
			q := public.pullFrom(t, publicRegistry, nil).of(publicImage, one)
			assert.Equal(t, 400, q.refused(t, "1", pullthrough.ErrUnavailable).Status)
			assert.Equal(t, requests{publicRegistry: {manifest + "1 401", "GET /token/ 200", manifest + "1 400"}}, q.requests())

			q.forget()
			q.of("docker/library/other", one).refused(t, "1", pullthrough.ErrUnavailable)
			assert.Equal(t, requests{publicRegistry: {"GET /token/ 200", "GET /v2/docker/library/other/manifests/1 400"}}, q.requests())
		})
	})
	t.Run("the size of a blob is known without HEAD", func(t *testing.T) {
		public, _ := newECRPublic(t, one, two)
		synctest.Test(t, func(t *testing.T) {
			q := public.pullFrom(t, publicRegistry, nil).of(publicImage, one)
			layer := one.Layers[0]
			b, err := q.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo(publicImage), Ref: layer.Digest.String(), Head: true})
			require.NoError(t, err)
			assert.Equal(t, layer.Size, b.Descriptor.Size)
			assert.NoError(t, b.Body.Close())
			q.checkSecrets(t)
			assert.Equal(t, 1, public[publicRegistry].Count("GET /v2/*/blobs/* 307"))
			assert.Zero(t, public[publicRegistry].Count("HEAD *"))
		})
	})
}

// testQuirkGallery is the website, which many take for the registry.
func testQuirkGallery(t *testing.T) {
	const gallery = "gallery.ecr.aws"
	page := "<!doctype html><html><head><title>Amazon ECR Public Gallery</title></head><body>"
	page += strings.Repeat(" ", 1477-len(page))
	site := internet{gallery: newHost(t, func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(page)))
		return say(w, http.StatusOK, "text/html", page)
	})}
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	synctest.Test(t, func(t *testing.T) {
		q := site.pullFrom(t, gallery, nil).of(publicImage, img)
		e := q.refused(t, "1", pullthrough.ErrUnavailable)
		assert.Equal(t, gallery, e.Host)
		assert.ErrorContains(t, e, "text/html", "whoever wrote the rule learns what is wrong")
		q.refused(t, img.Digest.String(), pullthrough.ErrDigest)
		for _, head := range []bool{true, false} {
			r := pullthrough.Request{Repo: testkit.Repo(publicImage), Ref: img.Layers[0].Digest.String(), Head: head}
			b, err := q.Blob(t.Context(), r)
			if !assert.Error(t, err, "HEAD: %v", head) {
				assert.NoError(t, b.Body.Close())
			}
			_, stored := q.Mem.Blob(t.Context(), r.Repo, img.Layers[0].Digest)
			assert.Error(t, stored)
		}
		assert.LessOrEqual(t, len(site[gallery].Log()), 6, "a page is no reason to try again, but once")
	})
}
