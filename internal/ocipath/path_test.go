package ocipath_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

var (
	hex64  = strings.Repeat("0123456789abcdef", 4)
	sha256 = "sha256:" + hex64
	sha512 = "sha512:" + hex64 + hex64
)

// parse reads a path as a server does: from the bytes of a request line.
func parse(t *testing.T, path string) (ocipath.Path, error) {
	t.Helper()
	u, err := url.ParseRequestURI(path)
	require.NoError(t, err)
	return ocipath.Parse(u)
}

// assertInvalid wants the path to be ours but wrong.
func assertInvalid(t *testing.T, path string, part ocipath.Part, value string) {
	t.Helper()
	got, err := parse(t, path)
	var bad *ocipath.Error
	if assert.ErrorAs(t, err, &bad) {
		assert.Equal(t, ocipath.Error{Part: part, Value: value}, *bad)
	}
	assert.Zero(t, got, "no half-parsed value")
}

func TestRegistryPaths(t *testing.T) {
	for name, c := range map[string]struct {
		path string
		want ocipath.Path
	}{
		"base":                            {"/v2/", ocipath.Path{Kind: ocipath.Base}},
		"base behind path.Clean":          {"/v2", ocipath.Path{Kind: ocipath.Base}},
		"catalog":                         {"/v2/_catalog", ocipath.Path{Kind: ocipath.Catalog}},
		"manifest by tag":                 {"/v2/app/manifests/v1.0", ocipath.Path{ocipath.Manifest, "app", "v1.0"}},
		"manifest by digest":              {"/v2/app/manifests/" + sha256, ocipath.Path{ocipath.Manifest, "app", sha256}},
		"manifest by sha512":              {"/v2/app/manifests/" + sha512, ocipath.Path{ocipath.Manifest, "app", sha512}},
		"blob":                            {"/v2/hub/library/nginx/blobs/" + sha256, ocipath.Path{ocipath.Blob, "hub/library/nginx", sha256}},
		"referrers":                       {"/v2/app/referrers/" + sha256, ocipath.Path{ocipath.Referrers, "app", sha256}},
		"tags":                            {"/v2/app/tags/list", ocipath.Path{ocipath.Tags, "app", ""}},
		"start of an upload":              {"/v2/app/blobs/uploads/", ocipath.Path{ocipath.Upload, "app", ""}},
		"upload session":                  {"/v2/app/blobs/uploads/5e6f-A_b.c~=", ocipath.Path{ocipath.Upload, "app", "5e6f-A_b.c~="}},
		"escaped colon":                   {"/v2/app/blobs/sha256%3A" + hex64, ocipath.Path{ocipath.Blob, "app", sha256}},
		"escaped colon in lower case":     {"/v2/app/manifests/sha256%3a" + hex64, ocipath.Path{ocipath.Manifest, "app", sha256}},
		"query is not part of it":         {"/v2/app/tags/list?n=5&last=a/manifests/b", ocipath.Path{ocipath.Tags, "app", ""}},
		"tags in a name":                  {"/v2/team/tags/x/manifests/latest", ocipath.Path{ocipath.Manifest, "team/tags/x", "latest"}},
		"tags/list in a name":             {"/v2/team/tags/list/manifests/latest", ocipath.Path{ocipath.Manifest, "team/tags/list", "latest"}},
		"manifests in a name":             {"/v2/team/manifests/x/blobs/" + sha256, ocipath.Path{ocipath.Blob, "team/manifests/x", sha256}},
		"name made of API words":          {"/v2/manifests/blobs/tags/referrers/manifests/list", ocipath.Path{ocipath.Manifest, "manifests/blobs/tags/referrers", "list"}},
		"name that is one API word":       {"/v2/manifests/manifests/manifests", ocipath.Path{ocipath.Manifest, "manifests", "manifests"}},
		"upload path as a name":           {"/v2/app/blobs/uploads/tags/list", ocipath.Path{ocipath.Tags, "app/blobs/uploads", ""}},
		"upload to a name ending blobs":   {"/v2/app/blobs/blobs/uploads/x", ocipath.Path{ocipath.Upload, "app/blobs", "x"}},
		"name below apis is still a name": {"/v2/apis/x/manifests/latest", ocipath.Path{ocipath.Manifest, "apis/x", "latest"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parse(t, c.path)
			require.NoError(t, err)
			assert.Equal(t, c.want, got)
		})
	}
}

