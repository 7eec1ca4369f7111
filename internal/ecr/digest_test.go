package ecr_test

import (
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var ecrDigests = []trait{
	{"D01", "an image can be pulled by digest before it was pulled by tag", "documented, `digest-first-pull`", "the same; users report a 404, which is D02", testDigestBeforeItsTag},
	{"D02", "such a pull is answered `Requested image not found`, also as `name:tag@digest`, since clients send the digest alone", "measured, `digest-first-pull`", "with `Policy.DigestAfterTag` the same, and upstream is not asked", testDigestAfterTag},
	{"D03", "what was pulled by digest has no tag", "inferred", "the same", testDigestBringsNoTag},
	{"D04", "the children of a cached index can be pulled by digest", "inferred", "the same, also with `Policy.DigestAfterTag`; a child that is not here yet is fetched", testChildrenByDigest},
	{"D05", "they still can when the registry has been restarted", "inferred", "the same, also with `Policy.DigestAfterTag`", testChildrenByDigestAfterARestart},
	{"D06", "a HEAD of a tag looks it up upstream, and the GET by digest after it succeeds", "inferred", "the same: together they cost one GET upstream", testHeadThenGetByDigest},
	{"D07", "a HEAD makes the repository and starts the import", "inferred", "the same", testHeadStartsTheImport},
	{"D08", "a HEAD of a tag that is due checks it", "inferred", "the same", testHeadChecksATagThatIsDue},
	{"D09", "a HEAD is answered with length, type, `Docker-Content-Digest`, `Docker-Distribution-Api-Version` and an empty `Sizes`", "measured", "the same but for `Sizes`, which is left out", testHeadersOfHead},
	{"D10", "a GET is answered with `Docker-Content-Digest`", "measured, `get-digest-header`", "it is sent; users saw none in 2022", testGetNamesTheDigest},
	{"D11", "a HEAD does not count as a pull", "chosen, `head-counts-pull`", "events and `Authorize` have `Request.Head`: hosts that count pulls leave these out", testHeadIsNoPull},
	{"D12", "a HEAD of what is not there is answered like the GET, without a body", "inferred", "the same", testHeadOfWhatIsMissing},
}

var digestAfterTag = testkit.WithPolicy(pullthrough.Policy{DigestAfterTag: true, NotFoundTTL: -1})

func testDigestBeforeItsTag(t *testing.T) {
	e, s := startRepoECR(t, nil)
	img := testkit.Image(1)
	e.push("1", img)
	e.serves(t, img.Digest.String(), img)
	e.asked(t, asks("GET", img.Digest.String(), 200))
	e.serves(t, img.Digest.String(), img)
	e.servesBlobs(t, img)
	assert.Zero(t, e.Up.Count("* /v2/a/manifests/*"))
	assert.Len(t, s.creations(), 1)
}

func testDigestAfterTag(t *testing.T) {
	e, _ := startRepoECR(t, []string{"a"}, digestAfterTag)
	img := testkit.Image(1)
	e.push("1", img)
	for range 2 {
		e.refuses(t, img.Digest.String(), 404, "MANIFEST_UNKNOWN", testkit.SayNotFound)
		assert.Equal(t, 404, e.Ask(t, http.MethodHead, testkit.ManifestPath("a", img.Digest.String())).StatusCode)
	}
	e.asked(t)
	e.serves(t, "1", img)
	e.serves(t, img.Digest.String(), img)
	e.asked(t, asks("GET", "1", 200))

	other := testkit.Image(2) // the digest that the tag has now is not the one that was pinned
	e.push("1", other)
	e.refuses(t, other.Digest.String(), 404, "MANIFEST_UNKNOWN", testkit.SayNotFound)
	e.asked(t)
}

func testDigestBringsNoTag(t *testing.T) {
	e, _ := startRepoECR(t, nil)
	img := testkit.Image(1)
	e.push("1", img)
	e.serves(t, img.Digest.String(), img)
	assert.Empty(t, e.tagsOf(t, "a"))
	e.Up.Reset()
	e.serves(t, "1", img)
	assert.NotEmpty(t, e.Up.Log(), "the tag was not known")
	assert.Equal(t, []string{"1"}, e.tagsOf(t, "a"))
}

func testChildrenByDigest(t *testing.T) {
	list, children := index()
	whole := startECR(t, pullthroughtest.Config{}, fills(pullthrough.FillBackground), digestAfterTag)
	whole.push("1", list)
	whole.serves(t, "1", list)
	whole.goesOffline(t, children...)

	for name, change := range map[string]func(*pullthrough.Proxy){"import": testkit.WithPolicy(pullthrough.Policy{}), "notfound": digestAfterTag} {
		t.Run(name, func(t *testing.T) {
			e := startECR(t, pullthroughtest.Config{}, change)
			e.push("1", list)
			e.serves(t, "1", list)
			e.Up.Reset()
			for range 2 {
				e.serves(t, children[0].Digest.String(), children[0])
			}
			e.servesBlobs(t, children[0])
			assert.Equal(t, 1, e.Up.Count("* /v2/a/manifests/*"))
		})
	}
}

func testChildrenByDigestAfterARestart(t *testing.T) {
	for name, change := range map[string]func(*pullthrough.Proxy){"import": testkit.WithPolicy(pullthrough.Policy{}), "notfound": digestAfterTag} {
		t.Run(name, func(t *testing.T) {
			store := memstore.New()
			list, children := index()
			e := startECR(t, pullthroughtest.Config{}, in(store), change)
			e.push("1", list)
			e.serves(t, "1", list)

			again := startECR(t, pullthroughtest.Config{}, in(store), change)
			again.push("1", list)
			again.serves(t, "1", list)
			again.asked(t)
			again.serves(t, children[1].Digest.String(), children[1])
			again.asked(t, asks("GET", children[1].Digest.String(), 200))
		})
	}
}

func testHeadThenGetByDigest(t *testing.T) {
	for _, img := range []*pullthroughtest.Image{testkit.Image(1), pullthroughtest.NewIndex(testkit.Image(1))} {
		for _, change := range []func(*pullthrough.Proxy){testkit.WithPolicy(pullthrough.Policy{}), digestAfterTag} {
			e, _ := startRepoECR(t, nil, change)
			e.push("1", img)
			testkit.AssertManifest(t, e.Ask(t, http.MethodHead, testkit.ManifestPath("a", "1")), http.MethodHead, img, img.Digest)
			e.Settled(t)
			e.serves(t, img.Digest.String(), img)
			e.asked(t, asks("GET", "1", 200))
		}
	}
}

func testHeadStartsTheImport(t *testing.T) {
	e, s := startRepoECR(t, nil, fills(pullthrough.FillBackground))
	list, children := index()
	e.push("1", list)
	assert.Equal(t, 200, e.Ask(t, http.MethodHead, testkit.ManifestPath("a", "1"), "X-Caller", "ann").StatusCode)
	e.Settled(t)
	require.Len(t, s.creations(), 1)
	created := s.creations()[0].r
	assert.True(t, created.Head)
	assert.Equal(t, "ann", created.Caller)
	assert.Equal(t, []string{"1"}, e.tagsOf(t, "a"))
	e.goesOffline(t, append(children, list)...)
}

func testHeadChecksATagThatIsDue(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	one, two := testkit.Image(1), testkit.Image(2)
	e.push("1", one)
	e.serves(t, "1", one)
	e.push("1", two)
	e.pass(day)
	testkit.AssertManifest(t, e.Ask(t, http.MethodHead, testkit.ManifestPath("a", "1")), http.MethodHead, two, two.Digest)
	e.serves(t, "1", two)
	e.serves(t, two.Digest.String(), two)
	e.asked(t, asks("HEAD", "1", 200), asks("GET", two.Digest.String(), 200))
}

func testHeadersOfHead(t *testing.T) {
	for _, img := range []*pullthroughtest.Image{testkit.Image(1), pullthroughtest.NewIndex(testkit.Image(1))} {
		e := startECR(t, pullthroughtest.Config{})
		e.push("1", img)
		for _, ref := range []string{"1", "1", img.Digest.String()} { // a miss and hits
			r := e.Ask(t, http.MethodHead, testkit.ManifestPath("a", ref))
			testkit.AssertManifest(t, r, http.MethodHead, img, img.Digest)
			assert.Equal(t, []string{"registry/2.0"}, r.Header.Values("Docker-Distribution-Api-Version"))
			assert.NotContains(t, r.Header, "Sizes")
		}
	}
}

func testGetNamesTheDigest(t *testing.T) {
	img := testkit.Image(1)
	e := startECR(t, pullthroughtest.Config{})
	e.push("1", img)
	e.Up.Fault(pullthroughtest.Fault{Header: http.Header{"Docker-Content-Digest": nil}})
	for _, ref := range []string{"1", "1", img.Digest.String()} {
		assert.Equal(t, []string{img.Digest.String()}, e.Get(t, testkit.ManifestPath("a", ref)).Header.Values("Docker-Content-Digest"))
	}
}

func testHeadIsNoPull(t *testing.T) {
	d := &testkit.Door{}
	e := startECR(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Authorize = d.Authorize })
	img := testkit.Image(1)
	e.push("1", img)
	paths := []string{testkit.ManifestPath("a", "1"), testkit.ManifestPath("a", img.Digest.String()), testkit.BlobPath("a", img.Layers[0].Digest)}
	for _, method := range []string{http.MethodHead, http.MethodGet, http.MethodHead} {
		for _, path := range paths {
			require.Equal(t, 200, e.Ask(t, method, path).StatusCode)
			e.Settled(t)
		}
	}
	for _, kind := range []string{pullthrough.EventManifest, pullthrough.EventBlob} {
		heads, gets := 0, 0
		for _, event := range e.told.Of(kind) {
			if event.Request.Head {
				heads++
			} else {
				gets++
			}
		}
		assert.Equal(t, 2*gets, heads, "%s", kind)
		assert.Positive(t, gets)
	}
	requests, _ := d.Requests()
	assert.True(t, requests[0].Head)
}

func testHeadOfWhatIsMissing(t *testing.T) {
	e, _ := startRepoECR(t, []string{"a"})
	e.push("1", testkit.Image(1))
	absent := digest.FromString("absent")
	for _, path := range []string{testkit.ManifestPath("a", "2"), testkit.ManifestPath("a", absent.String()), testkit.BlobPath("a", absent), testkit.ManifestPath("b", "1"), testkit.ManifestPath("a", "-")} {
		get, head := e.Get(t, path), e.Ask(t, http.MethodHead, path)
		assert.Equal(t, get.StatusCode, head.StatusCode, path)
		assert.Equal(t, get.Header.Get("Content-Type"), head.Header.Get("Content-Type"))
		assert.Empty(t, head.Content)
	}
}
