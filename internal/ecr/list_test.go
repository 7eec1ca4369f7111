package ecr_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// Tests of referrers are in referrers_test.go and referrers_pages_test.go.
var ecrLists = []trait{
	{"L01", "a list of tags has what is cached, and never asks upstream", "inferred", "the same", testTagsAskNobody},
	{"L02", "the tags of a repository that is not there are `NAME_UNKNOWN`, and it is not made", "inferred", "the same", testTagsOfAMissingRepository},
	{"L03", "the catalog lists the repositories of the registry", "measured", "the same: those of one account in one Region", testCatalogOfOneRegistry},
	{"L04", "lists come in pages of 100 names where the client does not say", "inferred", "the same, by `n`, `last` and `Link` (OCI distribution specification)", testPagesOfTags},
	{"L08", "the `Link` to the next page is absolute, and its `last` opaque", "inferred", "the same, by the host and the scheme that the client used; relative where a proxy stands before that does not tell the scheme. `last` may be a name, too", testLinksOfPages},
	{"L09", "a page of more than 1,000 names is refused, with the code `UNSUPPORTED`", "inferred, `list-n-status`", "the same, with status 405", testPagesAreLimited},
	{"L05", "a page of no sensible size", "chosen", "`n=0` is an empty page, a negative one or no number 400 `PAGINATION_NUMBER_INVALID`", testOddPageSizes},
	{"L06", "listing needs a permission", "inferred", "who may pull from a repository may list its tags; the catalog needs `DescribeRepositories`, and has the repositories from which the caller may pull", testListingNeedsPermission},
	{"L07", "a registry can list what it has", "inferred", "where the Store is no `TagLister` or `RepoLister`, the answer is 404 `UNSUPPORTED`", testStoresThatCannotList},
	{"L10", "users have asked for lists of tags that show what upstream has", "inferred", "`Policy.UpstreamTags` merges upstream's list with what is stored, for callers who may import; off by default", testUpstreamTags},
	{"L20", "a pull does not bring in what refers to the image", "measured", "the same", testPullBringsNoReferrers},
	{"L21", "the list of referrers is upstream's, answered by the first request for it", "measured", "the same, as an OCI index", testReferrersAreUpstreams},
	{"L22", "a list counts as fresh for 6 hours", "measured, `referrers-window`", "the same; `Policy.ReferrersTTL` sets another time", testReferrersAreFreshFor6Hours},
	{"L23", "a subject that nobody knows has an empty list, and so has every subject where no rule covers the repository", "inferred", "the same, never 404", testSubjectThatNobodyKnows},
	{"L24", "of an upstream without referrers API (404) the list is empty", "inferred", "the same; so where it says 400, 405, 406 or 501, or refuses a rule without credentials and without a challenge (401, 403), but for 10 s only (`Policy.NotFoundTTL`)", testUpstreamWithoutReferrersAPI},
	{"L25", "the referrers tag, `sha256-<hex>`, is not asked for instead", "chosen, `referrers-tag-schema`", "the same; `Policy.ReferrersTag` has it asked for, and takes an index that is not the subject", testReferrersTag},
	{"L26", "when upstream fails, a known list is served", "chosen, `referrers-stale`", "the same; without one the request fails as a pull does", testKnownReferrersAreServedStale},
	{"L27", "a list may be filtered by artifact type", "documented", "the same, by `artifactType`, which `OCI-Filters-Applied` confirms; upstream is asked for the whole list once", testFilterByArtifactType},
	{"L28", "long lists of referrers are read to their end", "inferred", "page by page, as far as upstream's `Link` (RFC 8288) leads through the same list; one that leads elsewhere is an error", testPagesOfReferrers},
	{"L29", "a list without end", "chosen", "an error (502), after 100 pages, 10,000 referrers or 4 MiB; annotations beyond 2 MiB are left out", testReferrersWithoutEnd},
	{"L30", "only `ecr:BatchGetImage` is needed", "measured", "departs: upstream is asked for those who have `BatchImportUpstreamImage`; others get the list that is known, or an empty one. No repository is made", testReferrersNeedImportPermission},
	{"L31", "the artifacts of a list are imported with it", "measured", "with `FillBackground` and `FillEager` in the background, where the subject is stored", testArtifactsComeInTheBackground},
	{"L36", "they are imported by a service-linked role, whatever the client pulls", "measured", "departs with `FillLazy`: they come when they are pulled, by the digest in the list", testArtifactsComeWhenPulled},
	{"L37", "`cosign verify` finds a signature by the list of referrers", "measured", "the same, also where only the image was pulled before: the list, the signature by its digest, and its layer are served", testASignatureIsFound},
	{"L32", "lists are kept with the registry", "inferred", "by a Store that is a `ReferrerStore`; else in memory, the last used ones", testReferrersAreKept},
	{"L33", "many clients ask for a list at once", "inferred", "upstream is asked once", testHerdSharesOneList},
	{"L34", "signatures of the older kind, `sha256-<hex>.sig`, are tags like others", "inferred", "the same", testOldSignaturesAreTags},
	{"L35", "what is no digest has no referrers", "chosen", "400 `DIGEST_INVALID`", testReferrersOfWhatIsNoDigest},
}

