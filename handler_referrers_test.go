package pullthrough_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
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

// signatures is a registry of the host's own that lists referrers, page by page. It answers
// as answer says, if that is not nil.
type signatures struct {
	*shelf
	pages  [][]ocispec.Descriptor
	link   func(path string, page int) string // "": it has the usual one
	answer http.HandlerFunc
	got    []http.Header
	query  []string
}

func (s *signatures) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.Contains(r.URL.Path, "/referrers/") {
		s.shelf.ServeHTTP(w, r)
		return
	}
	s.mu.Lock()
	s.asked = append(s.asked, r.Method+" "+r.URL.Path)
	s.got, s.query = append(s.got, r.Header.Clone()), append(s.query, r.URL.RawQuery)
	s.mu.Unlock()
	if s.answer != nil {
		s.answer(w, r)
		return
	}
	page, _ := strconv.Atoi(r.URL.Query().Get("page"))
	if page+1 < len(s.pages) {
		link := fmt.Sprintf(`</first>; rel="first", <%s?page=%d>; rel="next"`, r.URL.Path, page+1)
		if s.link != nil {
			link = s.link(r.URL.Path, page+1)
		}
		w.Header().Set("Link", link)
	}
	w.Header().Set("X-Next", "yes")
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: s.pages[page]}
	_ = json.NewEncoder(w).Encode(index)
}

func signature(name, kind string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(name), Size: 1, ArtifactType: kind}
}

// listed is a world whose upstream lists an artifact of the image, before a registry that
// lists two, on two pages.
type listed struct {
	*beside
	next      *signatures
	upstreams *pullthroughtest.Image
}

func newListed(t *testing.T, change func(*pullthrough.Proxy)) *listed {
	t.Helper()
	next := &signatures{shelf: newShelf(), pages: [][]ocispec.Descriptor{{signature("mine", "a/sig")}, {signature("bom", "a/bom")}}}
	w := testkit.NewWorld(t, pullthroughtest.Config{}, change)
	l := &listed{beside: &beside{Face: &testkit.Face{World: w, Server: testkit.Serve(t, w.Handler(next))}, shelf: next.shelf}, next: next}
	l.img = testkit.Image(1)
	l.upstreams = pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, ArtifactType: "a/sig", Subject: l.img})
	l.Up.Push("a", "1", l.img)
	l.Up.Push("a", "sig", l.upstreams)
	l.Up.Reset()
	return l
}

func (l *listed) path() string { return "/v2/hub/a/referrers/" + l.img.Digest.String() }

// lists asks for the list, which must be of these.
func (l *listed) lists(t *testing.T, uri string, want ...digest.Digest) testkit.Reply {
	t.Helper()
	r := l.Get(t, uri)
	require.Equal(t, 200, r.StatusCode, "%s", r.Content)
	assert.Equal(t, ocispec.MediaTypeImageIndex, r.Header.Get("Content-Type"))
	var index ocispec.Index
	require.NoError(t, json.Unmarshal(r.Content, &index))
	require.NotNil(t, index.Manifests, "%s", r.Content)
	got := []digest.Digest{}
	for _, d := range index.Manifests {
		got = append(got, d.Digest)
	}
	assert.Equal(t, append([]digest.Digest{}, want...), got)
	assert.Empty(t, r.Header.Get("Link"))
	assert.Empty(t, r.Header.Get("X-Next"), "the answer is our own")
	return r
}

var mine, bom = digest.FromString("mine"), digest.FromString("bom")

func TestReferrersAreThoseOfUpstreamAndOfNext(t *testing.T) {
	l := newListed(t, nil)
	up := l.upstreams.Digest
	assert.Empty(t, l.lists(t, l.path(), mine, bom, up).Header.Get("OCI-Filters-Applied"))
	assert.Equal(t, []string{"GET " + l.path(), "GET " + l.path()}, l.take())
	assert.Equal(t, 1, l.Up.Count("*"))

	r := l.lists(t, l.path()+"?artifactType=a/sig&n=1", mine, up)
	assert.Equal(t, "artifactType", r.Header.Get("OCI-Filters-Applied"))
	l.lists(t, l.path()+"?artifactType=a/bom", bom)
	l.lists(t, l.path()+"?artifactType=a/none")
	assert.NotContains(t, strings.Join(l.next.query, " "), "artifactType", "it is asked for the whole list")

	h := l.Ask(t, http.MethodHead, l.path())
	assert.Equal(t, 200, h.StatusCode)
	assert.Equal(t, l.Get(t, l.path()).Header.Get("Content-Length"), h.Header.Get("Content-Length"))

	l.next.got = nil
	l.Get(t, l.path(), "Authorization", "Bearer ann", "Accept-Encoding", "gzip", "Range", "bytes=0-1", "If-None-Match", "x", "X-Own", "y")
	for _, h := range l.next.got {
		assert.Equal(t, "Bearer ann", h.Get("Authorization"))
		assert.Equal(t, "y", h.Get("X-Own"))
		for _, name := range []string{"Accept-Encoding", "Range", "If-None-Match"} {
			assert.Empty(t, h.Get(name))
		}
	}
	assert.Equal(t, 1, l.Up.Count("*"), "the list is kept")

	// An artifact that is pulled through is in both.
	l.next.pages = [][]ocispec.Descriptor{{signature("mine", "a/sig"), l.upstreams.Descriptor()}}
	l.lists(t, l.path(), mine, up)
}

