package ecr_test

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// artifacts are as many that refer to something.
func artifacts(n int) (all []*pullthroughtest.Image) {
	for i := range n {
		all = append(all, pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i), ArtifactType: signatureType, Layers: -1, Subject: testkit.Image(int64(i))}))
	}
	return all
}

// paged answers requests for referrers with pages of so many of the artifacts.
// link is the Link header of a page that the one at offset next follows.
func paged(all []*pullthroughtest.Image, size int, link func(path, next string) string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/referrers/") {
			return false
		}
		from, _ := strconv.Atoi(r.URL.Query().Get("from"))
		page := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
		for _, img := range all[from:min(from+size, len(all))] {
			page.Manifests = append(page.Manifests, img.Descriptor())
		}
		if from+size < len(all) {
			w.Header().Set("Link", link(r.URL.Path, strconv.Itoa(from+size)))
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		_ = json.NewEncoder(w).Encode(page)
		return true
	}
}

func linkTo(path, next string) string { return "<" + path + "?from=" + next + `>; rel="next"` }

func testPagesOfReferrers(t *testing.T) {
	all := artifacts(7)
	subject := digest.FromString("subject")
	for name, link := range map[string]func(path, next string) string{
		"a path":          linkTo,
		"a query":         func(_, next string) string { return "<?from=" + next + `>; rel="next"` },
		"without quotes":  func(path, next string) string { return "<" + path + "?from=" + next + ">; rel=next" },
		"more parameters": func(path, next string) string { return "<" + path + "?n=3&from=" + next + `>; title="x"; rel="next"` },
	} {
		t.Run(name, func(t *testing.T) {
			e := startECR(t, pullthroughtest.Config{Handler: paged(all, 3, link)})
			e.lists(t, subject, all...)
			e.lists(t, subject, all...)
			e.askedForList(t, 3)
		})
	}
	t.Run("a URL", func(t *testing.T) {
		e := startECR(t, pullthroughtest.Config{Handler: func(w http.ResponseWriter, r *http.Request) bool {
			return paged(all, 3, func(path, next string) string { return linkTo("http://"+r.Host+path, next) })(w, r)
		}})
		e.lists(t, subject, all...)
		e.askedForList(t, 3)
	})
	t.Run("elsewhere", testPagesElsewhere)
}

func testPagesElsewhere(t *testing.T) {
	all, subject := artifacts(7), digest.FromString("subject")
	for name, link := range map[string]func(path, next string) string{
		"another repository": func(path, next string) string { return linkTo(strings.Replace(path, "/a/", "/b/", 1), next) },
		"another subject": func(path, next string) string {
			return linkTo(strings.Replace(path, subject.String(), digest.FromString("x").String(), 1), next)
		},
		"another kind": func(path, next string) string {
			return linkTo(strings.Replace(path, "/referrers/", "/manifests/", 1), next)
		},
		"what climbs":    func(path, next string) string { return linkTo(path+"/../"+digest.FromString("x").String(), next) },
		"another port":   func(path, next string) string { return linkTo("http://127.0.0.1:1"+path, next) },
		"another scheme": func(path, next string) string { return linkTo("file://"+path, next) },
	} {
		t.Run(name, func(t *testing.T) {
			e := startECR(t, pullthroughtest.Config{Handler: paged(all, 3, link)}, testkit.OneTry)
			e.refusesAt(t, referrersPath("a", subject), 502, "UNKNOWN", sayUnavailable)
			e.askedForList(t, 1)
		})
	}
	t.Run("another host, with the token", func(t *testing.T) {
		elsewhere := pullthroughtest.New(t, pullthroughtest.Config{})
		c := pullthroughtest.Config{Auth: pullthroughtest.Bearer, Handler: func(w http.ResponseWriter, r *http.Request) bool {
			return r.Header.Get("Authorization") != "" && paged(all, 3, func(path, next string) string { return linkTo(elsewhere.URL+path, next) })(w, r)
		}}
		e := startECR(t, c, testkit.OneTry)
		e.refusesAt(t, referrersPath("a", subject), 502, "UNKNOWN", sayUnavailable)
		assert.Empty(t, elsewhere.Log())
	})
}

func testReferrersWithoutEnd(t *testing.T) {
	all := artifacts(1)
	subject := digest.FromString("subject")
	ever := 0
	for name, link := range map[string]func(path, next string) string{
		"the same page": linkTo,
		"always another": func(path, _ string) string {
			ever++
			return "<" + path + "?page=" + strconv.Itoa(ever) + `>; rel="next"`
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := startECR(t, pullthroughtest.Config{Handler: func(w http.ResponseWriter, r *http.Request) bool {
				w.Header().Set("Link", link(r.URL.Path, "0"))
				return paged(all, 1, linkTo)(w, r)
			}}, testkit.OneTry)
			testkit.AssertOCI(t, e.Get(t, referrersPath("a", subject)), 502, "UNKNOWN")
			assert.LessOrEqual(t, e.Up.Count("*"), 100)
		})
	}
	t.Run("pages without end of many each", func(t *testing.T) {
		many := artifacts(1)
		for len(many) < 10_001 {
			many = append(many, many[0])
		}
		e := startECR(t, pullthroughtest.Config{Handler: paged(many, 5000, linkTo)}, testkit.OneTry)
		testkit.AssertOCI(t, e.Get(t, referrersPath("a", subject)), 502, "UNKNOWN")
		assert.LessOrEqual(t, e.Up.Count("*"), 3)

		most := startECR(t, pullthroughtest.Config{Handler: paged(many[1:], 5000, linkTo)}, testkit.OneTry)
		list, err := most.Referrers(t.Context(), pullthrough.Request{Repo: ecrRepo("a"), Ref: subject.String()}, "")
		require.NoError(t, err)
		assert.Len(t, list.Manifests, 10_000)
	})
	t.Run("one page without end", func(t *testing.T) {
		e := startECR(t, pullthroughtest.Config{}, testkit.OneTry)
		e.push("1", testkit.Image(1))
		e.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/referrers/*", NoLength: true, Extend: 1 << 40})
		testkit.AssertOCI(t, e.Get(t, referrersPath("a", subject)), 502, "UNKNOWN")
		sent := int64(0)
		for _, r := range e.Up.Requests() {
			sent += r.Bytes
		}
		assert.Less(t, sent, int64(16<<20), "4 MiB, and what was on its way")
	})
}
