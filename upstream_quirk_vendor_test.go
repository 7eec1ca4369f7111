package pullthrough_test

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// plainPull is a cold pull of name:1 from one host only, which began like this.
func plainPull(host, name string, begin ...string) requests {
	return requests{host: append(begin, "GET /v2/"+name+"/blobs/CONFIG 200", "GET /v2/"+name+"/blobs/LAYER 200")}
}

// missing pulls a tag that is not there: 404 whatever the error's code is.
func (q *quirk) missing(t *testing.T, message string) {
	t.Helper()
	q.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/manifests/* 404", Status: 404, Body: []byte(ociErrors("UNKNOWN", message))})
	q.of(q.name, q.img) // a token is there already
	e := q.refused(t, "gone", pullthrough.ErrNotFound)
	status, code, said := pullthrough.OCI(e)
	assert.Equal(t, 404, status)
	assert.Equal(t, "MANIFEST_UNKNOWN", code)
	assert.NotContains(t, said, message)
	assert.Len(t, q.Up.Log(), 1)
}

// testQuirkQuay: public repositories need no token, private ones do, and the
// load balancer says 502 now and then.
func testQuirkQuay(t *testing.T) {
	const registry, cdn = "quay.io", "cdn03.quay.io"
	one, two := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}), pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2})
	public := pullthroughtest.New(t, pullthroughtest.Config{})
	public.Push("prometheus/busybox", "latest", one)
	server := tokenServer{issuer: newIssuer(t, nil), path: "/v2/auth", fields: []string{"token"}}
	up := server.registry(t, registry, registry, server.answer, func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/v2/prometheus/") {
			return false
		}
		public.ServeHTTP(w, r)
		return true
	})
	up.Push("org/app", "1", two)
	page := pullthroughtest.Fault{Status: 502, Body: []byte("<html>502 Bad Gateway</html>"), Header: http.Header{"Content-Type": {"text/html"}}}
	page.Match, page.Times = "GET /v2/prometheus/*/manifests/* 200", 2
	up.Fault(page)
	page.Match, page.Times = "GET /v2/prometheus/*/blobs/* 200", 1
	up.Fault(page)
	redirectBlobs(up, http.StatusFound, "https://"+cdn)
	quay := internet{registry: up, cdn: newHost(t, bucket(one, two))}
	synctest.Test(t, func(t *testing.T) {
		q := quay.pullFrom(t, registry, testkit.WithSecret(nil)).of("prometheus/busybox", one)
		const busybox = "GET /v2/prometheus/busybox/"
		q.pullTwice(t, "latest", requests{
			registry: {
				busybox + "manifests/latest 502", busybox + "manifests/latest 502", busybox + "manifests/latest 200",
				busybox + "blobs/CONFIG 502", busybox + "blobs/CONFIG 302", busybox + "blobs/LAYER 302",
			},
			cdn: {busybox + "blobs/CONFIG 200", busybox + "blobs/LAYER 200"},
		})
		q.of("org/app", two, registry).pullTwice(t, "1", requests{
			registry: {
				"GET /v2/org/app/manifests/1 401", "GET /v2/auth 200", "GET /v2/org/app/manifests/1 200",
				"GET /v2/org/app/blobs/CONFIG 302", "GET /v2/org/app/blobs/LAYER 302",
			},
			cdn: {"GET /v2/org/app/blobs/CONFIG 200", "GET /v2/org/app/blobs/LAYER 200"},
		})
	})
}

// testQuirkHarbor: HEAD of a blob that its own proxy has not cached yet is 404.
func testQuirkHarbor(t *testing.T) {
	const harbor, manifest = "demo.goharbor.io", "GET /v2/library/app/manifests/1 "
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 1})
	server := tokenServer{issuer: newIssuer(t, func(c *pullthroughtest.Config) { c.TokenTTL = 1800e9 }), path: "/service/token"}
	up := server.registry(t, harbor, "harbor-registry", server.answer, func(w http.ResponseWriter, r *http.Request) bool {
		return r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/blobs/") && say(w, http.StatusNotFound, "application/json", "")
	})
	up.Push("library/app", "1", img)
	other := up.PushBlob("library/app", []byte("not pulled yet"))
	synctest.Test(t, func(t *testing.T) {
		q := internet{harbor: up}.pullFrom(t, harbor, testkit.WithSecret(nil)).of("library/app", img, harbor)
		q.pullTwice(t, "1", plainPull(harbor, "library/app", manifest+"401", "GET /service/token 200", manifest+"200"))

		b, err := q.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("library/app"), Ref: other.String(), Head: true})
		require.NoError(t, err)
		assert.EqualValues(t, len("not pulled yet"), b.Descriptor.Size)
		assert.NoError(t, b.Body.Close())
		assert.Equal(t, 1, up.Count("GET /v2/library/app/blobs/*"))
		q.forget()
		q.missing(t, "artifact library/app:gone not found")
	})
}

// testQuirkJFrog: its token server answers every POST with 401.
func testQuirkJFrog(t *testing.T) {
	const jfrog, manifest = "example.jfrog.io", "GET /v2/docker-local/app/manifests/1 "
	const path = "/artifactory/api/docker/docker-local/v2/token"
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	newJFrog := func(t *testing.T) internet {
		server := tokenServer{issuer: newIssuer(t, nil), path: path, post: http.StatusUnauthorized}
		up := server.registry(t, jfrog, jfrog, server.answer)
		up.Push("docker-local/app", "1", img)
		return internet{jfrog: up}
	}
	t.Run("with a password", func(t *testing.T) {
		hosts := newJFrog(t)
		synctest.Test(t, func(t *testing.T) {
			q := hosts.pullFrom(t, jfrog, testkit.WithSecret(nil)).of("docker-local/app", img, jfrog)
			q.pullTwice(t, "1", plainPull(jfrog, "docker-local/app", manifest+"401", "GET "+path+" 200", manifest+"200"))
		})
	})
	t.Run("with an identity token and a password", func(t *testing.T) {
		hosts := newJFrog(t)
		synctest.Test(t, func(t *testing.T) {
			q := hosts.pullFrom(t, jfrog, withBoth).of("docker-local/app", img, jfrog)
			q.pullTwice(t, "1", plainPull(jfrog, "docker-local/app", manifest+"401", "POST "+path+" 401", "GET "+path+" 200", manifest+"200"))
		})
	})
	t.Run("with an identity token alone", func(t *testing.T) {
		hosts := newJFrog(t)
		synctest.Test(t, func(t *testing.T) {
			q := hosts.pullFrom(t, jfrog, withCredential(pullthrough.Credential{IdentityToken: testkit.Canary})).of("docker-local/app", img, jfrog)
			assert.Equal(t, 401, q.refused(t, "1", pullthrough.ErrDenied).Status)
			assert.Equal(t, requests{jfrog: {manifest + "401", "POST " + path + " 401"}}, q.requests())
		})
	})
}

// testQuirkRedHat: manifests are text, and layers are said to be encoded though
// it is their content that is gzip.
func testQuirkRedHat(t *testing.T) {
	const registry, cdn = "registry.redhat.io", "cdn01.quay.io"
	const path = "/auth/realms/rhcc/protocol/redhat-docker-v2/auth"
	for name, docker := range map[string]bool{"Docker's media types": true, "OCI's media types": false} {
		t.Run(name, func(t *testing.T) {
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Docker: docker})
			server := tokenServer{issuer: newIssuer(t, nil), path: path}
			up := server.registry(t, registry, "docker-registry", server.answer)
			up.Push("ubi9/ubi", "1", img)
			up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/manifests/* 200", Header: http.Header{"Content-Type": {"text/plain; charset=utf-8"}}})
			redirectBlobs(up, http.StatusFound, "https://"+cdn)
			store := newHost(t, bucket(img))
			store.Fault(pullthroughtest.Fault{Header: http.Header{"Content-Encoding": {"gzip"}}})
			synctest.Test(t, func(t *testing.T) {
				q := internet{registry: up, cdn: store}.pullFrom(t, registry, testkit.WithSecret(nil)).of("ubi9/ubi", img, registry)
				q.pullTwice(t, "1", requests{
					registry: {
						"GET /v2/ubi9/ubi/manifests/1 401", "GET " + path + " 200", "GET /v2/ubi9/ubi/manifests/1 200",
						"GET /v2/ubi9/ubi/blobs/CONFIG 302", "GET /v2/ubi9/ubi/blobs/LAYER 302",
					},
					cdn: {"GET /v2/ubi9/ubi/blobs/CONFIG 200", "GET /v2/ubi9/ubi/blobs/LAYER 200"},
				})
				q.missing(t, "Not Found")
			})
		})
	}
}

func testQuirkNexus(t *testing.T) {
	const nexus, manifest = "nexus.example.com", "GET /v2/app/manifests/1 "
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	up := pullthroughtest.New(t, pullthroughtest.Config{TLS: true, Auth: pullthroughtest.Basic, Users: testkit.Users})
	up.Fault(pullthroughtest.Fault{Match: "* 401", Header: http.Header{"Www-Authenticate": {`BASIC realm="Sonatype Nexus Repository Manager"`}}})
	up.Push("app", "1", img)
	synctest.Test(t, func(t *testing.T) {
		q := internet{nexus: up}.pullFrom(t, nexus, testkit.WithSecret(nil)).of("app", img, nexus)
		q.pullTwice(t, "1", plainPull(nexus, "app", manifest+"401", manifest+"200"))
	})
}
