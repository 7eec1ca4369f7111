package conformance_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// assertCold asserts what the first pull of a whole image may cost upstream,
// whatever the client asked: the challenge and the token where there is one,
// the tag once, and one GET for each further object. There is no HEAD: a client that
// asks by HEAD for a blob first has its first byte fetched, once.
func assertCold(t testing.TB, u *upstream, a auth, img *image, p *pulled) {
	t.Helper()
	log := u.take()
	opening := []string{manifestLine(img, img.tag, http.StatusOK)}
	if a != authOpen {
		opening = append([]string{manifestLine(img, img.tag, http.StatusUnauthorized)}, opening...)
	}
	require.GreaterOrEqual(t, len(log), len(opening), "upstream requests: %q", log)
	assert.Equal(t, opening, log[:len(opening)], "first upstream requests")
	asked := make(map[string]bool)
	rest := slices.DeleteFunc(log[len(opening):], func(line string) bool {
		first := strings.Contains(line, "/blobs/") && strings.HasSuffix(line, " 206") && !asked[line]
		asked[line] = asked[line] || first
		return first
	})
	assert.ElementsMatch(t, objectLines(img, p), rest, "upstream requests after the tag's")
	assertOneToken(t, u, img)
}

// assertOneToken asserts that the token server, where there is one, was asked
// once, by the right user, for no more than the pull.
func assertOneToken(t testing.TB, u *upstream, img *image) {
	t.Helper()
	if u.tokens == nil {
		return
	}
	assert.Equal(t, []tokenRequest{{
		Method:  http.MethodGet,
		User:    puller,
		Service: tokenService,
		Scope:   "repository:" + img.repo + ":pull",
		Status:  http.StatusOK,
	}}, u.tokens.take(), "token requests")
}

// assertSilent asserts that nothing of the upstream was asked since the last
// look.
func assertSilent(t testing.TB, u *upstream) {
	t.Helper()
	assert.Empty(t, u.take(), "upstream requests")
	if u.tokens != nil {
		assert.Empty(t, u.tokens.take(), "token requests")
	}
}

func manifestLine(img *image, reference string, status int) string {
	return line(http.MethodGet, "/v2/"+img.repo+"/manifests/"+reference, status)
}

// objectLines is one GET for all but the root.
func objectLines(img *image, p *pulled) []string {
	lines := []string{}
	for d := range p.Manifests {
		if d != p.Root {
			lines = append(lines, manifestLine(img, d.String(), http.StatusOK))
		}
	}
	for d := range p.Blobs {
		lines = append(lines, blobLine(img, d))
	}
	return lines
}

func blobLine(img *image, d digest.Digest) string {
	return line(http.MethodGet, "/v2/"+img.repo+"/blobs/"+d.String(), http.StatusOK)
}
