package upstream_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/referrerlist"
	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// twoPages answers a list of referrers in two pages, of which the first names next.
func twoPages(next string) func(http.ResponseWriter, *http.Request) bool {
	page := func(digit string) string {
		return `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[
			{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"urls":["http://evil.test/"],"digest":"sha256:` + strings.Repeat(digit, 64) + `"},
			{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"digest":"md5:00"}]}`
	}
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/referrers/") {
			return false
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
		if r.URL.RawQuery != "" {
			_, _ = w.Write([]byte(page("b")))
			return true
		}
		w.Header().Set("Link", "<"+next+`>; rel="next"`)
		_, _ = w.Write([]byte(page("a")))
		return true
	}
}

func TestReferrersComePageByPage(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{Handler: twoPages("?last=a")})
	img := w.push(pullthroughtest.ImageOptions{})
	all, _, err := w.Referrers(t.Context(), w.target, img.Digest)
	require.NoError(t, err)
	require.Len(t, all.Manifests, 2, "what cannot be verified is left out")
	assert.Equal(t, "sha256:"+strings.Repeat("b", 64), all.Manifests[1].Digest.String())
	assert.Empty(t, all.Manifests[0].URLs)
	path := "GET /v2/a/referrers/" + img.Digest.String()
	assert.Equal(t, []string{path + " 200", path + " 200"}, paths(w.up))
}

func TestTheNextPageIsOfTheSameList(t *testing.T) {
	for _, next := range []string{"http://elsewhere.test/v2/a/referrers/x?last=a", "/v2/b/referrers/x?last=a"} {
		w := newWorld(t, pullthroughtest.Config{Handler: twoPages(next)})
		img := w.push(pullthroughtest.ImageOptions{})
		_, _, err := w.Referrers(t.Context(), w.target, img.Digest)
		assert.ErrorIs(t, err, upstream.ErrUnavailable)
		assert.Len(t, w.up.Log(), 1)
	}
}