func TestNextsReferrersWhereUpstreamHasNone(t *testing.T) {
	for name, c := range map[string]struct {
		policy pullthrough.Policy
		status int
		known  bool
	}{
		"upstream fails":                     {policy: pullthrough.Policy{Retries: -1}, status: 500},
		"upstream fails, and a list is kept": {policy: pullthrough.Policy{Retries: -1}, status: 500, known: true},
		"upstream refuses us":                {status: 401},
		"upstream has no API":                {status: 404},
		"upstream is not to be asked":        {policy: pullthrough.Policy{Offline: true}},
	} {
		t.Run(name, func(t *testing.T) {
			policy := pullthrough.Policy{}
			l := newListed(t, func(p *pullthrough.Proxy) {
				p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy { return policy }
			})
			want := []digest.Digest{mine, bom}
			if c.known {
				policy.ReferrersTTL = pullthrough.EveryPull
				want = append(want, l.upstreams.Digest)
				l.lists(t, l.path(), want...)
				c.policy.ReferrersTTL = pullthrough.EveryPull
			}
			policy = c.policy
			l.Up.Reset()
			if c.status != 0 {
				l.Up.Fault(pullthroughtest.Fault{Status: c.status})
			}
			l.lists(t, l.path(), want...)
			assert.Equal(t, c.status != 0, l.Up.Count("*") > 0)
		})
	}
}

// What cannot be read of next's is left out, as upstream's is.
func TestAListOfNextsThatIsNoneIsLeftOut(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, `{"manifests":[]}`)
		}
	}
	for name, answer := range map[string]http.HandlerFunc{
		"no such route": status(404), "a refusal": status(403), "a login": status(401), "another method": status(405), "not implemented": status(501), "a failure": status(500), "a redirect": status(307),
		"a page":  func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
		"nothing": func(http.ResponseWriter, *http.Request) {},
		"too much": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"manifests":[`+strings.Repeat(" ", 4<<20)+`]}`)
		},
		"compressed": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = io.WriteString(w, `{"manifests":[]}`)
		},
		"a panic": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"no next page": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RawQuery != "" {
				w.WriteHeader(404)
				return
			}
			w.Header().Set("Link", `<?page=1>; rel="next"`)
			_, _ = io.WriteString(w, `{"manifests":[]}`)
		},
		"pages without end": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "<?page=x"+r.URL.Query().Get("page")+`>; rel="next"`)
			_, _ = io.WriteString(w, `{"manifests":[]}`)
		},
		"a page of another list": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", `</v2/hub/b/referrers/x?page=1>; rel="next"`)
			_, _ = io.WriteString(w, `{"manifests":[]}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newListed(t, testkit.OneTry)
			l.next.answer = answer
			l.lists(t, l.path(), l.upstreams.Digest)
			assert.LessOrEqual(t, len(l.take()), 100)
			assert.Equal(t, 1, l.Up.Count("*"))
			unknown := "/v2/hub/a/referrers/" + someDigest.String()
			l.Up.Fault(pullthroughtest.Fault{Status: 500})
			want := 502
			if name == "a refusal" || name == "a login" {
				want = map[string]int{"a refusal": 403, "a login": 401}[name]
			}
			assert.Equal(t, want, l.Get(t, unknown).StatusCode)
			assert.Equal(t, want, l.Ask(t, http.MethodHead, unknown).StatusCode)
		})
	}
}

// The registry may name itself as its clients do.
func TestNextsPagesMayHaveAnotherOrigin(t *testing.T) {
	l := newListed(t, nil)
	l.next.link = func(path string, page int) string {
		return fmt.Sprintf(`<https://registry.example%s?page=%d>; rel=next`, path, page)
	}
	l.lists(t, l.path(), mine, bom, l.upstreams.Digest)
	assert.Equal(t, 1, l.Up.Count("*"))
}

func TestWithAskNextARefusalOfTheListIsTheAnswer(t *testing.T) {
	for _, ask := range []bool{true, false} {
		l := newListed(t, func(p *pullthrough.Proxy) { p.AskNext = ask })
		for _, status := range []int{401, 403} {
			l.next.answer = func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("WWW-Authenticate", "next's")
				w.WriteHeader(status)
				_, _ = io.WriteString(w, "next refuses")
			}
			if !ask {
				l.lists(t, l.path(), l.upstreams.Digest)
				continue
			}
			r := l.Get(t, l.path())
			assert.Equal(t, status, r.StatusCode)
			assert.Equal(t, "next's", r.Header.Get("WWW-Authenticate"))
			assert.Equal(t, "next refuses", string(r.Content))
		}
	}
}

// As from ServeHTTP: the list is no secret, and it is not known whether there is one. What
// next lists is next's to give.
func TestReferrersWithoutImportAreWhatIsKnown(t *testing.T) {
	refuse := map[pullthrough.Action]error{pullthrough.ActionImport: pullthrough.ErrDenied}
	door := &testkit.Door{Refuse: refuse}
	l := newListed(t, func(p *pullthrough.Proxy) { p.Authorize = door.Authorize })
	l.lists(t, l.path(), mine, bom)
	for _, status := range []int{401, 404} {
		l.next.answer = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
		l.lists(t, l.path())
	}
	assert.Empty(t, l.Up.Log())
	l.next.answer = nil
	door.Set(nil)
	l.lists(t, l.path(), mine, bom, l.upstreams.Digest)
	door.Set(refuse)
	l.lists(t, l.path(), mine, bom, l.upstreams.Digest)
	l.take()
	door.Set(map[pullthrough.Action]error{pullthrough.ActionPull: pullthrough.ErrDenied})
	assert.Equal(t, 403, l.Get(t, l.path()).StatusCode)
	assert.Empty(t, l.take(), "it is not asked for those who may not pull")
	assert.Equal(t, 1, l.Up.Count("*"))
}