func TestPathsOfOtherServices(t *testing.T) {
	for _, path := range []string{
		"/", "/v1/", "/v2x", "/v2beta1/app/manifests/x", "/V2/", "/api/v2/app/manifests/x", "/%76%32/",
		"/v2/apis", "/v2/apis/", "/v2/apis/a1b2c3/routes", "/v2/apis/a1b2c3/routes/r1", "/v2/domainnames/example.com",
		"/v2/tags/arn:aws:apigateway:us-east-1::/apis/a1b2c3", "/v2/tags/arn%3Aaws%3Aapigateway%3Aus-east-1%3A%3A%2Fapis%2Fa1",
		"/v2/email/outbound-emails", "/v2/email/identities/example.com", "/v2/email/identities/a/policies/b",
		"/v2/app", "/v2//", "/v2/app/_catalog", "/v2/email/identities/a%40b.example", "/bucket//v2/app/manifests/x", "/v2/apis//routes",
		"/v2/app/manifests", "/v2/app/manifests/a/b", "/v2/app/tags", "/v2/app/tags/",
		"/v2/app/tags/other", "/v2/app/Manifests/x", "/v2/app/uploads/", "/v2/app/x/uploads/y", "/v2/app/blobs/uploads/a/b",
		"/v2/app/blobs/uploads/..", "/v2/app/blobs/uploads/%2e%2e", "/v2/app/blobs/uploads/a%2fb",
	} {
		_, err := parse(t, path)
		assert.ErrorIs(t, err, ocipath.ErrNotRegistry, "%s", path)
	}
}

// A router that unescapes or cleans a path would make one of the registry's of these.
func TestPathsThatOthersReadAsRegistryPaths(t *testing.T) {
	for _, path := range []string{
		"/v2/app/manifests/latest/", "/v2/app/tags/list/", "/v2/_catalog/", "/v2/app/blobs/" + sha256 + "/", "/v2/app/manifests/x/.", "/v2/app/manifests/x/y/..",
		"/v2/app/manifests//x", "/v2/app//manifests/x/", "/v2/app/manifests/./x", "//v2/app/manifests/x", "/./v2/app/manifests/x", "/x/../v2/app/manifests/x",
		"/v2/app/x/../manifests/y/", "/v2/app/blobs/uploads/.", "/v2/app/blobs/uploads/../" + sha256 + "/", "/%76%32/app/manifests/x", "/v2/app/%6danifests/x", "/v2/app/tags/lis%74",
		"/v2/%5fcatalog", "/v2%2Fapp%2Fmanifests%2Fx", "/v2/app%2Fmanifests%2Fx", "/v2/app/manifests%2fx", "/v2/app%252Fmanifests%252Fx", "/v2/app/%25256danifests/x",
		"/v2/app%2Fblobs%2F" + sha256, "/v2/app/referrers%2f" + sha256, "/v2/app%5Cmanifests/x", "/v2%5capp/blobs%5C" + sha256,
	} {
		assertInvalid(t, path, ocipath.Spelling, path)
	}
}

// What only breaks a grammar is split: a rule may be looked for by the name.
func TestSplitLeavesTheGrammarToCheck(t *testing.T) {
	for path, want := range map[string]ocipath.Path{
		"/v2/App/manifests/x":           {ocipath.Manifest, "App", "x"},
		"/v2/app/manifests/-x":          {ocipath.Manifest, "app", "-x"},
		"/v2/app/blobs/md5:0":           {ocipath.Blob, "app", "md5:0"},
		"/v2/app/blobs/sha256%3Aabc":    {ocipath.Blob, "app", "sha256:abc"},
		"/v2/a/blobs/uploads":           {ocipath.Blob, "a", "uploads"},
		"/v2/App/tags/list":             {ocipath.Tags, "App", ""},
		"/v2/App/blobs/uploads/":        {ocipath.Upload, "App", ""},
		"/v2/app/referrers/" + "latest": {ocipath.Referrers, "app", "latest"},
	} {
		u, err := url.ParseRequestURI(path)
		require.NoError(t, err)
		got, err := ocipath.Split(u)
		require.NoError(t, err, path)
		assert.Equal(t, want, got)
		assert.ErrorAs(t, got.Check(), new(*ocipath.Error), path)
	}
	for _, name := range []string{"a%2fb", "a/../b", "a//b", "a%252fb", "%61"} {
		u, err := url.ParseRequestURI("/v2/" + name + "/manifests/x")
		require.NoError(t, err)
		got, err := ocipath.Split(u)
		assert.ErrorAs(t, err, new(*ocipath.Error), "%s is not only a grammar's matter", name)
		assert.Zero(t, got)
	}
}