func TestARegistryWithoutReferrersHasAnEmptyListOrATag(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{})
	subject := w.push(pullthroughtest.ImageOptions{})
	w.up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/referrers/*", Status: 404})
	all, _, err := w.Referrers(t.Context(), w.target, subject.Digest)
	require.NoError(t, err)
	assert.Equal(t, referrerlist.Empty(), all)

	w.target.Options.ReferrersTag = true
	signature := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1, ArtifactType: "application/x-signature", Subject: subject})
	w.up.Push("a", "sig", signature)
	w.up.Push("a", strings.ReplaceAll(subject.Digest.String(), ":", "-"), pullthroughtest.NewIndex(signature))
	all, _, err = w.Referrers(t.Context(), w.target, subject.Digest)
	require.NoError(t, err)
	require.Len(t, all.Manifests, 1)
	assert.Equal(t, signature.Digest, all.Manifests[0].Digest)
	assert.Equal(t, 1, w.up.Count("GET /v2/a/manifests/sha256-* 200"))
}

// Registries say in several ways that they have no referrers API. Only 404 is sure.
func testNoReferrersAPI(t *testing.T) {
	const challenge = `Basic realm="x"`
	with := give(upstream.Credential{Username: "me", AccessToken: canary})
	for name, c := range map[string]struct {
		status     int
		challenge  string
		credential func(context.Context) (upstream.Credential, error)
		sure       bool
		err        error // nil: it has no API
	}{
		"404":                           {status: 404, sure: true},
		"404, with a credential":        {status: 404, credential: with, sure: true},
		"400":                           {status: 400},
		"405":                           {status: 405},
		"406":                           {status: 406},
		"501":                           {status: 501},
		"501, with a credential":        {status: 501, credential: with},
		"401":                           {status: 401},
		"403":                           {status: 403},
		"403, an empty credential":      {status: 403, credential: give(upstream.Credential{})},
		"401, with a challenge":         {status: 401, challenge: challenge, err: upstream.ErrDenied},
		"401, with a credential":        {status: 401, credential: with, err: upstream.ErrDenied},
		"403, with a credential":        {status: 403, credential: with, err: upstream.ErrDenied},
		"403, and the credential fails": {status: 403, credential: fail, err: upstream.ErrDenied},
		"409":                           {status: 409, err: upstream.ErrUnavailable},
		"429":                           {status: 429, err: upstream.ErrRateLimited},
		"500":                           {status: 500, err: upstream.ErrUnavailable},
		"503":                           {status: 503, err: upstream.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{Handler: func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/referrers/") {
					return false
				}
				if c.challenge != "" {
					w.Header().Set("WWW-Authenticate", c.challenge)
				}
				w.WriteHeader(c.status)
				return true
			}})
			w.target.Credential, w.target.Options.Retries = c.credential, -1
			subject := w.push(pullthroughtest.ImageOptions{})
			signature := w.signs(subject)
			all, sure, err := w.Referrers(t.Context(), w.target, subject.Digest)
			if c.err != nil {
				assert.ErrorIs(t, err, c.err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, referrerlist.Empty(), all)
			assert.Equal(t, c.sure, sure)
			assert.Zero(t, w.up.Count("*/manifests/*"))
			w.target.Options.ReferrersTag = true
			all, sure, err = w.Referrers(t.Context(), w.target, subject.Digest)
			require.NoError(t, err)
			require.Len(t, all.Manifests, 1)
			assert.Equal(t, signature.Digest, all.Manifests[0].Digest)
			assert.Equal(t, c.sure, sure)
			assert.Equal(t, 1, w.up.Count("*/manifests/*"))
		})
	}
}

func fail(context.Context) (upstream.Credential, error) {
	return upstream.Credential{}, errors.New("no")
}

// signs makes an artifact that refers to the subject, under the subject's referrers tag.
func (w *world) signs(subject *pullthroughtest.Image) (signature *pullthroughtest.Image) {
	signature = pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1, ArtifactType: "application/x-signature", Subject: subject})
	w.up.Push("a", "sig", signature)
	w.up.Push("a", strings.ReplaceAll(subject.Digest.String(), ":", "-"), pullthroughtest.NewIndex(signature))
	return signature
}

// A page that is refused after others came is a failure, and no list that ends there.
func TestALaterPageThatIsRefusedIsAFailure(t *testing.T) {
	for _, status := range []int{400, 403, 404, 405, 501} {
		pages := twoPages("?last=a")
		w := newWorld(t, pullthroughtest.Config{Handler: func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.RawQuery == "" {
				return pages(w, r)
			}
			w.WriteHeader(status)
			return true
		}})
		_, _, err := w.Referrers(t.Context(), w.target, digest.FromString("subject"))
		assert.Error(t, err, status)
		assert.Len(t, w.up.Log(), 2)
	}
}

// What stands under the referrers tag need not be a list of referrers.
func testReferrersTagOfSomethingElse(t *testing.T) {
	child := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1})
	other := digest.FromString("subject")
	index := pullthroughtest.NewIndex(child)
	for name, c := range map[string]struct {
		subject digest.Digest
		tagged  *pullthroughtest.Image
		length  int
	}{
		"a list":                 {other, index, 1},
		"an image":               {other, child, 0},
		"an image, the subject":  {child.Digest, child, 0},
		"an index, the subject":  {index.Digest, index, 0},
		"the subject, by sha512": {digest.SHA512.FromBytes(index.Content), index, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{})
			w.target.Options.ReferrersTag = true
			w.up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/referrers/*", Status: 404})
			tag := strings.ReplaceAll(c.subject.String(), ":", "-")
			w.up.Push("a", tag[:min(len(tag), 128)], c.tagged)
			if c.subject.Algorithm() == digest.SHA512 {
				w.up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/manifests/*", Status: 200, Body: index.Content, Header: http.Header{"Content-Type": {index.MediaType}}})
			}
			all, _, err := w.Referrers(t.Context(), w.target, c.subject)
			require.NoError(t, err)
			assert.Len(t, all.Manifests, c.length)
			assert.Equal(t, 1, w.up.Count("GET /v2/a/manifests/*"))
		})
	}
}

// A Link header is read as RFC 8288 has it.
func testLinksToTheNextPage(t *testing.T) {
	const path = "/v2/a/referrers/"
	for name, header := range map[string]func(path string) http.Header{
		"two links in one header": func(p string) http.Header {
			return http.Header{"Link": {"<" + p + `?n=1>; rel="first", <` + p + `?n=1&last=x>; rel="next"`}}
		},
		"two headers": func(p string) http.Header {
			return http.Header{"Link": {"<" + p + ">; rel=first", "<" + p + "?last=x>; rel=next"}}
		},
		"several relations": func(p string) http.Header { return http.Header{"Link": {"<" + p + `?last=x>; rel="last next"`}} },
		"commas and quotes": func(p string) http.Header {
			return http.Header{"Link": {"<" + p + `?last=a,b>; title="a, <b>; \"c\""; rel="next"`}}
		},
		"a target of its own": func(p string) http.Header { return http.Header{"Link": {"<?last=x>;rel=next"}} },
	} {
		t.Run(name, func(t *testing.T) {
			pages := twoPages("")
			w := newWorld(t, pullthroughtest.Config{Handler: func(w http.ResponseWriter, r *http.Request) bool {
				return pages(&linking{w, header(r.URL.Path)}, r)
			}})
			all, _, err := w.Referrers(t.Context(), w.target, digest.FromString("subject"))
			require.NoError(t, err)
			assert.Len(t, all.Manifests, 2)
			assert.Equal(t, 2, w.up.Count("GET "+path+"*"))
			assert.Len(t, w.up.Log(), 2)
		})
	}
}

// linking replaces the Link headers of an answer that has any.
type linking struct {
	http.ResponseWriter
	link http.Header
}

func (l *linking) Write(p []byte) (int, error) {
	if l.Header().Get("Link") != "" {
		l.Header()["Link"] = l.link["Link"]
	}
	return l.ResponseWriter.Write(p)
}

// pagesOf answers a list of referrers page by page: a page for each of the lists of
// descriptors.
func pagesOf(pages func(i int) (descriptors string, more bool)) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/referrers/") {
			return false
		}
		i, _ := strconv.Atoi(r.URL.Query().Get("page"))
		descriptors, more := pages(i)
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		if more {
			w.Header().Set("Link", fmt.Sprintf(`<?page=%d>; rel="next"`, i+1))
		}
		_, _ = io.WriteString(w, `{"schemaVersion":2,"manifests":[`+descriptors+`],"mediaType":"`+ocispec.MediaTypeImageIndex+`"}`)
		return true
	}
}

// referring are n descriptors, of which each has more in it.
func referring(page, n int, more string) string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf(`{"mediaType":%q,"size":3,"digest":%q%s}`, ocispec.MediaTypeImageManifest, digest.FromString(fmt.Sprint(page, i)), more)
	}
	return strings.Join(all, ",")
}

func TestAListOfReferrersHasALimit(t *testing.T) {
	const limit = 4 << 20
	pad := strings.Repeat("x", 40_000)
	for name, c := range map[string]struct {
		pages  func(i int) (string, bool)
		length int // 0: it is refused
		kept   int // at most so many have annotations, and at least one if it is not 0
		err    error
	}{
		"pages of annotations": {func(i int) (string, bool) { return referring(i, 100, `,"annotations":{"a":"`+pad+`"}`), i < 4 }, 500, limit / 2 / len(pad), nil},
		"one that is too large, among others": {func(i int) (string, bool) {
			return referring(i, 1, `,"annotations":{"a":"`+strings.Repeat(pad, 100)+`"}`), i < 3
		}, 4, 0, nil},
		"long types":   {func(i int) (string, bool) { return referring(i, 100, `,"artifactType":"`+pad[:5000]+`"`), i < 39 }, 0, 0, upstream.ErrTooLarge},
		"many":         {func(i int) (string, bool) { return referring(i, 2000, ""), i < 9 }, 0, 0, upstream.ErrTooLarge},
		"without end":  {func(i int) (string, bool) { return referring(i, 1, ""), true }, 0, 0, upstream.ErrTooLarge},
		"of nothing":   {func(int) (string, bool) { return strings.Repeat("{},", limit/3-100) + "{}", false }, 0, 0, nil},
		"of nulls":     {func(int) (string, bool) { return strings.Repeat("null,", limit/5-100) + "null", false }, 0, 0, nil},
		"embedded":     {func(i int) (string, bool) { return referring(i, 100, `,"data":"`+pad+`"`), i < 4 }, 500, 0, nil},
		"of no object": {func(int) (string, bool) { return `3`, false }, 0, 0, upstream.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{Handler: pagesOf(c.pages)})
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			all, _, err := w.Referrers(t.Context(), w.target, digest.FromString("subject"))
			runtime.GC()
			runtime.ReadMemStats(&after)
			assert.Less(t, int64(after.HeapAlloc)-int64(before.HeapAlloc), int64(24<<20))
			if c.err != nil {
				assert.ErrorIs(t, err, c.err)
				assert.Nil(t, all)
				return
			}
			require.NoError(t, err)
			assert.Len(t, all.Manifests, c.length, "none is left out")
			encoded, err := json.Marshal(all)
			require.NoError(t, err)
			assert.Less(t, len(encoded), limit+1000)
			kept := len(slices.DeleteFunc(slices.Clone(all.Manifests), func(d ocispec.Descriptor) bool { return d.Annotations == nil }))
			assert.LessOrEqual(t, kept, c.kept)
			assert.Equal(t, c.kept > 0, kept > 0)
		})
	}
}
