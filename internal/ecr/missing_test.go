package ecr_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var ecrNotFound = []trait{
	{"M01", "an image that upstream does not have is asked for by every pull", "inferred", "departs: once in 10 seconds, so that a pod that cannot start does not use up the rate limit", testMissingIsRememberedFor10Seconds},
	{"M02", "how long that counts cannot be set", "inferred", "`Policy.NotFoundTTL` sets another time; a negative one asks each time", testNotFoundTTL},
	{"M03", "what is missing is one tag or digest of one repository", "inferred", "the same: others are asked for at once", testMissingIsOneReference},
	{"M04", "what was refused or failed is asked for again", "inferred", "the same: only upstream's 404 is remembered", testFailuresAreNotRemembered},
	{"M05", "what a caller was refused is not missing", "inferred", "the same: a missing permission is not remembered, nor is a repository that could not be made", testRefusedIsNotMissing},
	{"M06", "an image that is pushed here is there at once", "inferred", "the same", testPushedIsThereAtOnce},
	{"M07", "a rule that is made anew asks anew", "inferred", "the same", testNewRuleAsksAnew},
}

func testMissingIsRememberedFor10Seconds(t *testing.T) {
	for name, names := range map[string][]string{"in a repository": {"a"}, "in none": nil} {
		t.Run(name, func(t *testing.T) {
			e, s := startRepoECR(t, names)
			e.push("other", testkit.Image(1))
			first := e.Get(t, testkit.ManifestPath("a", "1"))
			e.asked(t, asks("GET", "1", 404))
			e.push("1", testkit.Image(1))
			for range 3 {
				e.pass(3 * time.Second)
				again := e.Get(t, testkit.ManifestPath("a", "1"))
				assert.Equal(t, 404, again.StatusCode)
				assert.Equal(t, string(first.Content), string(again.Content))
				assert.Equal(t, 404, e.Ask(t, http.MethodHead, testkit.ManifestPath("a", "1")).StatusCode)
			}
			e.asked(t)
			assert.Empty(t, s.creations())
			e.pass(time.Second)
			e.serves(t, "1", testkit.Image(1))
			e.asked(t, asks("GET", "1", 200))
		})
	}
}

func testNotFoundTTL(t *testing.T) {
	e, _ := startRepoECR(t, []string{"a"}, testkit.WithPolicy(pullthrough.Policy{NotFoundTTL: time.Minute}))
	e.refuses(t, "1", 404, "MANIFEST_UNKNOWN", testkit.SayNotFound)
	e.push("1", testkit.Image(1))
	e.pass(59 * time.Second)
	e.refuses(t, "1", 404, "MANIFEST_UNKNOWN", testkit.SayNotFound)
	e.asked(t)
	e.pass(time.Second)
	e.serves(t, "1", testkit.Image(1))

	never, _ := startRepoECR(t, []string{"a"}, testkit.WithPolicy(pullthrough.Policy{NotFoundTTL: -1}))
	for range 3 {
		never.refuses(t, "1", 404, "MANIFEST_UNKNOWN", testkit.SayNotFound)
		never.asked(t, asks("GET", "1", 404))
	}
	never.push("1", testkit.Image(1))
	never.serves(t, "1", testkit.Image(1))
}

func testMissingIsOneReference(t *testing.T) {
	e, _ := startRepoECR(t, []string{"a", "b"})
	img := testkit.Image(1)
	e.refuses(t, "1", 404, "MANIFEST_UNKNOWN", testkit.SayNotFound)
	e.push("1", img)
	e.push("2", img)
	e.push("1", img, "b")
	e.serves(t, "2", img)
	e.serves(t, img.Digest.String(), img)
	testkit.AssertManifest(t, e.Get(t, testkit.ManifestPath("b", "1")), http.MethodGet, img, img.Digest)
	e.asked(t, asks("GET", "2", 200), "GET /v2/b/manifests/1 200")
}

func testFailuresAreNotRemembered(t *testing.T) {
	for _, code := range []int{401, 403, 500, 503} {
		e, _ := startRepoECR(t, []string{"a"}, testkit.WithPolicy(pullthrough.Policy{Retries: -1}))
		e.push("1", testkit.Image(1))
		heal := e.Up.Fault(testkit.Status(code))
		for range 2 {
			assert.NotEqual(t, 200, e.Get(t, testkit.ManifestPath("a", "1")).StatusCode)
			e.asked(t, asks("GET", "1", code))
		}
		heal()
		e.serves(t, "1", testkit.Image(1))
	}
	// A stored tag that upstream has no more is no miss.
	e, stored, _ := stale(t)
	e.Up.Delete("a", "1")
	e.serves(t, "1", stored)
	e.serves(t, "1", stored)
	assert.Equal(t, 200, e.Ask(t, http.MethodHead, testkit.ManifestPath("a", "1")).StatusCode)
}

func testRefusedIsNotMissing(t *testing.T) {
	for _, action := range []pullthrough.Action{pullthrough.ActionImport, pullthrough.ActionCreate} {
		e, _, img := refusingTo(t, "bob", action)
		assert.Equal(t, 404, e.Get(t, testkit.ManifestPath("a", "1"), "X-Caller", "bob").StatusCode)
		e.serves(t, "1", img, "X-Caller", "ann")
	}
	e, s := startRepoECR(t, nil)
	e.push("1", testkit.Image(1))
	s.refuse = errVault
	assert.Equal(t, 404, e.Get(t, testkit.ManifestPath("a", "1")).StatusCode)
	s.refuse = nil
	e.serves(t, "1", testkit.Image(1))

	early, _ := startRepoECR(t, nil)
	early.push("1", testkit.Image(1))
	assert.Equal(t, 404, early.Get(t, testkit.BlobPath("a", testkit.Image(1).Layers[0].Digest)).StatusCode)
	early.serves(t, "1", testkit.Image(1))
	early.servesBlobs(t, testkit.Image(1))
}

func testPushedIsThereAtOnce(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{}, testkit.WithPolicy(pullthrough.Policy{KeepLocal: true}))
	e.refuses(t, "mine", 404, "MANIFEST_UNKNOWN", testkit.SayNotFound)
	mine := e.local(t, "mine")
	e.Up.Reset()
	e.serves(t, "mine", mine)
	e.serves(t, mine.Digest.String(), mine)
	e.asked(t)
}

func testNewRuleAsksAnew(t *testing.T) {
	e, _ := startRepoECR(t, []string{"a"})
	rules := e.rulesThatChange()
	e.refuses(t, "1", 404, "MANIFEST_UNKNOWN", testkit.SayNotFound)
	e.push("1", testkit.Image(1))
	anew := (*rules)[0]
	anew.CreatedAt = e.now()
	*rules = []pullthrough.Rule{anew}
	e.serves(t, "1", testkit.Image(1))
	e.asked(t, asks("GET", "1", 200))

	list, err := e.Rules.Rules(context.Background(), "", "")
	require.NoError(t, err)
	assert.Len(t, list, 1)
}