func TestPathsWithoutANameBelongToNobody(t *testing.T) {
	for _, path := range []string{
		"/v2/manifests/x", "/v2/blobs/" + sha256, "/v2/referrers/" + sha256, "/v2/tags/list", "/v2/blobs/uploads/", "/v2/blobs/uploads/x", "/v2/uploads/x",
	} {
		_, err := parse(t, path)
		assert.ErrorIs(t, err, ocipath.ErrNotRegistry, "%s", path)
	}
}

// C1 of the hostile inputs: none of these may reach another repository.
func TestNameIsReadAsItWasWritten(t *testing.T) {
	for _, name := range []string{
		"", "/", ".", "..", "a/..", "../b", "a/../b", "a/./b", "/app", "app/", "app//x", "app/x/",
		"%2e%2e", "a/%2e%2e/b", "a/%2E%2E", "a%2fb", "a%2Fb", "a%252fb", "%252e%252e", "%61pp", "app%00", "a%5cb", "app%20", "app%0a", "a%3ab", "app%",
		"App", "a@b", "a:b", "a;b", "~app", "a+b", "*",
	} {
		if name == "app%" { // no client can send it in a URL that parses
			assert.False(t, ocipath.ValidName(name))
			continue
		}
		assertInvalid(t, "/v2/"+name+"/manifests/latest", ocipath.Name, name)
		assertInvalid(t, "/v2/"+name+"/blobs/"+sha256, ocipath.Name, name)
		assertInvalid(t, "/v2/"+name+"/tags/list", ocipath.Name, name)
		assertInvalid(t, "/v2/"+name+"/blobs/uploads/", ocipath.Name, name)
	}
}

// A handler in front of us may have rewritten Path alone, or built the URL.
func TestDecodedPathIsEscapedAgainFirst(t *testing.T) {
	for _, u := range []url.URL{
		{Path: "/v2/a\x00b/manifests/x"},
		{Path: `/v2/a\b/manifests/x`},
		{Path: "/v2/a%2fb/manifests/x"},
		{Path: "/v2/ab/../cd/manifests/x", RawPath: "/v2/ab/cd/manifests/x"},
		{Path: "/v2/bücher/manifests/x"},
		{Path: "/v2/ab?/manifests/x"},
	} {
		_, err := ocipath.Parse(&u)
		assert.ErrorAs(t, err, new(*ocipath.Error), "%q", u.Path)
	}
	_, err := ocipath.Parse(&url.URL{Opaque: "/v2/app/manifests/x"})
	assert.ErrorIs(t, err, ocipath.ErrNotRegistry)
}

// C4: refused by length before anything else looks at them.
func TestLongNames(t *testing.T) {
	deep := func(n int) string { return strings.TrimSuffix(strings.Repeat("a/", n), "/") }
	for name, valid := range map[string]bool{
		strings.Repeat("a", 255):                   true,
		strings.Repeat("a", 256):                   true,
		strings.Repeat("a", 257):                   false,
		strings.Repeat("a", 100_000):               false,
		deep(128):                                  true,
		deep(1_000):                                false,
		deep(50_000):                               false,
		strings.Repeat("/", 100_000):               false,
		strings.Repeat("manifests/", 10_000) + "x": false,
		strings.Repeat("-", 100_000):               false,
	} {
		if _, err := parse(t, "/v2/"+name+"/manifests/latest"); valid {
			assert.NoError(t, err)
		} else {
			assert.ErrorAs(t, err, new(*ocipath.Error), "%.20s", name)
		}
	}
}

// C5 and C7: a reference is a tag or a digest by its colon alone.
func TestBadTagsInPaths(t *testing.T) {
	for _, tag := range []string{
		"", ".", "..", ".a", "-a", "a@b", "a@sha256", "%D9%A1", "a%2fb", "a%2e", "%2e%2e", "a%00", "a%253Ab", "sha256%253A" + hex64, "a+b", "a%", "%3", "~",
		strings.Repeat("a", 129), strings.Repeat("a", 100_000),
	} {
		if tag == "a%" || tag == "%3" { // no client can send it in a URL that parses
			assert.Error(t, ocipath.CheckRef(tag))
			continue
		}
		assertInvalid(t, "/v2/app/manifests/"+tag, ocipath.Tag, tag)
	}
}