func tagsPath(name string) string { return "/v2/" + testkit.Prefix + "/" + name + "/tags/list" }

// tagsOf lists the tags of a repository that is there.
func (e *ecr) tagsOf(t *testing.T, name string) []string {
	t.Helper()
	r := e.Get(t, tagsPath(name))
	require.Equal(t, 200, r.StatusCode, "%s", r.Content)
	list := e.list(t, r)
	assert.Equal(t, testkit.Prefix+"/"+name, list.Name)
	return list.Tags
}

type nameList struct {
	Name         string
	Tags         []string
	Repositories []string
}

func (e *ecr) list(t *testing.T, r testkit.Reply) (list nameList) {
	t.Helper()
	assert.Equal(t, "application/json", r.Header.Get("Content-Type"))
	require.NoError(t, json.Unmarshal(r.Content, &list), "%s", r.Content)
	return list
}

func testTagsAskNobody(t *testing.T) {
	e, _ := startRepoECR(t, nil)
	img := testkit.Image(1)
	for _, tag := range []string{"3", "1", "2", "10"} {
		e.push(tag, img)
	}
	for _, tag := range []string{"2", "1"} {
		e.serves(t, tag, img)
	}
	e.local(t, "mine")
	e.Settled(t)
	e.Up.Reset()
	assert.Equal(t, []string{"1", "2", "mine"}, e.tagsOf(t, "a"))
	e.pass(day)
	assert.Equal(t, []string{"1", "2", "mine"}, e.tagsOf(t, "a"))
	e.asked(t)
}

func testTagsOfAMissingRepository(t *testing.T) {
	s := newRepoStore()
	for name, store := range map[string]pullthrough.Store{"knows repositories": s, "does not": memstore.New()} {
		t.Run(name, func(t *testing.T) {
			e := startECR(t, pullthroughtest.Config{}, in(store))
			e.push("1", testkit.Image(1))
			e.refusesAt(t, tagsPath("a"), 404, "NAME_UNKNOWN", testkit.SayNoRepository("hub/a", testkit.RegistryAccount))
			e.refusesAt(t, "/v2/mine/tags/list", 404, "NAME_UNKNOWN", testkit.SayNoRepository("mine", testkit.RegistryAccount))
			e.asked(t)
		})
	}
	assert.Empty(t, s.creations())
}

func testCatalogOfOneRegistry(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Identify = pullthrough.HostIdentity })
	img := testkit.Image(1)
	for _, name := range []string{"c", "a", "b"} {
		e.push("1", img, name)
		assert.Equal(t, 200, e.Get(t, testkit.ManifestPath(name, "1"), "Host", testkit.RegistryHost).StatusCode)
	}
	other := testkit.RegistryAccount + ".dkr.ecr.us-east-1.amazonaws.com"
	e.push("1", img, "d")
	assert.Equal(t, 200, e.Get(t, testkit.ManifestPath("d", "1"), "Host", other).StatusCode)
	e.Settled(t)
	e.Up.Reset()
	assert.Equal(t, []string{"hub/a", "hub/b", "hub/c"}, e.list(t, e.Get(t, "/v2/_catalog", "Host", testkit.RegistryHost)).Repositories)
	assert.Equal(t, []string{"hub/d"}, e.list(t, e.Get(t, "/v2/_catalog", "Host", other)).Repositories)
	assert.JSONEq(t, `{"repositories":[]}`, string(e.Get(t, "/v2/_catalog", "Host", "210987654321.dkr.ecr.us-east-1.amazonaws.com").Content))
	e.asked(t)
}

