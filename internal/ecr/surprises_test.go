package ecr_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// ecrSurprises have the numbers of the list that users' reports make up.
var ecrSurprises = []trait{
	{"W01", "a node without `BatchImportUpstreamImage` or `CreateRepository` reads that the image, or the repository, does not exist; the read-only managed policy is not enough", "measured", "the same, if `Proxy.Authorize` says so", testNodeWithoutPermissions},
	{"W02", "without `library/`, or with one too many, Docker Hub's images are denied, not missing", "measured", "the same: 403 with the sentence about credentials", testWrongLibraryIsDenied},
	{"W03", "a pin by digest fails until somebody has pulled the tag, also as `name:tag@digest`", "measured, `digest-first-pull`", "with `Policy.DigestAfterTag` the same; else such pulls work, as the documentation says", testPinByDigest},
	{"W04", "the first pull hangs in a private subnet, which upstream's storage cannot be reached from", "measured, `blob-before-import`", "departs: clients speak with this registry only", testPrivateSubnet},
	{"W05", "`latest` is up to a day old, and nothing refreshes it", "measured", "the same; `Policy.TagTTL` can be shorter", testLatestIsADayOld},
	{"W06", "an upstream that is down, or has deleted the tag, goes unnoticed: old images are served", "documented", "the same; events tell (`SourceStale`, `Event.Err`)", testDeadUpstreamGoesUnnoticed},
	{"W07", "Flux, Renovate and Helm see no new tags, since lists are local", "measured", "the same", testListsAreLocal},
	{"W08", "a tag in an immutable repository stays old for ever", "measured, `immutable-refresh`", "the same", testImmutableTagStaysForEver},
	{"W10", "another account that may import cannot pull what it has imported: the new repository has no policy", "measured", "the same, if `Proxy.Authorize` says so: the pull is denied before and after the import", testImporterThatMayNotPull},
	{"W12", "only AWS's upstreams are taken, in AWS's spelling", "measured", "departs: any registry with an http or https URL, its port and path included", testAnyUpstreamIsTaken},
	{"W13", "a mirror of an image lacks its signatures, until somebody lists them", "measured", "the same", testMirrorLacksSignatures},
	{"W15", "one pull stores every architecture, and costs it", "documented, `fill-mode`", "with `FillBackground` the same; by default only what is pulled", testEveryArchitectureIsStored},
	{"W17", "when upstream's token expires nobody notices before a new tag is pulled", "documented", "the same: old tags go on, new ones are denied", testExpiredTokenGoesUnnoticed},
}

func testNodeWithoutPermissions(t *testing.T) {
	// AmazonEC2ContainerRegistryReadOnly, and PullOnly beside it.
	for name, c := range map[string]struct {
		lacks                []pullthrough.Action
		inOld, inNew         string
		inOldCode, inNewCode int
	}{
		"ReadOnly": {[]pullthrough.Action{pullthrough.ActionImport, pullthrough.ActionCreate}, "MANIFEST_UNKNOWN", "NAME_UNKNOWN", 404, 404},
		"PullOnly": {[]pullthrough.Action{pullthrough.ActionCreate}, "", "NAME_UNKNOWN", 200, 404},
		"both":     {nil, "", "", 200, 200},
	} {
		t.Run(name, func(t *testing.T) {
			e, _, _ := refusingTo(t, "node", c.lacks...)
			e.push("old", testkit.Image(2))
			e.serves(t, "old", testkit.Image(2), "X-Caller", "admin")
			e.serves(t, "old", testkit.Image(2), "X-Caller", "node")
			e.push("1", testkit.Image(1), "b")
			for path, want := range map[string]struct {
				status int
				code   string
			}{testkit.ManifestPath("a", "1"): {c.inOldCode, c.inOld}, testkit.ManifestPath("b", "1"): {c.inNewCode, c.inNew}} {
				r := e.Get(t, path, "X-Caller", "node")
				if want.status == 200 {
					assert.Equal(t, 200, r.StatusCode, "%s", r.Content)
					continue
				}
				testkit.AssertOCI(t, r, want.status, want.code)
			}
		})
	}
}

