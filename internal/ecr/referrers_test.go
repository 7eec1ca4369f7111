package ecr_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const (
	signatureType = "application/vnd.dev.cosign.artifact.sig.v1+json"
	sbomType      = "application/spdx+json"
)

// signed makes an image upstream, the tag 1 of a, and artifacts that refer to it.
func (e *ecr) signed() (subject, signature, sbom *pullthroughtest.Image) {
	subject = testkit.Image(1)
	signature = pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, ArtifactType: signatureType, Subject: subject})
	sbom = pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 3, ArtifactType: sbomType, Subject: subject})
	e.push("1", subject)
	e.push("", signature)
	e.push("", sbom)
	return subject, signature, sbom
}

func referrersPath(name string, subject digest.Digest) string {
	return "/v2/" + testkit.Prefix + "/" + name + "/referrers/" + subject.String()
}

// lists asks for the referrers of a subject of a, which must be these.
func (e *ecr) lists(t *testing.T, subject digest.Digest, want ...*pullthroughtest.Image) {
	t.Helper()
	e.listsAt(t, referrersPath("a", subject), want...)
}

func (e *ecr) listsAt(t *testing.T, path string, want ...*pullthroughtest.Image) {
	t.Helper()
	descriptors := []ocispec.Descriptor{}
	for _, img := range want {
		d := img.Descriptor()
		d.Platform = nil
		descriptors = append(descriptors, d)
	}
	r := e.Get(t, path)
	assert.Equal(t, 200, r.StatusCode, "%s", r.Content)
	assert.Equal(t, ocispec.MediaTypeImageIndex, r.Header.Get("Content-Type"))
	var list ocispec.Index
	require.NoError(t, json.Unmarshal(r.Content, &list), "%s", r.Content)
	assert.Equal(t, 2, list.SchemaVersion)
	assert.Equal(t, ocispec.MediaTypeImageIndex, list.MediaType)
	assert.NotNil(t, list.Manifests, "%s", r.Content)
	assert.ElementsMatch(t, descriptors, list.Manifests)
}

// askedForList checks that upstream was asked for the referrers so often, and
// for nothing else.
func (e *ecr) askedForList(t *testing.T, times int) {
	t.Helper()
	e.Settled(t)
	assert.Equal(t, times, e.Up.Count("GET /v2/a/referrers/*"), "upstream: %s", e.Up.Log())
	assert.Len(t, e.Up.Log(), times)
	e.Up.Reset()
}

func testPullBringsNoReferrers(t *testing.T) {
	e, s := startRepoECR(t, nil, fills(pullthrough.FillBackground))
	subject, signature, sbom := e.signed()
	e.serves(t, "1", subject)
	e.servesBlobs(t, subject)
	e.Settled(t)
	assert.Zero(t, e.Up.Count("*referrers*"))
	assert.NotContains(t, s.tags, signature.Digest)
	assert.NotContains(t, s.tags, sbom.Digest)
}

func testReferrersAreUpstreams(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	subject, signature, sbom := e.signed()
	e.lists(t, subject.Digest, signature, sbom)
	e.askedForList(t, 1)
	list, err := e.Referrers(t.Context(), pullthrough.Request{Repo: ecrRepo("a"), Ref: subject.Digest.String()}, "")
	require.NoError(t, err)
	assert.Len(t, list.Manifests, 2)
	e.askedForList(t, 0)
	sources := []pullthrough.Source{}
	for _, event := range e.told.Of(pullthrough.EventReferrers) {
		sources = append(sources, event.Source)
	}
	assert.Equal(t, []pullthrough.Source{pullthrough.SourceFill, pullthrough.SourceHit}, sources)
	fetches := e.told.Of(pullthrough.EventFetch)
	require.Len(t, fetches, 1)
	assert.Equal(t, pullthrough.EventReferrers, fetches[0].Object)
}