// pages reads a list to its end and returns its pages.
func (e *ecr) pages(t *testing.T, path string) (pages [][]string) {
	t.Helper()
	for range 2000 {
		r := e.Get(t, path)
		require.Equal(t, 200, r.StatusCode, "%s", r.Content)
		list := e.list(t, r)
		pages = append(pages, append(list.Tags, list.Repositories...))
		link := r.Header.Get("Link")
		if link == "" {
			return pages
		}
		target, rel, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">")
		require.True(t, ok, link)
		assert.Equal(t, `; rel="next"`, rel)
		at, err := r.Request.URL.Parse(target)
		require.NoError(t, err)
		path = at.RequestURI()
	}
	t.Fatal("the pages have no end")
	return nil
}

func testPagesOfTags(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	var want []string
	for i := range 1001 {
		tag := fmt.Sprintf("v%d.%d_x", i/10, i%10)
		want = append(want, tag)
		require.NoError(t, e.Store.PutManifest(t.Context(), ecrRepo("a"), testkit.LocalManifest(tag)))
	}
	slices.Sort(want)
	for n, count := range map[string]int{"?n=1": 1001, "?n=7": 143, "?n=1000": 2, "": 11} {
		pages := e.pages(t, tagsPath("a")+n)
		assert.Equal(t, want, slices.Concat(pages...), n)
		assert.Len(t, pages, count, n)
	}
	for query, part := range map[string][]string{
		"":                           want[:100],
		"?last=" + want[990]:         want[991:],
		"?n=2&last=" + want[990]:     want[991:993],
		"?last=" + want[1000]:        {},
		"?last=zzz":                  {},
		"?n=1&last=a":                want[:1], // no tag of the list
		"?n=2&last=" + want[3] + "!": want[4:6],
	} {
		assert.Equal(t, part, e.list(t, e.Get(t, tagsPath("a")+query)).Tags, query)
	}
	for i := range 5 {
		repo := ecrRepo("b" + strconv.Itoa(i))
		require.NoError(t, e.Store.PutManifest(t.Context(), repo, testkit.LocalManifest("1")))
	}
	assert.Equal(t, [][]string{{"hub/a", "hub/b0"}, {"hub/b1", "hub/b2"}, {"hub/b3", "hub/b4"}}, e.pages(t, "/v2/_catalog?n=2"))
	assert.Empty(t, e.Up.Log())
}

func testLinksOfPages(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	for _, tag := range []string{"1", "2", "3"} {
		e.local(t, tag)
	}
	link := func(header ...string) string {
		r := e.Get(t, tagsPath("a")+"?n=1", header...)
		require.Equal(t, 200, r.StatusCode)
		target, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Link"), "<"), ">")
		return target
	}
	path := tagsPath("a") + "?last=.MQ&n=1"
	here := strings.TrimPrefix(e.Server.URL, "http://")
	_, port, _ := strings.Cut(here, ":")
	for name, c := range map[string]struct {
		header []string
		want   string
	}{
		"as it was reached":                {nil, "http://" + here + path},
		"by another name":                  {[]string{"Host", "registry.test:" + port}, "http://registry.test:" + port + path},
		"a proxy with TLS":                 {[]string{"X-Forwarded-Proto", "https", "Host", "registry.test"}, "https://registry.test" + path},
		"a proxy that rewrites the host":   {[]string{"X-Forwarded-Proto", "https", "X-Forwarded-Host", "registry.test"}, "https://registry.test" + path},
		"a proxy that tells no scheme":     {[]string{"X-Forwarded-For", "192.0.2.1"}, path},
		"a proxy that tells nothing":       {[]string{"Host", "registry.test"}, path},
		"a proxy that tells an odd scheme": {[]string{"X-Forwarded-Proto", "gopher"}, path},
		"a host that is none":              {[]string{"X-Forwarded-Proto", "https", "X-Forwarded-Host", "a/b"}, path},
	} {
		assert.Equal(t, c.want, link(c.header...), name)
	}
	assert.Equal(t, [][]string{{"1"}, {"2"}, {"3"}}, e.pages(t, tagsPath("a")+"?n=1"))
	assert.Equal(t, []string{"2", "3"}, e.list(t, e.Get(t, tagsPath("a")+"?last=1")).Tags)
	assert.Empty(t, e.Up.Log())
}

