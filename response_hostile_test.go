package pullthrough_test

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// The codes with which bad names, tags and digests may be refused.
var (
	badName   = []string{"NAME_INVALID", "NAME_UNKNOWN"}
	badTag    = []string{"TAG_INVALID", "NAME_INVALID", "NAME_UNKNOWN"}
	badDigest = []string{"DIGEST_INVALID"}
	badAny    = []string{"NAME_INVALID", "NAME_UNKNOWN", "TAG_INVALID", "DIGEST_INVALID"}
)

// hostileTargets are request targets, and the codes that fit.
var hostileTargets = map[string]struct {
	target string
	codes  []string
}{
	// C1
	"parent":                 {"/v2/hub/../a/manifests/v1", badName},
	"parents":                {"/v2/hub/a/../../../../etc/manifests/passwd", badName},
	"leading parent":         {"/v2/../hub/a/manifests/v1", badName},
	"this":                   {"/v2/hub/./a/manifests/v1", badName},
	"empty segment":          {"/v2/hub//a/manifests/v1", badName},
	"leading empty segment":  {"/v2//hub/a/manifests/v1", badName},
	"trailing empty segment": {"/v2/hub/a//manifests/v1", badName},
	"encoded dot":            {"/v2/hub/%2e/a/manifests/v1", badName},
	"encoded parent":         {"/v2/hub/%2e%2e/a/manifests/v1", badName},
	"half-encoded parent":    {"/v2/hub/.%2E/a/manifests/v1", badName},
	"encoded slash":          {"/v2/hub%2fa/manifests/v1", badName},
	"encoded slash, upper":   {"/v2/hub/a%2Fb/manifests/v1", badName},
	"encoded parent path":    {"/v2/hub/a%2f..%2f..%2fb/manifests/v1", badName},
	"double-encoded parent":  {"/v2/hub/%252e%252e/a/manifests/v1", badName},
	"double-encoded slash":   {"/v2/hub/a%252fb/manifests/v1", badName},
	"backslash":              {`/v2/hub\a/manifests/v1`, badName},
	"encoded backslash":      {"/v2/hub/a%5cb/manifests/v1", badName},
	"parent by backslash":    {"/v2/hub/..%5c..%5ca/manifests/v1", badName},
	"NUL in name":            {"/v2/hub/a%00b/manifests/v1", badName},
	"NUL at the end":         {"/v2/hub/a%00/manifests/v1", badName},
	"line break":             {"/v2/hub/a%0d%0aX:%20y/manifests/v1", badName},
	"space":                  {"/v2/hub/a%20b/manifests/v1", badName},
	"question mark":          {"/v2/hub/a%3fb/manifests/v1", badName},
	"hash":                   {"/v2/hub/a%23b/manifests/v1", badName},
	"parent for a blob":      {"/v2/hub/../a/blobs/sha256:" + testkit.Hex64, badName},
	"slash for a blob":       {"/v2/hub%2fa/blobs/sha256:" + testkit.Hex64, badName},
	"trailing slash":         {"/v2/hub/a/manifests/v1/", append([]string{"UNSUPPORTED"}, badAny...)},
	"no reference":           {"/v2/hub/a/manifests/", badAny},
	// C4
	"upper case":              {"/v2/hub/Alpine/manifests/v1", badName},
	"upper case prefix":       {"/v2/HUB/a/manifests/v1", badName},
	"unicode":                 {"/v2/hub/%C3%A4/manifests/v1", badName},
	"unicode as it is":        {"/v2/hub/ä/manifests/v1", badName},
	"full-width slash":        {"/v2/hub／a/manifests/v1", badName},
	"full-width dots":         {"/v2/hub/．．/a/manifests/v1", badName},
	"combining mark":          {"/v2/hub/a%CC%88/manifests/v1", badName},
	"overlong UTF-8":          {"/v2/hub/%C0%AE%C0%AE/a/manifests/v1", badName},
	"broken UTF-8":            {"/v2/hub/%ff%fe/manifests/v1", badName},
	"257 characters":          {"/v2/hub/" + strings.Repeat("a", 253) + "/manifests/v1", badName},
	"100,000 characters":      {"/v2/hub/" + strings.Repeat("a", 100_000) + "/manifests/v1", badName},
	"100,000 of them, a blob": {"/v2/hub/" + strings.Repeat("a", 100_000) + "/blobs/sha256:" + testkit.Hex64, badName},
	"1,000 segments":          {"/v2/hub" + strings.Repeat("/a", 1000) + "/manifests/v1", badName},
	"100,000 separators":      {"/v2/hub/a" + strings.Repeat("-", 100_000) + "b/manifests/v1", badName},
	"leading hyphen":          {"/v2/hub/-a/manifests/v1", badName},
	"trailing hyphen":         {"/v2/hub/a-/manifests/v1", badName},
	"three underscores":       {"/v2/hub/a___b/manifests/v1", badName},
	"two dots inside":         {"/v2/hub/a..b/manifests/v1", badName},
	"colon in name":           {"/v2/hub/a:b/manifests/v1", badName},
	"at in name":              {"/v2/hub/a@b/manifests/v1", badName},
	"a host in name":          {"/v2/evil.example:80/hub/a/manifests/v1", badName},
	// C5
	"129 character tag":  {"/v2/hub/a/manifests/" + strings.Repeat("a", 129), badTag},
	"100,000 of a tag":   {"/v2/hub/a/manifests/" + strings.Repeat("a", 100_000), badTag},
	"tag with a dot":     {"/v2/hub/a/manifests/.v1", badTag},
	"tag with a hyphen":  {"/v2/hub/a/manifests/-v1", badTag},
	"parent tag":         {"/v2/hub/a/manifests/..", badTag},
	"encoded parent tag": {"/v2/hub/a/manifests/%2e%2e", badTag},
	"slash in tag":       {"/v2/hub/a/manifests/v1%2f..%2fv2", badTag},
	"at in tag":          {"/v2/hub/a/manifests/v1@v2", badAny},
	"digest behind tag":  {"/v2/hub/a/manifests/v1@sha256:" + testkit.Hex64, badAny},
	"unicode digit":      {"/v2/hub/a/manifests/v%D9%A1", badTag},
	"NUL in tag":         {"/v2/hub/a/manifests/v1%00", badTag},
	"space in tag":       {"/v2/hub/a/manifests/v%201", badTag},
	"plus in tag":        {"/v2/hub/a/manifests/v1+1", badTag},
	"query in tag":       {"/v2/hub/a/manifests/v1%3Fn=1", badTag},
	"double-encoded tag": {"/v2/hub/a/manifests/v1%252e", badTag},
}

