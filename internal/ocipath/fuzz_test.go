package ocipath_test

import (
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// The grammar a second time, as the specifications write it.
const (
	componentRE = `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
	nameRE      = componentRE + `(\/` + componentRE + `)*`
	tagRE       = `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
	digestRE    = `(sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})`
)

var (
	nameOracle   = regexp.MustCompile(`\A` + nameRE + `\z`)
	prefixOracle = regexp.MustCompile(`\A(` + nameRE + `\/?|ROOT)\z`)
	tagOracle    = regexp.MustCompile(`\A` + tagRE + `\z`)
	digestOracle = regexp.MustCompile(`\A` + digestRE + `\z`)

	pathOracles = map[ocipath.Kind]*regexp.Regexp{
		ocipath.Base:      regexp.MustCompile(`\A/v2/?\z`),
		ocipath.Catalog:   regexp.MustCompile(`\A/v2/_catalog\z`),
		ocipath.Manifest:  regexp.MustCompile(`\A/v2/` + nameRE + `/manifests/(` + tagRE + `|` + digestRE + `)\z`),
		ocipath.Blob:      regexp.MustCompile(`\A/v2/` + nameRE + `/blobs/` + digestRE + `\z`),
		ocipath.Referrers: regexp.MustCompile(`\A/v2/` + nameRE + `/referrers/` + digestRE + `\z`),
		ocipath.Tags:      regexp.MustCompile(`\A/v2/` + nameRE + `/tags/list\z`),
		ocipath.Upload:    regexp.MustCompile(`\A/v2/` + nameRE + `/blobs/uploads/[a-zA-Z0-9._~=-]*\z`),
	}
	escapedColon = regexp.MustCompile(`%3[aA]([a-f0-9]*)\z`)
)

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"/v2", "/v2/", "/v2/_catalog", "/v2/app/manifests/latest", "/v2/a/tags/b/manifests/x", "/v2/app/blobs/" + sha256, "/v2/app/referrers/" + sha512,
		"/v2/app/blobs/sha256%3A" + hex64, "/v2/app/blobs/sha256%253A" + hex64, "/v2/app/tags/list", "/v2/app/blobs/uploads/", "/v2/app/blobs/uploads/..",
		"/v2/apis", "/v2/tags/arn:aws:apigateway:us-east-1::/apis/x", "/v2//manifests/x", "/v2/../app/manifests/x", "/v2/a%2fb/manifests/x",
		"/v2/a/%2e%2e/b/manifests/x", "/v2/a\\b/manifests/x", "/v2/a\x00/manifests/x", "/v2/manifests/x", "/v2/app/manifests/SHA256:" + hex64,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if u, err := url.ParseRequestURI(path); err == nil {
			checkParse(t, u)
		}
		checkParse(t, &url.URL{Path: path})
		checkParse(t, &url.URL{Path: "/v2/" + path, RawPath: path})
	})
}

// checkParse holds Parse against the oracles. It reads the escaped path itself,
// since that is the one input both sides share.
func checkParse(t *testing.T, u *url.URL) {
	written := escapedColon.ReplaceAllString(u.EscapedPath(), ":$1")
	got, err := ocipath.Parse(u)
	if err != nil {
		assert.Zero(t, got)
		checkRefusal(t, written, err)
		return
	}
	require.Regexp(t, pathOracles[got.Kind], written)
	if written != "/v2" {
		require.Equal(t, written, got.String())
	}
	for component := range strings.SplitSeq(got.String(), "/") {
		require.NotContains(t, []string{".", ".."}, component)
	}
	again, err := ocipath.Parse(&url.URL{Path: got.String()})
	require.NoError(t, err)
	require.Equal(t, got, again)
}

// checkRefusal wants every refused path to be outside the oracles too, but for
// the length of its name, which they do not count.
func checkRefusal(t *testing.T, written string, err error) {
	var bad *ocipath.Error
	if !assert.ObjectsAreEqual(ocipath.ErrNotRegistry, err) {
		require.ErrorAs(t, err, &bad)
		assertSafe(t, *bad)
		if bad.Part == ocipath.Name && (len(bad.Value) < 2 || len(bad.Value) > 256) {
			return
		}
	}
	for kind, oracle := range pathOracles {
		if kind == ocipath.Upload && (strings.HasSuffix(written, "/.") || strings.HasSuffix(written, "/..")) {
			continue
		}
		require.NotRegexp(t, oracle, written)
	}
}

func FuzzGrammar(f *testing.F) {
	for _, seed := range append(badDigests(), sha256, sha512, "app", "a/b", "a..b", "a__b/c--d", "ROOT", "hub/", "latest", "-x", "_x", "a\n", "a／b", hex64) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		named := nameOracle.MatchString(s)
		require.Equal(t, named && len(s) >= 2 && len(s) <= 256, ocipath.ValidName(s))
		require.Equal(t, prefixOracle.MatchString(s) && len(s) <= 256, ocipath.ValidPrefix(s))
		require.Equal(t, tagOracle.MatchString(s), ocipath.ValidTag(s))
		require.Equal(t, digestOracle.MatchString(s), ocipath.ValidDigest(s))
		require.Equal(t, ocipath.ValidName(s), ocipath.CheckName(s) == nil)
		require.Equal(t, ocipath.ValidTag(s) || ocipath.ValidDigest(s), ocipath.CheckRef(s) == nil)
		require.False(t, ocipath.ValidTag(s) && ocipath.IsDigest(s), "tag and digest at once")
		checkVerifier(t, s)
	})
}

// checkVerifier takes an accepted digest where the proxy takes it: go-digest
// panics there for what its own Validate would have refused.
func checkVerifier(t *testing.T, s string) {
	if !ocipath.ValidDigest(s) {
		return
	}
	d := digest.Digest(s)
	require.NoError(t, d.Validate())
	require.NotPanics(t, func() { d.Verifier() })
}