func testPagesAreLimited(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	e.local(t, "1")
	for _, path := range []string{tagsPath("a"), "/v2/_catalog"} {
		for _, n := range []string{"1001", "10000", "99999999999999999999999"} {
			assert.Equal(t, "Invalid parameter at 'maxResults' failed to satisfy constraint: 'Member must have value less than or equal to 1000'",
				testkit.AssertOCI(t, e.Get(t, path+"?n="+n), 405, "UNSUPPORTED"))
		}
		assert.Equal(t, 200, e.Get(t, path+"?n=1000").StatusCode)
	}
	assert.Empty(t, e.Up.Log())
}

func testUpstreamTags(t *testing.T) {
	no := errors.New("not you")
	d := new(testkit.Door)
	policy := pullthrough.Policy{UpstreamTags: true}
	e := startECR(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Authorize = d.Authorize
		p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy { return policy }
	})
	img := testkit.Image(1)
	for _, tag := range []string{"3", "1", "2"} {
		e.push(tag, img)
	}
	e.serves(t, "2", img)
	e.local(t, "mine")
	e.Settled(t)
	e.Up.Reset()

	d.Set(map[pullthrough.Action]error{pullthrough.ActionImport: no})
	assert.Equal(t, []string{"2", "mine"}, e.tagsOf(t, "a"))
	e.asked(t)

	d.Set(nil)
	assert.Equal(t, [][]string{{"1", "2"}, {"3", "mine"}}, e.pages(t, tagsPath("a")+"?n=2"), "both pages from one list of upstream's")
	e.asked(t, "GET /v2/a/tags/list 200")
	e.push("4", img)
	e.pass(time.Minute)
	assert.Equal(t, []string{"1", "2", "3", "4", "mine"}, e.tagsOf(t, "a"))
	e.asked(t, "GET /v2/a/tags/list 200")

	e.push("1", img, "never-pulled")
	assert.Equal(t, []string{"1"}, e.tagsOf(t, "never-pulled"))
	e.asked(t, "GET /v2/never-pulled/tags/list 200")
	e.refusesAt(t, tagsPath("nowhere"), 404, "NAME_UNKNOWN", testkit.SayNoRepository("hub/nowhere", testkit.RegistryAccount))
	e.asked(t, "GET /v2/nowhere/tags/list 404")
	assert.Equal(t, []string{"hub/a"}, e.list(t, e.Get(t, "/v2/_catalog")).Repositories, "a list makes no repository")

	e.push("1", img, "new")
	e.Up.Fault(pullthroughtest.Fault{Status: 500})
	policy.Retries = -1
	e.pass(time.Minute)
	assert.Equal(t, []string{"1", "2", "3", "4", "mine"}, e.tagsOf(t, "a"), "the list that upstream gave last")
	assert.Equal(t, 502, e.Get(t, tagsPath("new")).StatusCode)
	policy.Offline = true
	assert.Equal(t, []string{"2", "mine"}, e.tagsOf(t, "a"))
	e.asked(t, "GET /v2/a/tags/list 500", "GET /v2/new/tags/list 500")
}

func testOddPageSizes(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	e.local(t, "1")
	for _, path := range []string{tagsPath("a"), "/v2/_catalog"} {
		r := e.Get(t, path+"?n=0")
		assert.Equal(t, 200, r.StatusCode)
		assert.Empty(t, r.Header.Get("Link"))
		list := e.list(t, r)
		assert.Empty(t, append(list.Tags, list.Repositories...))
		for _, n := range []string{"-1", "x", "1.5", "0x10", "1%00"} {
			testkit.AssertOCI(t, e.Get(t, path+"?n="+n), 400, "PAGINATION_NUMBER_INVALID")
		}
	}
}

