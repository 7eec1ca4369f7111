package ecr_test

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// Tests of tags whose check fails are in stale_test.go.
var ecrFreshness = []trait{
	{"F01", "a tag counts as fresh for 24 hours from its last successful check", "documented, `window-basis`", "the same; `Policy.TagTTL` sets another time, per rule. Pulls within it ask nobody and do not prolong it", testFreshFor24Hours},
	{"F02", "tags are checked when they are pulled, never in the background", "documented", "the same", testChecksOnlyWhenPulled},
	{"F03", "a check that finds the tag where it was starts the next 24 hours", "documented", "the same; it costs one HEAD", testCheckStartsANewDay},
	{"F04", "a tag that has moved upstream moves here", "documented", "HEAD tells that it moved, and the new image is fetched by digest", testMovedTagMoves},
	{"F05", "there is no forced refresh but to delete the tag", "documented", "the same; `pullthrough.EveryPull` has upstream asked each time, a negative `TagTTL` never", testForcedRefresh},
	{"F06", "many clients pull a tag that is due", "inferred", "they share one check", testHerdSharesOneCheck},
	{"F07", "a digest is never checked", "inferred", "the same, whatever the policy", testDigestsAreNeverChecked},
	{"F08", "an update of the rule leaves the tags as fresh as they were", "chosen, `update-resets-window`", "the same", testUpdatedRuleKeepsFreshness},
	{"F09", "the rule's secret is read again", "chosen, `secret-cache`", "`Proxy.Credentials` is asked whenever a new upstream token is needed", testSecretIsReadAgain},
	{"F10", "immutable tags never move", "documented, `immutable-refresh`", "a tag's first import is allowed; a Store that answers `ErrImmutable` keeps its image, which is served, and is asked about again after 24 hours", testImmutableTagsStay},
	{"F11", "exclusion filters make single tags mutable", "documented, `immutable-refresh`", "the Store decides tag by tag", testExcludedTagsMove},
	{"F12", "a check replaces a tag that was pushed locally", "inferred, `keep-local`", "the same; with `Policy.KeepLocal` such a tag is never checked", testCheckReplacesALocalTag},
	{"F13", "a local tag that upstream does not have stays", "inferred, `keep-local`", "the same, and upstream is asked again after 24 hours", testLocalTagThatUpstreamLacksStays},
	{"F20", "what is cached is served when the check fails, for any reason, for ever", "documented", "the same: 200 with the old image; `Policy.RefuseStale` refuses on 401, 403 and 404", testStaleIsServedWhateverFails},
	{"F21", "a failed check does not count: the next pull asks again", "chosen, `failed-check-window`", "the same, when the pause is over", testFailedCheckDoesNotCount},
	{"F22", "every pull asks an upstream that is down", "chosen, `failed-check-pause`", "departs: after a failed check the rule's checks pause for 15 seconds, then 30, doubling to 5 minutes, so that pulls do not wait each time", testChecksPauseAfterAFailure},
	{"F23", "an image that is not cached is asked for whatever happened before", "chosen, `failed-check-pause`", "the same: a pause is for checks only. One that refuses us pauses one repository, one that is down all of the rule's", testPauseIsForChecksOnly},
	{"F24", "a pull waits for a slow check", "chosen, `failed-check-pause`", "departs: for 2 seconds (`Policy.CheckTimeout`), then the old image is served while the check goes on", testSlowCheckIsNotWaitedFor},
	{"F25", "what is cached outlives its rule", "documented", "the same, without checks; what is not cached is `MANIFEST_UNKNOWN` in a repository that is there", testCachedOutlivesItsRule},
	{"F26", "what is cached outlives the rule's secret", "documented", "the same; new tags are denied", testCachedOutlivesItsSecret},
}

const day = 24 * time.Hour

func testFreshFor24Hours(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	img := testkit.Image(1)
	e.push("1", img)
	e.serves(t, "1", img)
	e.asked(t, asks("GET", "1", 200))
	for range 2 {
		e.pass(day/2 - time.Second)
		e.serves(t, "1", img)
		assert.Equal(t, 200, e.Ask(t, http.MethodHead, testkit.ManifestPath("a", "1")).StatusCode)
		e.asked(t)
	}
	e.pass(2 * time.Second)
	e.serves(t, "1", img)
	e.asked(t, asks("HEAD", "1", 200))

	short := startECR(t, pullthroughtest.Config{}, testkit.WithPolicy(pullthrough.Policy{TagTTL: time.Minute}))
	short.push("1", img)
	short.serves(t, "1", img)
	short.pass(59 * time.Second)
	short.serves(t, "1", img)
	short.asked(t, asks("GET", "1", 200))
	short.pass(time.Second)
	short.serves(t, "1", img)
	short.asked(t, asks("HEAD", "1", 200))
}