// hostileDigests are C6 and C7.
var hostileDigests = map[string]string{
	"63 digits":           "sha256:" + testkit.Hex64[:63],
	"65 digits":           "sha256:" + testkit.Hex64 + "0",
	"no digits":           "sha256:",
	"upper case":          "sha256:" + strings.ToUpper(testkit.Hex64),
	"no hex":              "sha256:" + strings.Repeat("g", 64),
	"upper-case name":     "SHA256:" + testkit.Hex64,
	"md5":                 "md5:d41d8cd98f00b204e9800998ecf8427e",
	"sha1":                "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
	"sha384":              "sha384:" + testkit.Hex64 + testkit.Hex64[:32],
	"short sha512":        "sha512:" + testkit.Hex64,
	"long sha512":         "sha512:" + testkit.Hex64 + testkit.Hex64 + "0",
	"b64":                 "sha256+b64:" + testkit.Hex64,
	"unknown":             "tarsum.v1+sha256:" + testkit.Hex64,
	"nothing before":      ":" + testkit.Hex64,
	"nothing":             ":",
	"two colons":          "sha256:sha256:" + testkit.Hex64,
	"100,000 digits":      "sha256:" + strings.Repeat("0", 100_000),
	"NUL":                 "sha256:" + testkit.Hex64[:63] + "%00",
	"line break":          "sha256:" + testkit.Hex64 + "%0a",
	"looks like a digest": "v1:latest",
}

// suspicious is a world that covers every name, and counts who is asked for a
// rule or a permission.
func suspicious(t *testing.T) (f *testkit.Face, asked *atomic.Int64) {
	t.Helper()
	asked = new(atomic.Int64)
	f = testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		rules, ok := p.Rules.(pullthrough.StaticRules)
		assert.True(t, ok)
		rules = append(rules, pullthrough.Rule{Prefix: "ROOT", UpstreamURL: rules[0].UpstreamURL})
		p.Rules = pullthrough.RuleSourceFunc(func(context.Context, string, string) ([]pullthrough.Rule, error) {
			asked.Add(1)
			return rules, nil
		})
	})
	f.Up.Push("a", "v1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))
	f.Up.Reset()
	return f, asked
}

func assertRefused(t *testing.T, f *testkit.Face, target string, codes []string) {
	t.Helper()
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		for _, proto := range []string{"HTTP/1.1", "HTTP/1.0"} {
			r := sendRaw(t, f.Server, method, target, proto)
			assert.Contains(t, []int{400, 404}, r.StatusCode)
			if method == http.MethodHead {
				assert.Empty(t, r.Content)
				continue
			}
			code, _ := testkit.OCIError(t, r)
			assert.Contains(t, codes, code, "%.200s: %d", target, r.StatusCode)
			if code != "NAME_UNKNOWN" && code != "UNSUPPORTED" { // the latter: no path of the API
				assert.Equal(t, 400, r.StatusCode, code)
			}
			assert.Less(t, len(r.Content), 4<<10, "a long name is not echoed")
		}
	}
}

