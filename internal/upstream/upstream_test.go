package upstream_test

import (
	"testing"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

// row is a line of docs/upstream.md together with the test that proves it.
type row struct {
	id      string // stable, cited by commits: S01, A14, U28, T5
	input   string // what upstream does, as a user would put it
	outcome string // what becomes of it
	test    func(*testing.T)
}

func (r row) Name() string { return r.id }

func (r row) Cells() []string { return []string{r.id, r.input, r.outcome} }

func (r row) Proof() func(*testing.T) { return r.test }

// Each table of docs/upstream.md has a test of its own that runs its rows. Those
// about blobs, manifests and connections are proved in the root.
func TestUpstreamScenarios(t *testing.T) { testkit.RunRows(t, scenarios) }

func TestUpstreamDocument(t *testing.T) {
	testkit.CheckUpstream(t, []testkit.Section[row]{
		{Title: "Scenarios", Rows: scenarios},
		{Title: "Scopes and tokens", Rows: tokenBehaviours},
		{Title: "Grants and credentials", Rows: credentialBehaviours},
		{Title: "Realms and redirects", Rows: realmBehaviours},
	})
	testkit.CheckUpstream(t, []testkit.Section[row]{{Title: "Manifests", Rows: manifestBehaviours}})
	testkit.CheckUpstream(t, []testkit.Section[row]{
		{Title: "Registries and their quirks", Rows: quirks},
		{Title: "Hostile upstreams", Rows: hostileUpstreams},
		{Title: "Tenants", Rows: tenants},
	})
}

// scenarios are whole pulls from upstreams that behave well, badly or oddly.
// Their tests are in the files that are named after what they are about.
var scenarios = []row{
	{"S01", "wants a bearer token", "one challenge and one token serve the whole pull", testWholePullTakesOneChallengeAndOneToken},
	{"S02", "compresses manifests for clients that let it", "it is told not to (`Accept-Encoding: identity`), and the manifest is kept byte for byte", testManifestsAreAskedForUncompressed},
	{"S03", "sends a layer that is a gzip file as `Content-Encoding: gzip`", "nothing is unpacked: the bytes that have the digest are kept", testGzippedLayersStayAsTheyAre},
	{"S04", "redirects to another port of its host", "the redirect is followed without password, token and cookies", testRedirectGoesWithoutCredentialsCookiesAndReferer},
	{"S05", "redirects to another host", "the redirect is followed without password, token and cookies", testRedirectGoesWithoutCredentialsCookiesAndReferer},
	{"S06", "refuses a token twice and then gives one", "two pulls are denied, the next one succeeds: a refusal is not remembered", testRefusedTokenIsRefusedToAllThatWait},
	{"S07", "no longer takes a token that has not expired (401)", "one new token is fetched, and the pull succeeds", testOneNewTokenForAllAfter401},
	{"S08", "takes no token at all (401)", "the pull is denied after one new token at most", test401WhateverIsSent},
	{"S09", "answers an expired token with 400 or 403", "one new token is fetched; one that is refused when new is not replaced", testNewCredentialsAfter400Or403},
	{"S10a", "cuts a blob off at 45 %", "the rest is asked for, and no byte is fetched twice", testCutBlobResumes},
	{"S10b", "resumes a blob ten bytes too early", "the download fails: wrong bytes are never joined to right ones", testOtherPartIsNotJoined},
	{"S10c", "resumes a blob with all of it (200)", "what is there already is skipped, and the pull succeeds", testResumeAnsweredWithAllSkips},
	{"S10d", "refuses to resume a blob (416)", "the blob is asked for once more from its start; if that fails too, so does the pull", testRefusedResumeBeginsAnew},
	{"S10e", "resumes a blob that has grown meanwhile", "the download fails: it is another object now", testOtherPartIsNotJoined},
	{"S11", "answers 429 with `Retry-After: 2`", "the request is sent again after 2 seconds and a little, not everywhere at the same instant", testRateLimitIsWaitedFor},
	{"S12", "answers 503 with `Retry-After: 2`", "the request is sent again after 2 seconds or more", testOverloadIsWaitedFor},
	{"S13", "answers 429 with a date in `Retry-After`", "the request is sent again after that date", testRetryAfterAsADate},
	{"S14", "gives a token in an answer of 10 MB", "the answer is refused after 128 KiB at most", testHugeTokenAnswers},
	{"S15", "names a token server on another host", "it is asked only if the rule allows that host; if not, it is sent nothing at all", testRealmElsewhereGetsNoCredentials},
	{"S16", "sends another manifest than the digest names", "the pull fails, and no byte of it reaches a client or the store", testWrongManifestIsRefused},
	{"S17", "sends another blob of the same length", "the answer ends before it is complete, and nothing is stored", testWrongBlobBreaksBeforeItsEnd},
	{"S18", "sends a blob without end", "reading stops at the size in the manifest, or at the rule's limit where nobody knows the size", testBlobWithoutEndIsLimited},
	{"S19", "wants a token for three pulls in a row", "they share one token", testPullsInARowShareOneToken},
	{"S20", "is asked for twenty images at once", "one challenge and one token serve all of them", testTwentyPullsShareOneToken},
	{"S21", "redirects in circles", "the pull fails after at most 10 requests and does not start again", testRedirectsOnAndOn},
	{"S23", "falls silent after 10 KB of a blob", "the rest is asked for after 30 seconds; when nothing comes again and again, the pull fails", testSilentBlobIsAskedForAgain},
	{"S25", "does not name the digest of a tag", "the content's own digest counts, after one request", testDigestOfWhatCameCounts},
	{"S26", "names neither digest nor length of a tag", "the content's own digest counts, after one request", testDigestOfWhatCameCounts},
	{"S27", "names a wrong digest for a tag", "the content's own digest counts and the event says so; a rule may refuse the pull instead", testDigestOfWhatCameCounts},
	{"S28", "announces a manifest of 64 MB", "it is refused unread", testManifestOver4MiB},
	{"S29", "sends a manifest of 64 MB and does not say so", "it is refused after 4 MiB", testManifestOver4MiB},
	{"S30", "adds a charset to a manifest's type", "the type is kept without it", testMediaTypes},
	{"S31", "sends manifests as octet-stream, plain text, JSON or as nothing", "the type in the manifest counts", testMediaTypes},
	{"S32", "sends a document that is a manifest and an index", "it is refused (CVE-2021-41190)", testManifestThatReadersUnderstandInTwoWays},
	{"S33", "calls an index a manifest, or the other way round", "it is refused", testWrongKindOfManifestIsRefused},
	{"S34", "is slow to give a token, and the first client leaves", "the others go on waiting for that token and get their images", testWaitingForATokenOutlivesItsFirstCaller},
	{"S35", "gives tokens for 5 minutes that it says are 10 minutes old", "each is used for its 5 minutes", testTokensLiveOnOurClock},
	{"S36", "sends a login page instead of a token", "the error names the token server and the type; clients see none of it", testWebPageAsTokenIsNamed},
	{"S37", "answers everything with a web page", "pulls fail and are not tried again and again: it is no registry", testWebPageForEveryRequest},
}

// credentialBehaviours are how a rule's credentials are used, and what becomes of
// refusals.
var credentialBehaviours = []row{
	{"A15", "has a token server", "a user's password goes there by GET, an identity token by POST; a wrong one is tried once", testPasswordByGETIdentityTokenByPOST},
	{"A16", "does not take the identity token (400, 401, 404, 405)", "the password is tried once, if there is one", testPasswordWhereTheIdentityTokenIsNotTaken},
	{"A17", "gives a new identity token in exchange for the old one", "the new one is used from then on and given to the host; it is never logged", testRotatedIdentityTokenIsUsedAndHandedOver},
	{"A18", "offers identity tokens to those who ask for them", "none is asked for", testNoIdentityTokenIsAskedFor},
	{"A19", "is public and the rule has no secret", "an anonymous token is asked for, with its scope", testAnonymousToken},
	{"A20", "refuses the rule's credentials for a public image", "the pull is refused; where the policy allows it the image is pulled anonymously, and the event says so", testAnonymousFallback},
	{"A21", "wants Basic credentials", "it alone gets them, and after the first challenge without being asked", testBasicCredentials},
	{"A22", "needs credentials", "the host is asked once per token, or when Basic ones have expired or are refused; it may take its time, fail or panic and hurts that one pull", testCredentialsAreAskedForOncePerToken},
	{"A23", "answers 401 to a token that it took before", "one new token is fetched for all, and each request is sent once more", testOneNewTokenForAllAfter401},
	{"A24", "answers 400 or 403 to credentials that it took before", "new ones are tried once; what fresh ones are answered is final", testNewCredentialsAfter400Or403},
	{"A25", "says `insufficient_scope` or `invalid_token`", "one token with the scope that it names is tried; these words are in the error, and no text of upstream's", testInsufficientScopeIsMetOnce},
	{"A26", "answers 401 without a challenge that can be met", "the pull is refused after one request", testChallengesThatCannotBeMet},
	{"A62", "asks for a login at /v2/ only, and without one its images are refused (401 without a challenge, 403) or not there (404)",
		"with credentials, and before any challenge, /v2/ is asked as docker does, once for all, and the request is sent again; what was learnt is remembered, and forgotten where it was wrong", testLoginAtV2Only},
}

func TestUpstreamCredentials(t *testing.T) { testkit.RunRows(t, credentialBehaviours) }

// tokenBehaviours are which tokens are asked for, and what a token server's
// answer is worth.
var tokenBehaviours = []row{
	{"A1", "names no scope in its challenge, or one of its own such as ECR Public's `aws`", "the token is asked for with `repository:<name>:pull`, after upstream's own scope", testScopeOfThePullIsAdded},
	{"A2", "asks for more than a pull, or for another repository, in its challenge", "only a pull of the one repository is asked for; what was left out is logged", testWiderScopeIsNotAskedFor},
	{"A3", "names the same scopes in another order", "it is the same token", testOrderOfScopesIsNoDifference},
	{"A4", "is used by two rules, or a rule's secret, registry or service changes", "each has tokens of its own, and an old token is never sent again", testTokensBelongToOneRuleAndSecret},
	{"A5", "lets many wait for one token, and the first of them leaves", "the others get it; one token is fetched, and nobody waits for it longer than he wants to", testWaitingForATokenOutlivesItsFirstCaller},
	{"A6", "refuses a token", "those who wait for it are refused together, and the next pull asks again", testRefusedTokenIsRefusedToAllThatWait},
	{"A7", "is pulled from under thousands of names", "the memory for tokens stays bounded", testMemoryForTokensIsBounded},
	{"A8", "leaves one repository's token request unanswered", "the other repositories are served meanwhile", testUnansweredTokenHoldsUpOneRepository},
	{"A9", "answers with `token`, `access_token` or both", "either will do, and `access_token` wins; an answer with neither is no token", testTokenOrAccessToken},
	{"A10", "says nothing, or something odd, about how long a token lives", "it is used for a minute at least and 24 hours at most", testOddLifetimesOfTokens},
	{"A11", "has a clock that is wrong", "a token's life counts from its arrival, on our clock", testTokensLiveOnOurClock},
	{"A12", "gives a token that is about to expire", "a new one is fetched early: by a tenth of its life, at least 5 and at most 30 seconds", testTokenIsRenewedEarly},
	{"A13", "sends a huge token answer, or a token with characters that no token has", "64 KiB are read, tokens have 16 KiB at most, and what is odd is refused", testHugeAndOddTokens},
	{"A14", "answers a token request with a web page", "the error names the token server and the type of what it sent", testWebPageAsTokenIsNamed},
}

func TestUpstreamTokens(t *testing.T) { testkit.RunRows(t, tokenBehaviours) }

// realmBehaviours are where upstream may send us, and what goes along.
var realmBehaviours = []row{
	{"A27", "names a token server by a URL that is relative, has no host, another scheme, userinfo or a fragment", "nothing is sent there, and the pull is refused", testOddRealmsGetNothing},
	{"A28", "names a token server on another host", "the rule's credentials go there only if the host allows it, or if it is known to belong to the registry", testRealmElsewhereGetsNoCredentials},
	{"A29", "redirects a token request", "it is followed within its origin; a request with an identity token is not followed at all", testRedirectedTokenRequest},
	{"A30", "redirects a pull", "up to 5 redirects are followed, never from https to http; what leaves the origin goes without credentials, and they do not come back", testRedirectsOfAPull},
	{"A64", "redirects to a URL that has blanks in it", "they are sent as %20", testRedirectsWithBlanks},
	{"A31", "redirects to another registry that wants a token", "an anonymous one is fetched for that request; the rule's credentials stay where they belong", testRedirectToAnotherRegistry},
	{"A32", "redirects to, or names as its token server, an address of this machine or of the cloud's metadata service", "nothing is sent there; private addresses are open unless the policy closes them, and the upstream's own address always is", testLocalAddressesGetNothing},
}

func TestUpstreamRealms(t *testing.T) { testkit.RunRows(t, realmBehaviours) }

// manifestBehaviours are about manifests and indexes.
var manifestBehaviours = []row{
	{"A42", "chooses a manifest by the Accept header, or reads its first line only",
		"it gets one line, the same for every client: indexes before manifests, OCI before Docker", testOneAcceptHeaderForAll},
	{"A43", "sends a manifest over 4 MiB, announced or not",
		"no more than 4 MiB are read, nothing at all if it was announced", testManifestOver4MiB},
	{"A44", "sends a manifest without a digest, with a wrong one, or another manifest than the digest asked for",
		"by digest it must match; by tag the digest in the header is asked for once, and if upstream does not have that, the digest of what came counts, the header is told in an event, and the policy may refuse it", testDigestOfWhatCameCounts},
	{"A45", "refuses HEAD of a manifest (400, 401, 403, 404, 405, 406, 415, 501), or answers it without digest or type",
		"one GET decides, also where the policy refuses what is stale; HEAD only ever checks tags that are stored", testHeadOfAManifestDecidesNothing},
	{"A65", "writes the digest of a manifest in quotes or in upper case",
		"it is the digest that it means, of a GET and of a HEAD", testDigestsInOddSpelling},
	{"A46", "sends manifests with parameters in their type, as text, octets or anything else, or with a type that is not theirs",
		"where the header has a manifest's type, the mediaType in the manifest must agree with it; any other type says nothing, and the manifest decides. A page is no answer for a tag", testMediaTypes},
	{"A70", "sends JSON that is no image: an error, an empty document, a configuration",
		"it is refused, whatever type it has: an image needs schemaVersion 2, a config with a digest and layers, an index needs manifests", testJSONThatIsNoImage},
	{"A71", "damages the manifest of a tag on its way",
		"the digest that its header names is asked for once, and that manifest is the tag's", testDamagedManifestOfATag},
	{"A72", "names a sha512 digest for a tag",
		"the tag has that digest here, too; the image is found by it, and by its sha256 digest", testTagOfASHA512Digest},
	{"A73", "serves the same bytes under two tags with two types",
		"the type that was stored first is the one that everybody gets", testOneTypeForTheSameBytes},
	{"A47", "sends a manifest that can be read in two ways",
		"it is refused", testManifestThatReadersUnderstandInTwoWays},
	{"A48", "has only Docker schema 1 for an image",
		"the image is not found, and the error says why; nothing is converted or stored", testSchema1IsNotFound},
	{"A66", "has no referrers API: 404, or 400, 405, 406, 501, or, to a rule without a credential, 401 or 403 without a challenge",
		"the list is the one under the referrers tag if the policy says so, else it is empty; told by anything but 404 that counts for 10 s (`Policy.NotFoundTTL`) and never replaces a list that is known", testNoReferrersAPI},
	{"A67", "has something else under the referrers tag: an image, or the subject itself",
		"the list is empty", testReferrersTagOfSomethingElse},
	{"A68", "links to the next page of a list among other links, with several relations, or in any other form of RFC 8288",
		"the page is read, if it is one of the same list at the same origin", testLinksToTheNextPage},
	{"A49", "formats its JSON oddly",
		"every byte stays as it is", testOddJSONStaysAsItIs},
	{"A50", "sends warnings",
		"the proxy's owner is told in the event, once each, 4096 bytes at most and without the secrets that the proxy knows; clients see none", testWarningsReachTheOwner},
}

func TestUpstreamManifests(t *testing.T) { testkit.RunRows(t, manifestBehaviours) }