func testChecksOnlyWhenPulled(t *testing.T) {
	testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
		img := testkit.Image(1)
		w.Up.Push("a", "1", img)
		w.Pull(t, "a", "1", img)
		w.Up.Reset()
		time.Sleep(30 * day)
		synctest.Wait()
		assert.Empty(t, w.Up.Log())
		w.Pull(t, "a", "1", img)
		assert.Equal(t, []string{asks("HEAD", "1", 200)}, w.Up.Log())
	})
}

func testCheckStartsANewDay(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	img := testkit.Image(1)
	e.push("1", img)
	e.serves(t, "1", img)
	e.Up.Reset()
	for range 3 {
		e.pass(day)
		e.serves(t, "1", img)
		e.asked(t, asks("HEAD", "1", 200))
		e.pass(day - time.Second)
		e.serves(t, "1", img)
		e.asked(t)
	}
	assert.Contains(t, e.told.Sources(), pullthrough.SourceRevalidated)
}

func testMovedTagMoves(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	one, two := testkit.Image(1), testkit.Image(2)
	e.push("1", one)
	e.serves(t, "1", one)
	e.push("1", two)
	e.serves(t, "1", one) // not yet
	e.asked(t)
	e.pass(day)
	e.serves(t, "1", two)
	e.asked(t, asks("HEAD", "1", 200), asks("GET", two.Digest.String(), 200))
	e.pass(day - time.Second)
	e.serves(t, "1", two)
	e.asked(t)
}

func testForcedRefresh(t *testing.T) {
	one, two := testkit.Image(1), testkit.Image(2)
	e, s := startRepoECR(t, nil)
	e.push("1", one)
	e.serves(t, "1", one)
	e.push("1", two)
	s.remove("1")
	e.serves(t, "1", two)
	e.asked(t, asks("GET", "1", 200))

	every := startECR(t, pullthroughtest.Config{}, testkit.WithPolicy(pullthrough.Policy{TagTTL: pullthrough.EveryPull}))
	every.push("1", one)
	every.serves(t, "1", one)
	every.serves(t, "1", one)
	every.asked(t, asks("GET", "1", 200), asks("HEAD", "1", 200))
	every.push("1", two)
	every.serves(t, "1", two)
	every.asked(t, asks("HEAD", "1", 200), asks("GET", two.Digest.String(), 200))

	never := startECR(t, pullthroughtest.Config{}, testkit.WithPolicy(pullthrough.Policy{TagTTL: -1}))
	never.push("1", one)
	never.serves(t, "1", one)
	never.push("1", two)
	never.pass(1000 * day)
	never.serves(t, "1", one)
	never.asked(t)
}

func testHerdSharesOneCheck(t *testing.T) {
	var came atomic.Int32
	e := startECR(t, pullthroughtest.Config{}, testkit.WithPolicy(pullthrough.Policy{CheckTimeout: -1}), func(p *pullthrough.Proxy) {
		p.Authorize = func(_ context.Context, action pullthrough.Action, _ pullthrough.Request) error {
			if action == pullthrough.ActionPull {
				came.Add(1)
			}
			return nil
		}
	})
	img := testkit.Image(1)
	e.push("1", img)
	e.serves(t, "1", img)
	e.pass(day)
	e.Up.Reset()
	came.Store(0)
	g := testkit.NewGate(t)
	e.Up.Fault(pullthroughtest.Fault{Match: "HEAD *", Stall: g.C})
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() { e.brings(t, testkit.ManifestPath("a", "1"), "", img.Content) })
	}
	require.Eventually(t, func() bool { return came.Load() == 32 }, 10*time.Second, time.Millisecond)
	g.Open()
	wg.Wait()
	e.asked(t, asks("HEAD", "1", 200))
}

func testDigestsAreNeverChecked(t *testing.T) {
	for name, pol := range map[string]pullthrough.Policy{"24 hours": {}, "every pull": {TagTTL: pullthrough.EveryPull}} {
		t.Run(name, func(t *testing.T) {
			e := startECR(t, pullthroughtest.Config{}, testkit.WithPolicy(pol))
			img := testkit.Image(1)
			e.push("1", img)
			e.serves(t, "1", img)
			e.servesBlobs(t, img)
			e.Settled(t)
			e.Up.Delete("a", "")
			e.Up.Reset()
			e.pass(1000 * day)
			e.serves(t, img.Digest.String(), img)
			e.servesBlobs(t, img)
			e.asked(t)
		})
	}
}

