package upstream_test

import (
	"testing"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

func TestUpstreamHostile(t *testing.T) { testkit.RunRows(t, hostileUpstreams) }

// hostileUpstreams are answers that no honest registry gives. Whatever becomes
// of each: no wrong byte is served under a digest or stored, no secret gets
// about, time and memory are bounded, and the next pull works.
var hostileUpstreams = []row{
	{"U1", "sends another manifest than the digest asked for", "the pull fails after one more try; nothing of it is served or stored", testWrongManifestIsRefused},
	{"U2", "sends another blob of the right length", "the client's connection ends before the last 64 KiB; nothing is stored", testWrongBlobBreaksBeforeItsEnd},
	{"U3", "flips the last byte of a blob", "the same; blobs up to 128 KiB are verified before their first byte leaves", testLastByteFlipped},
	{"U4", "ends a blob early", "the rest is asked for; if it never comes the pull fails and nothing is stored", testBlobThatEndsEarly},
	{"U5", "ends a blob early in a way that looks complete (HTTP/1.0)", "size and digest tell; nothing is stored", testBlobThatEndsEarlyAndLooksComplete},
	{"U6", "sends more than it announced, or goes on for ever", "no more is read than that; where it announced nothing, no more than the size that the manifest tells, or the rule's limit", testBlobThatGoesOnForEver},
	{"U7", "lists a blob of a negative or absurd size", "negative: the manifest is refused; else what comes decides, and no memory is taken by a size that was told", testAbsurdSizesInAManifest},
	{"U8", "lies about the length of an answer, or gives two", "the pull fails; nothing is stored", testLengthsThatLie},
	{"U9", "sends its header a byte at a time", "the pull fails after 30 seconds", testHeaderByteByByte},
	{"U10", "stops in the middle of an answer", "a blob is resumed after 30 seconds without a byte; in the end the pull fails, and others are not held up", testAnswerThatStopsInTheMiddle},
	{"U11", "sends a byte every 4 seconds", "the pull fails within 2 minutes; others are not held up", testByteEveryFourSeconds},
	{"U13", "sends trailers of 10 MB", "they are not read", testHugeTrailers},
	{"U14", "sends a gzip or zstd bomb as blob, manifest, token or error", "nothing is ever decompressed: the bytes as they are have the digest, and limits count them", testCompressionBombs},
	{"U15", "names encodings, a chain of them, or unknown ones", "the same", testChainsOfEncodings},
	{"U16", "sends a manifest of 1 GB", "it is refused unread if its length is known, else after 4 MiB", testManifestOver4MiB},
	{"U17", "sends a manifest made to be slow to parse", "4 MiB cost less than 100 ms; it is refused, or stored as it is", testManifestsThatAreSlowToParse},
	{"U18", "calls an image an index, or an index an image", "the pull fails", testWrongKindOfManifestIsRefused},
	{"U19", "sends a manifest that readers could understand in two ways", "the pull fails", testManifestThatReadersUnderstandInTwoWays},
	{"U21", "names a wrong, malformed or huge digest in its header", "the content's own digest counts, and the host is told; a rule can have such pulls fail", testMalformedDigestHeaders},
	{"U22", "gives an odd Content-Type", "clients get types of the specifications or an error, never upstream's words", testOddContentTypes},
	{"U23", "redirects in circles, or on and on", "the pull fails after 5 redirects, without another try", testRedirectsOnAndOn},
	{"U25", "redirects from https to http", "the pull fails; nothing is sent", testRedirectFromHTTPSToHTTP},
	{"U26", "redirects to another port or host", "it is followed without credentials, cookies and Referer", testRedirectGoesWithoutCredentialsCookiesAndReferer},
	{"U27", "redirects to another host, which redirects back", "credentials stay behind all the same", testRedirectBackGoesWithoutCredentials},
	{"U28", "sends us to loopback, link-local or metadata addresses, by redirect or as token server", "the pull fails and nothing is dialled; so for private networks where the rule says so", testAddressesThatAreNotDialled},
	{"U29", "sends us to a name of such an address", "the same: addresses are looked at when they are dialled, and localhost is not dialled at all", testNamesOfAddressesThatAreNotDialled},
	{"U30", "names a token server on a host that the rule does not allow", "the pull fails; the secret is not sent", testTokenServerThatTheRuleDoesNotAllow},
	{"U31", "names an http token server for an https registry", "the pull fails; nothing is sent", testHTTPTokenServerOfAnHTTPSRegistry},
	{"U32", "names a token server by a trick URL", "the pull fails; where only the query is odd, our parameters replace its own", testTrickURLsOfTokenServers},
	{"U33", "redirects a token request", "the pull fails where it leads to another origin; what was posted is never posted again", testTokenRequestIsNotPostedAgain},
	{"U34", "answers a token request with something else, or 10 MB of it", "the pull fails; no more than 64 KiB is read and nothing of it is repeated in errors", testOtherThingsInPlaceOfAToken},
	{"U35", "challenges for more than the pull needs", "nothing but pulling the repository is asked for", testWiderScopeIsNotAskedFor},
	{"U37", "answers 401 whatever it is sent, or with a thousand challenges", "one more try with new authorization, then the pull fails", test401WhateverIsSent},
	{"U38", "asks to wait for years, or in words that make no sense (429, 503)", "for years: the pull fails at once and says so, and the rule is asked again within 15 seconds; nonsense: the usual retries", testAbsurdRetryAfter},
	{"U39", "links to another host for the next page", "only another page of the same list is asked for; tags are never asked for", testNextPageElsewhereIsNotAskedFor},
	{"U40", "lists layers with URLs of their own", "those are never fetched", testURLsOfLayersAreNotFetched},
	{"U42", "sends headers that would alter our answer", "clients get none of them", testHeadersThatWouldAlterOurAnswer},
	{"U43", "breaks the rules of HTTP/2", "the download goes on over a new connection, or the pull fails in bounded time", testBrokenHTTP2},
	{"U44", "has a certificate that is expired, another's or nobody's, or speaks no TLS", "the pull fails at once, also for token servers; http is not tried", testBadCertificates},
	{"U45", "moves a tag while it is being checked", "a pull gets one of the images whole, the next one the last", testTagThatMovesWhileItIsChecked},
	{"U46", "lists digests that are paths, or no digests", "they are never asked for", testDigestsThatArePaths},
	{"U47", "continues a blob with something else", "it is asked for again or the pull fails; parts of two objects are never joined", testPartsOfTwoObjectsAreNotJoined},
	{"U48", "answers every request with a web page", "the pull fails; what is stored is served", testWebPageForEveryRequest},
	{"U50", "answers a token request before it has read it", "the pull ends within a minute", testTokenAnswerBeforeTheRequestIsRead},
}