func TestHostileNamesAndTagsReachNobody(t *testing.T) {
	f, asked := suspicious(t)
	for name, c := range hostileTargets {
		t.Run(name, func(t *testing.T) {
			assertRefused(t, f, c.target, c.codes)
			assert.Zero(t, asked.Swap(0), "the rules were asked for a name that is none")
		})
	}
	assert.Empty(t, f.Up.Log())
}

func TestHostileDigestsReachNobody(t *testing.T) {
	f, asked := suspicious(t)
	for name, d := range hostileDigests {
		t.Run(name, func(t *testing.T) {
			assertRefused(t, f, "/v2/hub/a/blobs/"+d, badDigest)
			assertRefused(t, f, "/v2/hub/a/manifests/"+d, append([]string{"TAG_INVALID"}, badDigest...))
			assert.Zero(t, asked.Swap(0), "the rules were asked for a digest that is none")
		})
	}
	for _, tag := range []string{"v1", "latest", "", testkit.Hex64, "sha256-" + testkit.Hex64} {
		t.Run("tag for a blob: "+tag, func(t *testing.T) {
			assertRefused(t, f, "/v2/hub/a/blobs/"+tag, badAny)
			assert.Zero(t, asked.Swap(0))
		})
	}
	assert.Empty(t, f.Up.Log())
}

// The Go API has no URL to protect it.
func TestHostileRequestsInGo(t *testing.T) {
	f, asked := suspicious(t)
	good := pullthrough.Request{Repo: testkit.Repo("a"), Ref: "v1"}
	for name, change := range map[string]func(*pullthrough.Request){
		"parent":        func(r *pullthrough.Request) { r.Repo.Name = "hub/../a" },
		"absolute":      func(r *pullthrough.Request) { r.Repo.Name = "/hub/a" },
		"trailing":      func(r *pullthrough.Request) { r.Repo.Name = "hub/a/" },
		"no name":       func(r *pullthrough.Request) { r.Repo.Name = "" },
		"upper case":    func(r *pullthrough.Request) { r.Repo.Name = "hub/A" },
		"long name":     func(r *pullthrough.Request) { r.Repo.Name = "hub/" + strings.Repeat("a", 100_000) },
		"NUL":           func(r *pullthrough.Request) { r.Repo.Name = "hub/a\x00" },
		"no reference":  func(r *pullthrough.Request) { r.Ref = "" },
		"parent tag":    func(r *pullthrough.Request) { r.Ref = ".." },
		"slash in tag":  func(r *pullthrough.Request) { r.Ref = "v1/../v2" },
		"long tag":      func(r *pullthrough.Request) { r.Ref = strings.Repeat("a", 129) },
		"bad digest":    func(r *pullthrough.Request) { r.Ref = "sha256:abc" },
		"sha384":        func(r *pullthrough.Request) { r.Ref = "sha384:" + testkit.Hex64 + testkit.Hex64[:32] },
		"digest in tag": func(r *pullthrough.Request) { r.Ref = "v1@sha256:" + testkit.Hex64 },
	} {
		t.Run(name, func(t *testing.T) {
			r := good
			change(&r)
			_, err := f.Manifest(t.Context(), r)
			assert.ErrorIs(t, err, pullthrough.ErrInvalid)
			status, code, _ := pullthrough.OCI(err)
			assert.Equal(t, 400, status)
			assert.Contains(t, badAny, code)
			_, err = f.Blob(t.Context(), r)
			assert.ErrorIs(t, err, pullthrough.ErrInvalid)
		})
	}
	_, err := f.Blob(t.Context(), good)
	assert.ErrorIs(t, err, pullthrough.ErrInvalid, "a blob has no tags")
	_, code, _ := pullthrough.OCI(err)
	assert.Equal(t, "DIGEST_INVALID", code)
	assert.Zero(t, asked.Load())
	assert.Empty(t, f.Up.Log())
}