// hub is an upstream that says of a repository that is not there what Docker Hub
// says: 401, whatever the token.
func hub() pullthroughtest.Config {
	return pullthroughtest.Config{
		Auth:  pullthroughtest.Bearer,
		Allow: func(_, repo string) bool { return repo == "library/alpine" || repo == "grafana/grafana" },
	}
}

func testWrongLibraryIsDenied(t *testing.T) {
	e := startECR(t, hub())
	img := testkit.Image(1)
	e.push("1", img, "library/alpine")
	e.push("1", img, "grafana/grafana")
	for _, name := range []string{"library/alpine", "grafana/grafana"} {
		testkit.AssertManifest(t, e.Get(t, testkit.ManifestPath(name, "1")), http.MethodGet, img, img.Digest)
	}
	for _, name := range []string{"alpine", "library/grafana/grafana", "library/grafana"} {
		e.refusesAt(t, testkit.ManifestPath(name, "1"), 403, "DENIED", testkit.SayDenied)
		assert.Zero(t, e.Up.Count("GET /v2/"+name+"/* 200"))
	}
}

func testPinByDigest(t *testing.T) {
	img := testkit.Image(1)
	for name, change := range map[string]func(*pullthrough.Proxy){"import": testkit.WithPolicy(pullthrough.Policy{}), "notfound": digestAfterTag} {
		t.Run(name, func(t *testing.T) {
			e, _ := startRepoECR(t, []string{"a"}, change)
			e.push("1", img)
			pin := testkit.ManifestPath("a", img.Digest.String()) // of a:1@sha256:… too
			if name == "import" {
				e.serves(t, img.Digest.String(), img)
				return
			}
			e.refusesAt(t, pin, 404, "MANIFEST_UNKNOWN", testkit.SayNotFound)
			e.asked(t)
			assert.Equal(t, 200, e.Ask(t, http.MethodHead, testkit.ManifestPath("a", "1")).StatusCode)
			e.Settled(t)
			e.serves(t, img.Digest.String(), img)
			e.asked(t, asks("GET", "1", 200))
		})
	}
}

func testPrivateSubnet(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	cdn := pullthroughtest.New(t, pullthroughtest.Config{})
	img := testkit.Image(1)
	e.push("1", img)
	cdn.Push("a", "", img)
	e.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Redirect: cdn.URL + "{path}"})
	e.serves(t, "1", img)
	for _, b := range img.Blobs() {
		r := e.Get(t, testkit.BlobPath("a", b.Digest))
		require.Equal(t, 200, r.StatusCode)
		assert.NotContains(t, r.Header, "Location")
		testkit.AssertSame(t, testkit.BlobContent(t, b), r.Content)
	}
	assert.Equal(t, len(img.Blobs()), cdn.Count("GET * 200"))
}

func testLatestIsADayOld(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	one, two := testkit.Image(1), testkit.Image(2)
	e.push("latest", one)
	e.serves(t, "latest", one)
	e.push("latest", two)
	for range 23 {
		e.pass(day / 24)
		e.serves(t, "latest", one, "Cache-Control", "no-cache", "Pragma", "no-cache")
	}
	e.asked(t)
	e.pass(day / 24)
	e.serves(t, "latest", two)
}

func testDeadUpstreamGoesUnnoticed(t *testing.T) {
	e, stored, _ := stale(t)
	e.Up.Delete("a", "")
	e.serves(t, "1", stored)
	assert.Equal(t, pullthrough.SourceStale, e.told.Sources()[len(e.told.Sources())-1])
	fetches := e.told.Of(pullthrough.EventFetch)
	assert.ErrorIs(t, fetches[len(fetches)-1].Err, pullthrough.ErrNotFound)
	e.Up.Close()
	e.pass(1000 * day)
	e.serves(t, "1", stored)
}

func testListsAreLocal(t *testing.T) {
	e, _ := startRepoECR(t, nil)
	e.push("1.0.0", testkit.Image(1))
	e.serves(t, "1.0.0", testkit.Image(1))
	for _, tag := range []string{"1.0.1", "1.1.0", "2.0.0"} {
		e.push(tag, testkit.Image(2))
	}
	e.pass(1000 * day)
	assert.Equal(t, []string{"1.0.0"}, e.tagsOf(t, "a"))
	e.asked(t)
	e.serves(t, "2.0.0", testkit.Image(2)) // who knows the name gets it
}