func testListingNeedsPermission(t *testing.T) {
	no := errors.New("not you")
	d := &testkit.Door{Refuse: map[pullthrough.Action]error{pullthrough.ActionPull: no}}
	var hidden string
	e := startECR(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Authorize = func(ctx context.Context, a pullthrough.Action, r pullthrough.Request) error {
			if err := d.Authorize(ctx, a, r); err != nil || r.Repo.Name != hidden || hidden == "" {
				return err
			}
			return no
		}
	})
	e.local(t, "1")
	for _, name := range []string{"a", "missing"} {
		e.refusesAt(t, tagsPath(name), 403, "DENIED", "not you")
	}
	assert.Empty(t, e.list(t, e.Get(t, "/v2/_catalog")).Repositories)
	d.Set(map[pullthrough.Action]error{pullthrough.ActionImport: no, pullthrough.ActionCreate: no})
	assert.Equal(t, []string{"1"}, e.tagsOf(t, "a"))
	requests, actions := d.Requests()
	assert.Equal(t, []pullthrough.Action{pullthrough.ActionPull}, actions)
	assert.Equal(t, ecrRepo("a"), requests[0].Repo)

	img := testkit.Image(1)
	for _, name := range []string{"b", "c"} {
		require.NoError(t, e.Store.PutManifest(t.Context(), ecrRepo(name), &pullthrough.Manifest{
			Descriptor: ocispec.Descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: int64(len(img.Content))}, Content: img.Content,
		}))
	}
	d.Set(nil)
	assert.Equal(t, [][]string{{"hub/a"}, {"hub/b"}, {"hub/c"}}, e.pages(t, "/v2/_catalog?n=1"))
	hidden = "hub/b"
	assert.Equal(t, [][]string{{"hub/a"}, {"hub/c"}}, e.pages(t, "/v2/_catalog?n=1"))
	hidden = "hub/c"
	assert.Equal(t, [][]string{{"hub/a"}, {"hub/b"}}, e.pages(t, "/v2/_catalog?n=1"), "the last page does not tell that there is more")
	d.Set(nil)
	assert.Equal(t, []string{"hub/a", "hub/b"}, e.list(t, e.Get(t, "/v2/_catalog")).Repositories)
	requests, actions = d.Requests()
	assert.Equal(t, []pullthrough.Action{"DescribeRepositories", pullthrough.ActionPull, pullthrough.ActionPull, pullthrough.ActionPull}, actions)
	whole := ecrRepo("")
	whole.Name = ""
	assert.Equal(t, whole, requests[0].Repo)
	d.Set(map[pullthrough.Action]error{"DescribeRepositories": no})
	e.refusesAt(t, "/v2/_catalog", 403, "DENIED", "not you")
	d.Set(map[pullthrough.Action]error{pullthrough.ActionPull: &pullthrough.Error{Kind: pullthrough.ErrUnavailable}})
	assert.Equal(t, 502, e.Get(t, "/v2/_catalog").StatusCode, "half a list is none")
	assert.Empty(t, e.Up.Log())
}

// onlyStore is a Store and nothing else.
type onlyStore struct{ pullthrough.Store }

func testStoresThatCannotList(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{}, in(onlyStore{memstore.New()}))
	img := testkit.Image(1)
	e.push("1", img)
	e.serves(t, "1", img)
	for _, path := range []string{tagsPath("a"), "/v2/_catalog"} {
		testkit.AssertOCI(t, e.Get(t, path), 404, "UNSUPPORTED")
	}
	failing := startECR(t, pullthroughtest.Config{}, in(brokenLister{memstore.New()}))
	assert.NotContains(t, testkit.AssertOCI(t, failing.Get(t, tagsPath("a")), 500, "UNKNOWN"), "canary")
}

// brokenLister cannot say whether a repository is there, which is not to say
// that it is not.
type brokenLister struct{ *memstore.Store }

func (brokenLister) Tags(context.Context, pullthrough.Repo) ([]string, error) {
	return nil, errors.Join(errors.New("canary"), fs.ErrPermission)
}