func testReferrersAreFreshFor6Hours(t *testing.T) {
	for name, c := range map[string]struct {
		policy pullthrough.Policy
		fresh  time.Duration
	}{
		"6 hours":      {pullthrough.Policy{}, 6 * time.Hour},
		"a minute":     {pullthrough.Policy{ReferrersTTL: time.Minute}, time.Minute},
		"not the tags": {pullthrough.Policy{TagTTL: pullthrough.EveryPull}, 6 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			e := startECR(t, pullthroughtest.Config{}, testkit.WithPolicy(c.policy))
			subject, signature, sbom := e.signed()
			e.lists(t, subject.Digest, signature, sbom)
			e.Up.Delete("a", sbom.Digest.String())
			e.Up.Reset()
			e.pass(c.fresh - time.Second)
			e.lists(t, subject.Digest, signature, sbom)
			e.askedForList(t, 0)
			e.pass(time.Second)
			e.lists(t, subject.Digest, signature)
			e.askedForList(t, 1)
			e.pass(c.fresh - time.Second)
			e.lists(t, subject.Digest, signature)
			e.askedForList(t, 0)
		})
	}
	for ttl, asked := range map[time.Duration]int{pullthrough.EveryPull: 1, -1: 0} {
		e := startECR(t, pullthroughtest.Config{}, testkit.WithPolicy(pullthrough.Policy{ReferrersTTL: ttl}))
		subject, signature, sbom := e.signed()
		e.lists(t, subject.Digest, signature, sbom)
		e.Up.Reset()
		for range 2 {
			e.lists(t, subject.Digest, signature, sbom)
			e.askedForList(t, asked)
		}
		e.pass(1000 * day)
		e.lists(t, subject.Digest, signature, sbom)
		e.askedForList(t, asked)
	}
}

func testSubjectThatNobodyKnows(t *testing.T) {
	e, s := startRepoECR(t, nil)
	e.push("1", testkit.Image(1))
	nobody := digest.FromString("nobody")
	e.lists(t, nobody)
	e.lists(t, nobody)
	e.askedForList(t, 1)
	e.listsAt(t, "/v2/mine/referrers/"+nobody.String())
	e.asked(t)
	_, err := e.Referrers(t.Context(), pullthrough.Request{Repo: pullthrough.Repo{Name: "mine"}, Ref: nobody.String()}, "")
	assert.ErrorIs(t, err, pullthrough.ErrNoRule, "a host goes on with its own")
	assert.Empty(t, s.creations())
}