func testImmutableTagStaysForEver(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{}, in(&immutableStore{Store: memstore.New()}))
	e.push("latest", testkit.Image(1))
	e.serves(t, "latest", testkit.Image(1))
	e.push("latest", testkit.Image(2))
	for range 10 {
		e.pass(day)
		e.serves(t, "latest", testkit.Image(1))
	}
}

func testImporterThatMayNotPull(t *testing.T) {
	e, g, img := refusingTo(t, "arn:aws:iam::210987654321:role/node", pullthrough.ActionPull)
	for range 2 {
		r := e.Get(t, testkit.ManifestPath("a", "1"), "X-Caller", g.caller)
		assert.Equal(t, g.say(pullthrough.ActionPull), testkit.AssertOCI(t, r, 403, "DENIED"))
		e.serves(t, "1", img, "X-Caller", "ann")
	}
	for _, b := range img.Blobs() {
		testkit.AssertOCI(t, e.Get(t, testkit.BlobPath("a", b.Digest), "X-Caller", g.caller), 403, "DENIED")
	}
}

func testAnyUpstreamIsTaken(t *testing.T) {
	harbor := pullthroughtest.New(t, pullthroughtest.Config{})
	below := testkit.Serve(t, http.StripPrefix("/api/docker", harbor))
	e := startECR(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Rules = pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: below.URL + "/api/docker/"}}
	})
	harbor.Push("a", "1", testkit.Image(1))
	e.serves(t, "1", testkit.Image(1))
	assert.Equal(t, []string{asks("GET", "1", 200)}, harbor.Log())
	for _, upstream := range []string{"gcr.io", "nvcr.io", "mcr.microsoft.com", "harbor.example.com:8443", "https://Public.ECR.aws", "public.ecr.aws/docker"} {
		assert.NoError(t, pullthrough.Rule{Prefix: testkit.Prefix, UpstreamURL: upstream}.Check(), upstream)
	}
}

func testMirrorLacksSignatures(t *testing.T) {
	e, _ := startRepoECR(t, nil, fills(pullthrough.FillBackground))
	subject, signature, sbom := e.signed()
	e.serves(t, "1", subject)
	for _, path := range []string{testkit.ManifestPath("a", signature.Digest.String()), referrersPath("a", subject.Digest)} {
		assert.Zero(t, e.Up.Count("GET "+strings.Replace(path, "/"+testkit.Prefix, "", 1)+"*"), "not by the pull")
	}
	e.lists(t, subject.Digest, signature, sbom)
	e.serves(t, signature.Digest.String(), signature)
	e.goesOffline(t, subject, signature)
}

func testEveryArchitectureIsStored(t *testing.T) {
	list, children := index()
	for name, mode := range map[string]pullthrough.FillMode{"whole": pullthrough.FillBackground, "part": pullthrough.FillLazy} {
		t.Run(name, func(t *testing.T) {
			e, s := startRepoECR(t, nil, fills(mode))
			e.push("1", list)
			e.serves(t, "1", list)
			e.serves(t, children[0].Digest.String(), children[0])
			e.servesBlobs(t, children[0])
			e.Settled(t)
			want := map[string]int{"whole": 1 + 2 + 5, "part": 1 + 1 + 3}[name]
			stored := map[digest.Digest]bool{}
			for _, d := range s.puts() {
				stored[d] = true
			}
			assert.Len(t, stored, want)
			assert.Equal(t, want, e.Up.Count("* 200"))
		})
	}
}

func testExpiredTokenGoesUnnoticed(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	img := testkit.Image(1)
	e.push("1", img)
	e.push("2", img)
	e.serves(t, "1", img)
	e.servesBlobs(t, img)
	e.Settled(t)
	e.Up.Fault(pullthroughtest.Fault{Match: "GET /token*", Status: 401})
	e.pass(30 * day)
	e.serves(t, "1", img)
	e.serves(t, img.Digest.String(), img)
	e.servesBlobs(t, img)
	e.refuses(t, "2", 403, "DENIED", testkit.SayDenied)
}