func testUpdatedRuleKeepsFreshness(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	rules := e.rulesThatChange()
	img := testkit.Image(1)
	e.push("1", img)
	e.serves(t, "1", img)
	e.Up.Reset()
	e.pass(day - time.Second)
	updated := (*rules)[0]
	updated.UpdatedAt, updated.CredentialARN = e.now(), "arn:aws:secretsmanager:eu-west-1:123456789012:secret:ecr-pullthroughcache/new"
	*rules = []pullthrough.Rule{updated}
	e.serves(t, "1", img)
	e.asked(t)
	e.pass(time.Second)
	e.serves(t, "1", img)
	e.asked(t, asks("HEAD", "1", 200))
}

func testSecretIsReadAgain(t *testing.T) {
	const user, old, young = "robot", "canary-old", "canary-young"
	password, reads := old, 0
	var mu sync.Mutex
	users := pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: map[string]string{user: old}}
	e := startECR(t, users, func(p *pullthrough.Proxy) {
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			mu.Lock()
			defer mu.Unlock()
			reads++
			return pullthrough.Credential{Username: user, AccessToken: password}, nil
		}
	})
	img := testkit.Image(1)
	e.push("1", img)
	e.serves(t, "1", img)
	e.servesBlobs(t, img)
	mu.Lock()
	assert.Equal(t, 1, reads, "one token, one look at the secret")
	password = young
	mu.Unlock()
	e.pass(day) // the token has expired
	e.Up.Reset()
	e.serves(t, "1", img) // upstream does not know the new password, and the old image is served
	assert.True(t, e.Up.Saw(young))
	assert.False(t, e.Up.Saw(old))
}

func testImmutableTagsStay(t *testing.T) {
	store := &immutableStore{Store: memstore.New()}
	e := startECR(t, pullthroughtest.Config{}, in(store))
	one, two := testkit.Image(1), testkit.Image(2)
	e.push("1", one)
	e.serves(t, "1", one)
	e.push("1", two)
	e.Up.Reset()
	for range 3 {
		e.pass(day)
		for range 3 {
			e.serves(t, "1", one)
		}
		e.Settled(t)
		assert.Equal(t, 1, e.Up.Count("HEAD *"), "one check a day")
		assert.LessOrEqual(t, e.Up.Count("*"), 2)
		e.Up.Reset()
	}
	e.push("2", two)
	e.serves(t, "2", two)
}

// excluding is an immutableStore in which one tag may move.
type excluding struct {
	immutableStore
	mutable string
}

func (s *excluding) PutManifest(ctx context.Context, r pullthrough.Repo, m *pullthrough.Manifest) error {
	if m.Tag == s.mutable {
		return s.Store.PutManifest(ctx, r, m)
	}
	return s.immutableStore.PutManifest(ctx, r, m)
}

func testExcludedTagsMove(t *testing.T) {
	store := &excluding{immutableStore{Store: memstore.New()}, "latest"}
	e := startECR(t, pullthroughtest.Config{}, in(store))
	one, two := testkit.Image(1), testkit.Image(2)
	for _, tag := range []string{"latest", "1"} {
		e.push(tag, one)
		e.serves(t, tag, one)
		e.push(tag, two)
	}
	e.pass(day)
	e.serves(t, "latest", two)
	e.serves(t, "1", one)
	e.serves(t, two.Digest.String(), two)
	assert.Equal(t, 2, e.Up.Count("HEAD *"))
}

func testCheckReplacesALocalTag(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	mine, theirs := e.local(t, "1"), testkit.Image(1)
	e.push("1", theirs)
	e.serves(t, "1", theirs)
	e.asked(t, asks("HEAD", "1", 200), asks("GET", theirs.Digest.String(), 200))
	e.serves(t, mine.Digest.String(), mine) // it stays, untagged
	e.asked(t)

	keep := startECR(t, pullthroughtest.Config{}, testkit.WithPolicy(pullthrough.Policy{KeepLocal: true, TagTTL: pullthrough.EveryPull}))
	keep.local(t, "1")
	keep.push("1", theirs)
	keep.pass(1000 * day)
	keep.serves(t, "1", mine)
	keep.asked(t)
	keep.push("2", theirs)
	keep.serves(t, "2", theirs)
	keep.serves(t, "2", theirs)
	keep.asked(t, asks("GET", "2", 200), asks("HEAD", "2", 200)) // what came from upstream is checked
}

func testLocalTagThatUpstreamLacksStays(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	mine := e.local(t, "mine")
	e.push("other", testkit.Image(1))
	for range 3 {
		e.serves(t, "mine", mine)
		assert.Positive(t, e.Up.Count("* 404"))
		e.Settled(t)
		e.Up.Reset()
		e.pass(day - time.Second)
		e.serves(t, "mine", mine)
		e.asked(t)
		e.pass(time.Second)
	}
	assert.NotContains(t, e.told.Sources(), pullthrough.SourceStale)
}

var errVault = errors.New("the vault is closed")