func testUpstreamWithoutReferrersAPI(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	subject, _, _ := e.signed()
	e.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/referrers/*", Status: 404})
	e.lists(t, subject.Digest)
	e.lists(t, subject.Digest)
	e.pass(time.Minute)
	e.lists(t, subject.Digest)
	e.askedForList(t, 1)
	for _, status := range []int{400, 403, 405, 406, 501} {
		e := startECR(t, pullthroughtest.Config{})
		subject, signature, sbom := e.signed()
		heal := e.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/referrers/*", Status: status})
		e.lists(t, subject.Digest)
		e.pass(9 * time.Second)
		e.lists(t, subject.Digest)
		e.askedForList(t, 1)
		heal()
		e.pass(time.Second)
		e.lists(t, subject.Digest, signature, sbom)
		e.askedForList(t, 1)
	}
}

func testReferrersTag(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	subject, signature, sbom := e.signed()
	byTag := pullthroughtest.NewIndex(signature, sbom)
	tag := "sha256-" + subject.Digest.Encoded()
	e.push(tag, byTag)
	noAPI := pullthroughtest.Fault{Match: "GET /v2/*/referrers/*", Status: 404}
	e.Up.Fault(noAPI)
	e.lists(t, subject.Digest)
	e.askedForList(t, 1)

	falls := startECR(t, pullthroughtest.Config{}, testkit.WithPolicy(pullthrough.Policy{ReferrersTag: true}))
	falls.signed()
	falls.push(tag, byTag)
	falls.Up.Fault(noAPI)
	falls.lists(t, subject.Digest, signature, sbom)
	falls.lists(t, subject.Digest, signature, sbom)
	falls.asked(t, "GET /v2/a/referrers/"+subject.Digest.String()+" 404", asks("GET", tag, 200))
	falls.lists(t, digest.FromString("nobody"))

	has := startECR(t, pullthroughtest.Config{}, testkit.WithPolicy(pullthrough.Policy{ReferrersTag: true}))
	has.signed()
	has.push(tag, pullthroughtest.NewIndex())
	has.lists(t, subject.Digest, signature, sbom)
	has.askedForList(t, 1)
}

func testKnownReferrersAreServedStale(t *testing.T) {
	for code, wire := range map[int]int{500: 502, 503: 502, 429: 429, 401: 403, 403: 403} {
		e := startECR(t, pullthroughtest.Config{}, testkit.WithPolicy(pullthrough.Policy{Retries: -1}), func(p *pullthrough.Proxy) {
			p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
				return pullthrough.Credential{Username: "me", AccessToken: "x"}, nil
			}
		})
		subject, signature, sbom := e.signed()
		e.lists(t, subject.Digest, signature, sbom)
		e.pass(6 * time.Hour)
		heal := e.Up.Fault(testkit.Status(code))
		e.lists(t, subject.Digest, signature, sbom)
		r := e.Get(t, referrersPath("a", digest.FromString("unknown")))
		assert.Equal(t, wire, r.StatusCode, "%d: %s", code, r.Content)
		code, message := testkit.OCIError(t, r)
		if wire == 403 {
			assert.Equal(t, []string{"DENIED", testkit.SayDenied}, []string{code, message})
		}
		heal()
		if wire == 429 {
			continue // the next one has to wait
		}
		e.Up.Delete("a", sbom.Digest.String())
		e.lists(t, subject.Digest, signature)
	}
	e := startECR(t, pullthroughtest.Config{})
	subject, signature, sbom := e.signed()
	e.lists(t, subject.Digest, signature, sbom)
	e.pass(1000 * day)
	e.Up.Close()
	e.lists(t, subject.Digest, signature, sbom)
	e.refusesAt(t, referrersPath("a", digest.FromString("unknown")), 502, "UNKNOWN", sayUnavailable)
}

func testFilterByArtifactType(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	subject, signature, sbom := e.signed()
	path := referrersPath("a", subject.Digest)
	e.listsAt(t, path+"?artifactType="+strings.ReplaceAll(signatureType, "+", "%2B"), signature)
	e.listsAt(t, path+"?artifactType="+strings.ReplaceAll(sbomType, "+", "%2B"), sbom)
	e.listsAt(t, path+"?artifactType=application/unknown")
	e.listsAt(t, path, signature, sbom)
	assert.Equal(t, "artifactType", e.Get(t, path+"?artifactType=application/unknown").Header.Get("OCI-Filters-Applied"))
	assert.Empty(t, e.Get(t, path).Header.Get("OCI-Filters-Applied"))
	list, err := e.Referrers(t.Context(), pullthrough.Request{Repo: ecrRepo("a"), Ref: subject.Digest.String()}, sbomType)
	require.NoError(t, err)
	assert.Len(t, list.Manifests, 1)
	for _, r := range e.Up.Requests() {
		assert.Empty(t, r.Query)
	}
	e.askedForList(t, 1)
}

func testReferrersNeedImportPermission(t *testing.T) {
	d := &testkit.Door{Refuse: map[pullthrough.Action]error{pullthrough.ActionImport: errors.New("no"), pullthrough.ActionCreate: errors.New("no")}}
	e, s := startRepoECR(t, nil, func(p *pullthrough.Proxy) { p.Authorize = d.Authorize })
	subject, signature, sbom := e.signed()
	e.lists(t, subject.Digest)
	_, err := e.Referrers(t.Context(), pullthrough.Request{Repo: ecrRepo("a"), Ref: subject.Digest.String()}, "")
	assert.ErrorIs(t, err, pullthrough.ErrDenied, "the host can tell")
	assert.ErrorIs(t, err, pullthrough.ErrNotFound)
	e.askedForList(t, 0)
	d.Set(nil)
	e.lists(t, subject.Digest, signature, sbom)
	_, actions := d.Requests()
	assert.Equal(t, []pullthrough.Action{pullthrough.ActionPull, pullthrough.ActionImport}, actions)
	assert.Empty(t, s.creations())
	e.askedForList(t, 1)
	d.Set(map[pullthrough.Action]error{pullthrough.ActionImport: errors.New("no")})
	for range 2 { // known, and then due
		e.lists(t, subject.Digest, signature, sbom)
		e.pass(day)
	}
	d.Set(map[pullthrough.Action]error{pullthrough.ActionPull: errors.New("not you")})
	e.refusesAt(t, referrersPath("a", subject.Digest), 403, "DENIED", "not you")
	e.askedForList(t, 0)
}

func testArtifactsComeWhenPulled(t *testing.T) {
	e, s := startRepoECR(t, nil)
	subject, signature, sbom := e.signed()
	e.serves(t, "1", subject)
	e.Up.Reset()
	e.lists(t, subject.Digest, signature, sbom)
	e.askedForList(t, 1)
	assert.NotContains(t, s.tags, signature.Digest)
	e.serves(t, signature.Digest.String(), signature)
	e.servesBlobs(t, signature)
	e.goesOffline(t, signature)
	assert.Equal(t, []string{"1"}, e.tagsOf(t, "a"))
}

// What cosign asks for: the digest of the tag, its referrers of one type, the signature and
// the payload that it signs.
func testASignatureIsFound(t *testing.T) {
	e, _ := startRepoECR(t, nil)
	subject, signature, _ := e.signed()
	r := e.Ask(t, http.MethodHead, testkit.ManifestPath("a", "1"))
	testkit.AssertManifest(t, r, http.MethodHead, subject, subject.Digest)
	e.listsAt(t, referrersPath("a", subject.Digest)+"?artifactType="+url.QueryEscape(signatureType), signature)
	e.serves(t, signature.Digest.String(), signature)
	e.servesBlobs(t, signature)
	e.Settled(t)
	for _, want := range []string{"GET /v2/a/manifests/1 200", "GET /v2/a/referrers/* 200", "GET /v2/a/manifests/" + signature.Digest.String() + " 200"} {
		assert.Equal(t, 1, e.Up.Count(want), "upstream: %s", e.Up.Log())
	}
	assert.Equal(t, len(signature.Blobs()), e.Up.Count(testkit.Blobs+" 200"))
	e.goesOffline(t, signature)
}

func testArtifactsComeInTheBackground(t *testing.T) {
	for _, mode := range []pullthrough.FillMode{pullthrough.FillBackground, pullthrough.FillEager} {
		e, _ := startRepoECR(t, nil, fills(mode))
		subject, signature, sbom := e.signed()
		other := testkit.Image(7)
		e.push("", other)
		about := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 8, ArtifactType: sbomType, Subject: other})
		e.push("", about)
		e.serves(t, "1", subject)
		e.Settled(t)
		e.Up.Reset()
		e.lists(t, subject.Digest, signature, sbom)
		e.Settled(t)
		assert.Equal(t, 1, e.Up.Count("GET /v2/a/referrers/*"))
		for _, img := range []*pullthroughtest.Image{signature, sbom} {
			assert.Equal(t, 1, e.Up.Count("GET /v2/a/manifests/"+img.Digest.String()+" 200"))
		}
		e.lists(t, other.Digest, about)
		e.Settled(t)
		assert.Equal(t, 0, e.Up.Count("GET /v2/a/manifests/"+about.Digest.String()+" *"), "the subject is not stored")
		e.goesOffline(t, signature, sbom)
		assert.Equal(t, []string{"1"}, e.tagsOf(t, "a"), "they have no tag")

		e.Up.Reset()
		e.pass(6 * time.Hour)
		e.Up.Heal()
		e.lists(t, subject.Digest, signature, sbom)
		e.Settled(t)
		assert.Equal(t, 0, e.Up.Count("GET /v2/a/manifests/*"), "what is stored is not fetched again")
	}
}

func testHerdSharesOneList(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	subject, signature, sbom := e.signed()
	e.lists(t, subject.Digest, signature, sbom)
	list := e.Get(t, referrersPath("a", subject.Digest)).Content
	e.pass(6 * time.Hour)
	e.Up.Reset()
	g := testkit.NewGate(t)
	e.Up.Fault(pullthroughtest.Fault{Stall: g.C})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() { e.brings(t, referrersPath("a", subject.Digest), "", list) })
	}
	require.NoError(t, e.Up.Wait(t.Context(), "*", 1))
	g.Open()
	wg.Wait()
	e.askedForList(t, 1)
}

func testOldSignaturesAreTags(t *testing.T) {
	e, s := startRepoECR(t, nil)
	subject, signature, _ := e.signed()
	tag := "sha256-" + subject.Digest.Encoded() + ".sig"
	e.push(tag, signature)
	e.serves(t, tag, signature)
	e.asked(t, asks("GET", tag, 200))
	assert.Equal(t, []string{tag}, s.tags[signature.Digest])
}

func testReferrersOfWhatIsNoDigest(t *testing.T) {
	e := startECR(t, pullthroughtest.Config{})
	e.push("1", testkit.Image(1))
	for _, subject := range []string{"1", "latest", "sha256:abc", "md5:" + strings.Repeat("0", 32), "sha256:" + strings.Repeat("A", 64)} {
		r := e.Get(t, "/v2/hub/a/referrers/"+subject)
		testkit.AssertOCI(t, r, http.StatusBadRequest, "DIGEST_INVALID")
	}
	e.asked(t)
}

// listStore is a MemStore that keeps lists of referrers.
type listStore struct {
	*memstore.Store
	mu      sync.Mutex
	lists   map[digest.Digest]*ocispec.Index
	checked map[digest.Digest]time.Time
	broken  error
}

func newListStore() *listStore {
	return &listStore{Store: memstore.New(), lists: map[digest.Digest]*ocispec.Index{}, checked: map[digest.Digest]time.Time{}}
}

func (s *listStore) Referrers(_ context.Context, _ pullthrough.Repo, subject digest.Digest) (*ocispec.Index, time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return nil, time.Time{}, s.broken
	}
	if s.lists[subject] == nil {
		return nil, time.Time{}, fs.ErrNotExist
	}
	return s.lists[subject], s.checked[subject], nil
}

func (s *listStore) PutReferrers(_ context.Context, _ pullthrough.Repo, subject digest.Digest, list *ocispec.Index, checked time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	s.lists[subject], s.checked[subject] = list, checked
	return nil
}

func testReferrersAreKept(t *testing.T) {
	s := newListStore()
	e := startECR(t, pullthroughtest.Config{}, in(s))
	subject, signature, sbom := e.signed()
	assert.Equal(t, 200, e.Get(t, "/v2/hub/a/manifests/1").StatusCode)
	e.Settled(t)
	e.lists(t, subject.Digest, signature, sbom)
	assert.True(t, e.now().Equal(s.checked[subject.Digest]))

	again := startECR(t, pullthroughtest.Config{}, in(s))
	again.lists(t, subject.Digest, signature, sbom) // its upstream knows nothing
	again.askedForList(t, 0)
	again.pass(6 * time.Hour)
	again.lists(t, subject.Digest)
	again.askedForList(t, 1)

	s.broken = errors.New("canary")
	e.Up.Reset()
	e.lists(t, subject.Digest, signature, sbom)
	e.askedForList(t, 1)
	assert.NotEmpty(t, e.told.StoreFailures())
}
