package upstream_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// scenarios are whole pulls from upstreams that behave well, badly or oddly.
// Their tests are in the files that are named after what they are about.
var scenarios = []row{
	{"S01", "wants a bearer token", "one challenge and one token serve the whole pull", testWholePullTakesOneChallengeAndOneToken},
	{"S02", "compresses manifests for clients that let it", "it is told not to (`Accept-Encoding: identity`), and the manifest is kept byte for byte", testManifestsAreAskedForUncompressed},
	{"S03", "sends a layer that is a gzip file as `Content-Encoding: gzip`", "nothing is unpacked: the bytes that have the digest are kept", testGzippedLayersStayAsTheyAre},
	{"S04", "redirects to another port of its host", "the redirect is followed without password, token and cookies", testRedirectToAnotherPortGoesWithoutSecrets},
	{"S05", "redirects to another host", "the redirect is followed without password, token and cookies", testRedirectToAnotherHostGoesWithoutSecrets},
	{"S06", "refuses a token twice and then gives one", "two pulls are denied, the next one succeeds: a refusal is not remembered", testRefusedTokenRequestIsForgotten},
	{"S07", "no longer takes a token that has not expired (401)", "one new token is fetched, and the pull succeeds", testRefusedTokenIsFetchedAnew},
	{"S08", "takes no token at all (401)", "the pull is denied after one new token at most", testNoTokenIsTakenAtAll},
	{"S09", "answers an expired token with 400 or 403", "one new token is fetched; one that is refused when new is not replaced", testExpiredTokenAnsweredOtherwiseThan401},
	{"S10a", "cuts a blob off at 45 %", "the rest is asked for, and no byte is fetched twice", testCutBlobResumes},
	{"S10b", "resumes a blob ten bytes too early", "the download fails: wrong bytes are never joined to right ones", testResumeTooEarlyFails},
	{"S10c", "resumes a blob with all of it (200)", "what is there already is skipped, and the pull succeeds", testResumeAnsweredWithAllSkips},
	{"S10d", "refuses to resume a blob (416)", "the blob is asked for once more from its start; if that fails too, so does the pull", testRefusedResumeBeginsAnew},
	{"S10e", "resumes a blob that has grown meanwhile", "the download fails: it is another object now", testResumeOfAnotherObjectFails},
	{"S11", "answers 429 with `Retry-After: 2`", "the request is sent again after 2 seconds and a little, not everywhere at the same instant", testRateLimitIsWaitedFor},
	{"S12", "answers 503 with `Retry-After: 2`", "the request is sent again after 2 seconds or more", testOverloadIsWaitedFor},
	{"S13", "answers 429 with a date in `Retry-After`", "the request is sent again after that date", testRetryAfterAsADate},
	{"S14", "gives a token in an answer of 10 MB", "the answer is refused after 128 KiB at most", testHugeTokenAnswers},
	{"S15", "names a token server on another host", "it is asked only if the rule allows that host; if not, it is sent nothing at all", testTokenServerElsewhereNeedsTheRulesLeave},
	{"S16", "sends another manifest than the digest names", "the pull fails, and no byte of it reaches a client or the store", testWrongManifestIsRefused},
	{"S17", "sends another blob of the same length", "the answer ends before it is complete, and nothing is stored", testWrongBlobBreaksBeforeItsEnd},
	{"S18", "sends a blob without end", "reading stops at the size in the manifest, or at the rule's limit where nobody knows the size", testBlobWithoutEndIsLimited},
	{"S19", "wants a token for three pulls in a row", "they share one token", testPullsInARowShareOneToken},
	{"S20", "is asked for twenty images at once", "one challenge and one token serve all of them", testTwentyPullsShareOneToken},
	{"S21", "redirects in circles", "the pull fails after at most 10 requests and does not start again", testRedirectsOnAndOn},
	{"S23", "falls silent after 10 KB of a blob", "the rest is asked for after 30 seconds; when nothing comes again and again, the pull fails", testSilentBlobIsAskedForAgain},
	{"S25", "does not name the digest of a tag", "the content's own digest counts, after one request", testTagWithoutDigestHeader},
	{"S26", "names neither digest nor length of a tag", "the content's own digest counts, after one request", testTagWithoutDigestAndLength},
	{"S27", "names a wrong digest for a tag", "the content's own digest counts and the event says so; a rule may refuse the pull instead", testTagWithWrongDigestHeader},
	{"S28", "announces a manifest of 64 MB", "it is refused unread", testManifestOf1GB},
	{"S29", "sends a manifest of 64 MB and does not say so", "it is refused after 4 MiB", testManifestOf1GB},
	{"S30", "adds a charset to a manifest's type", "the type is kept without it", testCharsetIsTakenOffTheType},
	{"S31", "sends manifests as octet-stream, plain text, JSON or as nothing", "the type in the manifest counts", testTypeOfTheManifestItselfCounts},
	{"S32", "sends a document that is a manifest and an index", "it is refused (CVE-2021-41190)", testManifestThatReadersUnderstandInTwoWays},
	{"S33", "calls an index a manifest, or the other way round", "it is refused", testWrongKindOfManifestIsRefused},
	{"S34", "is slow to give a token, and the first client leaves", "the others go on waiting for that token and get their images", testFirstOfTheWaitingLeaves},
	{"S35", "gives tokens for 5 minutes that it says are 10 minutes old", "each is used for its 5 minutes", testOldTokensLiveTheirWholeLife},
	{"S36", "sends a login page instead of a token", "the error names the token server, the type and the beginning of the page; clients see none of it", testLoginPageInPlaceOfAToken},
	{"S37", "answers everything with a web page", "pulls fail and are not tried again and again: it is no registry", testWebPageInPlaceOfARegistry},
}

