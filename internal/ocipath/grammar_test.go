package ocipath_test

import (
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

func badDigests() []string {
	return []string{
		":", "sha256:", "sha512:", ":" + hex64,
		"sha256:" + hex64[1:], "sha256:" + hex64 + "0", "sha256:" + hex64 + hex64, "sha512:" + hex64, "sha512:" + hex64 + hex64[1:],
		"sha256:" + strings.ToUpper(hex64), "sha256:" + hex64[1:] + "F", "sha256:" + hex64[1:] + "g",
		"SHA256:" + hex64, "Sha256:" + hex64, "sha384:" + hex64 + hex64[:32], "md5:" + hex64[:32], "sha1:" + hex64[:40],
		"sha256+b64:" + hex64, "sha256+b64u:LCa0a2j_xo_5m0U8HTBBNBNCLXBkg7-g-YpeiGJm564", "blake3:" + hex64,
		"sha256::" + hex64, "sha256:" + hex64 + ":", "a:b", "app:latest", "latest@sha256:" + hex64,
	}
}

func TestValidNames(t *testing.T) {
	for _, s := range []string{
		"ab", "a0", "00", "a/b", "a.b", "a_b", "a__b", "a-b", "a--b", "a------b", "a.b_c__d-e/f", "dockerhub/library/nginx",
		"docker.io/library/x", "1/2/3", "blobs/manifests/tags/list", strings.Repeat("a", 256), "a" + strings.Repeat("-", 254) + "b",
	} {
		assert.True(t, ocipath.ValidName(s), "%q", s)
		assert.NoError(t, ocipath.CheckName(s))
	}
}

func TestInvalidNames(t *testing.T) {
	for _, s := range []string{
		"", "a", "/", "A", "aB", "a..b", "a___b", "a._b", "a_.b", "a.-b", "a-_b", "a_-b", ".a", "a.", "_a", "a_", "-a", "a-", "ab/", "/ab", "a//b",
		"a/-b", "a-/b", "a/_b", "a/.", "..", "../a", "a b", "a\tb", "a\nb", "ab\n", "a\x00b", `a\b`, "a%2fb", "a:b", "a@b", "ROOT",
		"bücher", "a\u0301b", "a／b", "а/b", "١٢", "a\xffb", strings.Repeat("a", 257),
	} {
		assert.False(t, ocipath.ValidName(s), "%q", s)
		var bad *ocipath.Error
		if assert.ErrorAs(t, ocipath.CheckName(s), &bad) {
			assert.Equal(t, ocipath.Error{Part: ocipath.Name, Value: s}, *bad)
		}
	}
}

func TestPrefixes(t *testing.T) {
	for _, s := range []string{"ROOT", "root", "a", "hub", "hub/", "a/b", "a/b/", "ecr-public", strings.Repeat("a", 256), strings.Repeat("a", 255) + "/"} {
		assert.True(t, ocipath.ValidPrefix(s), "%q", s)
	}
	for _, s := range []string{
		"", "/", "//", "hub//", "/hub", "Root", "ROOT/", "ROOT/a", "a/ROOT", "hub.", "hub-/", "hub_", "a..b", "a b", "hub/*", "hub\n", "..", "../",
		strings.Repeat("a", 257), strings.Repeat("a", 256) + "/",
	} {
		assert.False(t, ocipath.ValidPrefix(s), "%q", s)
	}
}

func TestTags(t *testing.T) {
	for _, s := range []string{"a", "_", "0", "latest", "v1.0", "A.b-C_d", "_.-", "a..b", "1.27-alpine", strings.Repeat("a", 128), hex64} {
		assert.True(t, ocipath.ValidTag(s), "%q", s)
		assert.NoError(t, ocipath.CheckRef(s))
	}
	for _, s := range []string{
		"", ".", "-", ".a", "-a", "..", "a/b", "a@b", "a b", "a+b", "a%3Ab", "a\n", "a\x00", "v١", "é", "a\xff", strings.Repeat("a", 129),
	} {
		assert.False(t, ocipath.ValidTag(s), "%q", s)
		var bad *ocipath.Error
		if assert.ErrorAs(t, ocipath.CheckRef(s), &bad) {
			assert.Equal(t, ocipath.Error{Part: ocipath.Tag, Value: s}, *bad)
		}
	}
}

func TestDigests(t *testing.T) {
	for _, s := range []string{sha256, sha512} {
		assert.True(t, ocipath.ValidDigest(s))
		assert.True(t, ocipath.IsDigest(s))
		assert.NoError(t, ocipath.CheckRef(s))
	}
	for _, s := range badDigests() {
		assert.False(t, ocipath.ValidDigest(s), "%q", s)
		assert.True(t, ocipath.IsDigest(s), "%q", s)
		assert.False(t, ocipath.ValidTag(s), "%q", s)
		var bad *ocipath.Error
		if assert.ErrorAs(t, ocipath.CheckRef(s), &bad) {
			assert.Equal(t, ocipath.Error{Part: ocipath.Digest, Value: s}, *bad)
		}
	}
	assert.False(t, ocipath.IsDigest("latest"))
	assert.False(t, ocipath.ValidDigest(hex64))
}

func TestErrorNamesThePartAndTheValue(t *testing.T) {
	assert.EqualError(t, ocipath.CheckName("App"), `invalid repository name "App"`)
	assert.EqualError(t, ocipath.CheckRef("-x"), `invalid tag "-x"`)
	assert.EqualError(t, ocipath.CheckRef("md5:x"), `invalid digest "md5:x"`)
	assert.EqualError(t, &ocipath.Error{Part: -1, Value: "x"}, `invalid path "x"`)
}

// The message goes into logs and response bodies: no control bytes, no terminal
// escapes, nothing that ends the quotes, and not as long as the client likes.
func TestErrorTextIsSafeToRepeat(t *testing.T) {
	assert.EqualError(t, ocipath.CheckName("a\r\n\x1b[2J\"\\\x00\x7fé"), `invalid repository name "a\x0d\x0a\x1b[2J\"\\\x00\x7f\xc3\xa9"`)
	for _, unit := range []string{"A", "\x00", `"`, "é", "-"} {
		for n := range 400 {
			assertSafe(t, ocipath.Error{Value: strings.Repeat(unit, n)})
		}
	}
	assert.True(t, strings.HasSuffix(ocipath.CheckName(strings.Repeat("A", 1_000)).Error(), `A..."`), "a cut is visible")
}

func assertSafe(t *testing.T, e ocipath.Error) {
	t.Helper()
	value, ok := strings.CutPrefix(e.Error(), "invalid "+e.Part.String()+" ")
	require.True(t, ok)
	require.LessOrEqual(t, len(value), 128)
	require.True(t, len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"')
	unsafe := func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsPrint(r) }
	require.Equal(t, -1, strings.IndexFunc(value, unsafe), "%q", value)
}
