package pullthrough_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var ecrNotFound = []trait{
	{"M01", "an image that upstream does not have is asked for by every pull", "inferred", "departs: once in 10 seconds, so that a pod that cannot start does not use up the rate limit", testM01},
	{"M02", "how long that counts cannot be set", "inferred", "`Policy.NotFoundTTL` sets another time; a negative one asks each time", testM02},
	{"M03", "what is missing is one tag or digest of one repository", "inferred", "the same: others are asked for at once", testM03},
	{"M04", "what was refused or failed is asked for again", "inferred", "the same: only upstream's 404 is remembered", testM04},
	{"M05", "what a caller was refused is not missing", "inferred", "the same: a missing permission is not remembered, nor is a repository that could not be made", testM05},
	{"M06", "an image that is pushed here is there at once", "inferred", "the same", testM06},
	{"M07", "a rule that is made anew asks anew", "inferred", "the same", testM07},
}

func testM01(t *testing.T) {
	for name, names := range map[string][]string{"in a repository": {"a"}, "in none": nil} {
		t.Run(name, func(t *testing.T) {
			e, s := startRepoECR(t, names)
			e.push("other", image(1))
			first := e.get(t, manifestPath("a", "1"))
			e.asked(t, asks("GET", "1", 404))
			e.push("1", image(1))
			for range 3 {
				e.pass(3 * time.Second)
				again := e.get(t, manifestPath("a", "1"))
				assert.Equal(t, 404, again.StatusCode)
				assert.Equal(t, string(first.content), string(again.content))
				assert.Equal(t, 404, e.ask(t, http.MethodHead, manifestPath("a", "1")).StatusCode)
			}
			e.asked(t)
			assert.Empty(t, s.creations())
			e.pass(time.Second)
			e.serves(t, "1", image(1))
			e.asked(t, asks("GET", "1", 200))
		})
	}
}

func testM02(t *testing.T) {
	e, _ := startRepoECR(t, []string{"a"}, policy(pullthrough.Policy{NotFoundTTL: time.Minute}))
	e.refuses(t, "1", 404, "MANIFEST_UNKNOWN", sayNotFound)
	e.push("1", image(1))
	e.pass(59 * time.Second)
	e.refuses(t, "1", 404, "MANIFEST_UNKNOWN", sayNotFound)
	e.asked(t)
	e.pass(time.Second)
	e.serves(t, "1", image(1))

	never, _ := startRepoECR(t, []string{"a"}, policy(pullthrough.Policy{NotFoundTTL: -1}))
	for range 3 {
		never.refuses(t, "1", 404, "MANIFEST_UNKNOWN", sayNotFound)
		never.asked(t, asks("GET", "1", 404))
	}
	never.push("1", image(1))
	never.serves(t, "1", image(1))
}

func testM03(t *testing.T) {
	e, _ := startRepoECR(t, []string{"a", "b"})
	img := image(1)
	e.refuses(t, "1", 404, "MANIFEST_UNKNOWN", sayNotFound)
	e.push("1", img)
	e.push("2", img)
	e.push("1", img, "b")
	e.serves(t, "2", img)
	e.serves(t, img.Digest.String(), img)
	assertManifest(t, e.get(t, manifestPath("b", "1")), http.MethodGet, img, img.Digest)
	e.asked(t, asks("GET", "2", 200), "GET /v2/b/manifests/1 200")
}

func testM04(t *testing.T) {
	for _, code := range []int{401, 403, 500, 503} {
		e, _ := startRepoECR(t, []string{"a"}, policy(pullthrough.Policy{Retries: -1}))
		e.push("1", image(1))
		heal := e.up.Fault(status(code))
		for range 2 {
			assert.NotEqual(t, 200, e.get(t, manifestPath("a", "1")).StatusCode)
			e.asked(t, asks("GET", "1", code))
		}
		heal()
		e.serves(t, "1", image(1))
	}
	// A stored tag that upstream has no more is no miss.
	e, stored, _ := stale(t)
	e.up.Delete("a", "1")
	e.serves(t, "1", stored)
	e.serves(t, "1", stored)
	assert.Equal(t, 200, e.ask(t, http.MethodHead, manifestPath("a", "1")).StatusCode)
}

func testM05(t *testing.T) {
	for _, action := range []pullthrough.Action{pullthrough.ActionImport, pullthrough.ActionCreate} {
		e, _, img := refusingTo(t, "bob", action)
		assert.Equal(t, 404, e.get(t, manifestPath("a", "1"), "X-Caller", "bob").StatusCode)
		e.serves(t, "1", img, "X-Caller", "ann")
	}
	e, s := startRepoECR(t, nil)
	e.push("1", image(1))
	s.refuse = errVault
	assert.Equal(t, 404, e.get(t, manifestPath("a", "1")).StatusCode)
	s.refuse = nil
	e.serves(t, "1", image(1))

	early, _ := startRepoECR(t, nil)
	early.push("1", image(1))
	assert.Equal(t, 404, early.get(t, blobPath("a", image(1).Layers[0].Digest)).StatusCode)
	early.serves(t, "1", image(1))
	early.servesBlobs(t, image(1))
}

func testM06(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{}, policy(pullthrough.Policy{KeepLocal: true}))
	e.refuses(t, "mine", 404, "MANIFEST_UNKNOWN", sayNotFound)
	mine := e.local(t, "mine")
	e.up.Reset()
	e.serves(t, "mine", mine)
	e.serves(t, mine.Digest.String(), mine)
	e.asked(t)
}

func testM07(t *testing.T) {
	e, _ := startRepoECR(t, []string{"a"})
	rules := e.rulesThatChange()
	e.refuses(t, "1", 404, "MANIFEST_UNKNOWN", sayNotFound)
	e.push("1", image(1))
	anew := (*rules)[0]
	anew.CreatedAt = e.now()
	*rules = []pullthrough.Rule{anew}
	e.serves(t, "1", image(1))
	e.asked(t, asks("GET", "1", 200))

	list, err := e.Rules.Rules(context.Background(), "", "")
	require.NoError(t, err)
	assert.Len(t, list, 1)
}