// refusesManifest pulls the manifest ref of the repository a, which must fail as
// kind after one request and leave nothing in the Store. It returns the error.
func refusesManifest(t *testing.T, w *testkit.World, ref string, kind error) *pullthrough.Error {
	t.Helper()
	w.Up.Reset()
	e := leavesNothing(t, w, ref, kind)
	assert.Equal(t, 1, w.Up.Count(""))
	return e
}

// leavesNothing pulls the manifest ref of the repository a, which must fail as
// kind and leave nothing in the Store. It returns the error.
func leavesNothing(t *testing.T, w *testkit.World, ref string, kind error) *pullthrough.Error {
	t.Helper()
	m, err := w.Tagged(t, ref)
	assert.Nil(t, m)
	require.ErrorIs(t, err, kind)
	e, ok := errors.AsType[*pullthrough.Error](err)
	require.True(t, ok)
	_, stored := w.Stored(t, ref)
	assert.Error(t, stored, "nothing of it is kept")
	return e
}

// failsBlob reads the blob of the repository a as a client does. It must break
// off before its end, be right as far as it came, and not be stored.
func failsBlob(t *testing.T, w *testkit.World, layer *pullthroughtest.Blob, kind error) error {
	t.Helper()
	got, err := readBlob(t, w, layer.Digest)
	assert.ErrorIs(t, err, kind)
	assert.Less(t, int64(len(got)), layer.Size, "a client must see that it is not complete")
	assert.True(t, bytes.HasPrefix(testkit.BlobContent(t, layer), got), "what a client got is right")
	w.Settled(t)
	_, stored := w.Mem.Blob(t.Context(), testkit.Repo("a"), layer.Digest)
	assert.Error(t, stored, "nothing of it is kept")
	return err
}

// readBlob returns what a client of the repository a gets of a blob, and what
// ended it.
func readBlob(t *testing.T, w *testkit.World, d digest.Digest) ([]byte, error) {
	t.Helper()
	b, err := w.Open(t.Context(), d)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(b.Body)
	assert.NoError(t, b.Body.Close())
	return got, err
}

// heals removes all faults: the next pull must succeed.
func heals(t *testing.T, w *testkit.World, ref string, img *pullthroughtest.Image) {
	t.Helper()
	w.Up.Heal()
	w.Pull(t, "a", ref, img)
}

// unauthorized counts what the registry, not its token server, was sent without
// Authorization.
func unauthorized(w *testkit.World) (n int) {
	for _, r := range w.Up.Requests() {
		if r.Path != "/token" && r.Header.Get("Authorization") == "" {
			n++
		}
	}
	return n
}

// ranges are the Range headers of what the registry was sent, in their order.
func ranges(w *testkit.World) (ranges []string) {
	for _, r := range w.Up.Requests() {
		if r.Path != "/token" {
			ranges = append(ranges, r.Range)
		}
	}
	return ranges
}

// sent counts the bytes that upstream has sent.
func sent(w *testkit.World) (n int64) {
	for _, r := range w.Up.Requests() {
		n += r.Bytes
	}
	return n
}