// C6: whatever a registry might call a digest and we cannot verify.
func TestBadDigestsInPaths(t *testing.T) {
	for _, digest := range badDigests() {
		assertInvalid(t, "/v2/app/manifests/"+digest, ocipath.Digest, digest)
		assertInvalid(t, "/v2/app/blobs/"+digest, ocipath.Digest, digest)
		assertInvalid(t, "/v2/app/referrers/"+digest, ocipath.Digest, digest)
	}
	assertInvalid(t, "/v2/app/manifests/sha256%3A", ocipath.Digest, "sha256:")
	assertInvalid(t, "/v2/app/manifests/sha256%3Aabc", ocipath.Digest, "sha256:abc")
	assertInvalid(t, "/v2/app/manifests/sha256%3A%3A"+hex64, ocipath.Digest, "sha256:%3A"+hex64)
	assertInvalid(t, "/v2/app/manifests/%73ha256:"+hex64, ocipath.Digest, "%73ha256:"+hex64)
}

func TestBlobsAndReferrersTakeNoTags(t *testing.T) {
	for _, ref := range []string{"", "latest", "uploads", hex64} {
		assertInvalid(t, "/v2/app/blobs/"+ref, ocipath.Digest, ref)
		assertInvalid(t, "/v2/app/referrers/"+ref, ocipath.Digest, ref)
	}
}

func TestNameIsJudgedBeforeTheReference(t *testing.T) {
	assertInvalid(t, "/v2/App/manifests/-x", ocipath.Name, "App")
}

func TestCanonicalPathIsTheInverseOfParse(t *testing.T) {
	for _, path := range []string{
		"/v2/", "/v2/_catalog", "/v2/app/manifests/latest", "/v2/a/b/manifests/" + sha512, "/v2/app/blobs/" + sha256, "/v2/app/referrers/" + sha256,
		"/v2/app/tags/list", "/v2/app/blobs/uploads/", "/v2/app/blobs/uploads/id=",
	} {
		got, err := parse(t, path)
		require.NoError(t, err)
		assert.Equal(t, path, got.String())
	}
	escaped, err := parse(t, "/v2/app/blobs/sha256%3a"+hex64)
	require.NoError(t, err)
	assert.Equal(t, "/v2/app/blobs/"+sha256, escaped.String(), "the colon is canonical")
}

func TestKindsHaveNames(t *testing.T) {
	want := []string{"base", "manifest", "blob", "referrers", "tags", "catalog", "upload"}
	for k := ocipath.Base; k <= ocipath.Upload; k++ {
		assert.Equal(t, want[k], k.String())
	}
	assert.Equal(t, "unknown", ocipath.Kind(-1).String())
	assert.Equal(t, "unknown", (ocipath.Upload + 1).String())
}

// The escaped colon is rare and costs two: net/url unescapes to compare, we join.
func TestParseOfAValidPathDoesNotAllocate(t *testing.T) {
	for path, limit := range map[string]float64{
		"/v2/hub/library/nginx/blobs/" + sha256:               0,
		"/v2/hub/library/nginx/manifests/latest":              0,
		"/v2/hub/library/nginx/manifests/sha256%3A" + hex64:   2,
		"/v2/hub/library/nginx/blobs/uploads/0d5a-session-id": 0,
	} {
		u, err := url.ParseRequestURI(path)
		require.NoError(t, err)
		got := testing.AllocsPerRun(100, func() { _, _ = ocipath.Parse(u) })
		assert.LessOrEqual(t, got, limit, path)
	}
}

func BenchmarkParse(b *testing.B) {
	for name, path := range map[string]string{
		"tag":     "/v2/hub/library/nginx/manifests/1.27-alpine",
		"digest":  "/v2/hub/library/nginx/blobs/" + sha256,
		"escaped": "/v2/hub/library/nginx/blobs/sha256%3A" + hex64,
		"hostile": "/v2/" + strings.Repeat("manifests/", 10_000) + "x",
	} {
		u, err := url.ParseRequestURI(path)
		require.NoError(b, err)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = ocipath.Parse(u)
			}
		})
	}
}