// C3, over HTTP.
func TestPrefixesMatchWholeComponents(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
	f.Up.Push("a", "v1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))
	f.Up.Reset()
	for _, target := range []string{"/v2/hub/manifests/v1", "/v2/hubx/a/manifests/v1", "/v2/hu/a/manifests/v1", "/v2/aa/manifests/v1", "/v2/a/hub/manifests/v1"} {
		testkit.AssertOCI(t, sendRaw(t, f.Server, http.MethodGet, target, "HTTP/1.1"), 404, "NAME_UNKNOWN")
	}
	assertRefused(t, f, "/v2/hub//a/manifests/v1", badName)
	assertRefused(t, f, "/v2/hub//manifests/v1", badName)
	assert.Empty(t, f.Up.Log())
}

func TestNamesAndTagsWithWordsOfTheAPI(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	for _, name := range []string{
		"blobs", "manifests", "tags", "uploads", "referrers", "v2", "tags/list", "blobs/uploads", "manifests/manifests", "blobs/blobs",
		"a/manifests/blobs/tags", "blobs/manifests/tags", "a/referrers/b", "a/tags/list", "manifests/v1", "a/blobs/uploads/b", "a__b/c.d/e-f--g",
		strings.Repeat("a", 256-len(testkit.Prefix+"/")), // Amazon ECR's limit
	} {
		for _, tag := range []string{"v1", "blobs", "manifests", "list", "uploads", "V1.2_3-x", "_", strings.Repeat("9", 128), "sha256-" + testkit.Hex64 + ".sig"} {
			t.Run(name+" "+tag, func(t *testing.T) {
				f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
				f.Up.Push(name, tag, img)
				f.Up.Reset()
				paths := []string{testkit.ManifestPath(name, tag), testkit.BlobPath(name, img.Layers[0].Digest)}
				for range 2 { // cold, warm
					testkit.AssertManifest(t, f.Get(t, paths[0]), http.MethodGet, img, img.Digest)
					testkit.AssertSame(t, testkit.BlobContent(t, img.Layers[0]), f.Get(t, paths[1]).Content)
					f.Settled(t)
				}
				assert.Equal(t, []string{testkit.UpstreamGet(paths[0], 200), testkit.UpstreamGet(paths[1], 200)}, f.Up.Log())
			})
		}
	}
}

func TestSHA512IsADigestLikeAnother(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Algorithm: digest.SHA512})
	f.Up.Push("a", "v1", img)
	f.Up.Reset()
	paths := []string{testkit.ManifestPath("a", img.Digest.String()), testkit.BlobPath("a", img.Layers[0].Digest)}
	for range 2 { // cold, warm
		testkit.AssertManifest(t, f.Get(t, paths[0]), http.MethodGet, img, img.Digest)
		r := f.Get(t, paths[1])
		testkit.AssertContent(t, r, img.Layers[0].Digest, testkit.OctetStream, int(img.Layers[0].Size))
		f.Settled(t)
	}
	assert.Equal(t, []string{testkit.UpstreamGet(paths[0], 200), testkit.UpstreamGet(paths[1], 200)}, f.Up.Log())
}

// C24: lists have an end and a page a limit, whatever n and last are; tags and the
// catalog cost upstream nothing, and referrers one request.
func TestListsAreBounded(t *testing.T) {
	f, _ := suspicious(t)
	for _, path := range []string{"/v2/_catalog", "/v2/hub/a/tags/list", "/v2/hub/a/referrers/sha256:" + testkit.Hex64} {
		for _, query := range []string{
			"", "?n=0", "?n=-1", "?n=99999999999999999999", "?n=2147483648&last=v1", "?n=x", "?last=" + strings.Repeat("a", 100_000), "?last=%00",
			"?artifactType=" + strings.Repeat("a", 100_000),
		} {
			r := f.Get(t, path+query)
			assert.NoError(t, r.Err)
			assert.Less(t, r.StatusCode, 500, path)
			assert.Less(t, len(r.Content), 64<<10)
			if r.StatusCode >= 400 {
				code, _ := testkit.OCIError(t, r)
				assert.NotEmpty(t, code)
			}
		}
	}
	assert.Equal(t, []string{testkit.UpstreamGet("/v2/hub/a/referrers/sha256:"+testkit.Hex64, 200)}, f.Up.Log())
}

// Looks are cheap, however many there are.
func TestManyLooksAtAColdBlob(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 8 << 20})
	f.Up.Push("a", "v1", img)
	f.Up.Reset()
	for range 20 {
		r := f.Ask(t, http.MethodHead, testkit.BlobPath("a", img.Layers[0].Digest))
		testkit.AssertContent(t, r, img.Layers[0].Digest, testkit.OctetStream, 8<<20)
	}
	var sent int64
	for _, r := range f.Up.Requests() {
		assert.Equal(t, http.MethodGet, r.Method)
		assert.NotEmpty(t, r.Range)
		sent += r.Bytes
	}
	assert.Less(t, sent, int64(64<<10))
}
