package pullthrough_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/debug"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// entrance is a way into a proxy or its control plane.
type entrance struct {
	name    string
	asks    []pullthrough.Action // what Authorize is asked for, in this order; nil: nothing
	refused string               // what it answers to those who are refused; of one that asks nothing, why
	use     func(t *testing.T, h *house) string
}

var (
	pulls = []pullthrough.Action{pullthrough.ActionPull, pullthrough.ActionImport, pullthrough.ActionCreate}
	looks = []pullthrough.Action{pullthrough.ActionPull, pullthrough.ActionImport}
)

func only(a pullthrough.Action) []pullthrough.Action { return []pullthrough.Action{a} }

const (
	sayPull      = "403; without import what is stored, else \"image not found\"; without create \"name unknown\""
	sayReferrers = "403; without import the list that is known, else an empty one"
	sayDenied    = "`AccessDeniedException`"
	sayHost      = "it is the host's own"
	sayControl   = "`API.Identify` may refuse it; it reads and writes settings, and no image"
)

// entrances are all of them. A method or a path that has no row here fails the test.
var entrances = []entrance{
	{"`Proxy.Manifest`", pulls, sayPull, func(t *testing.T, h *house) string { return said(h.Manifest(t.Context(), h.request(h.cold, "1"))) }},
	{"`Proxy.Blob`", pulls, sayPull, func(t *testing.T, h *house) string {
		return said(h.Blob(t.Context(), h.request(h.cold, h.img.Layers[0].Digest.String())))
	}},
	{"`Proxy.Referrers`", looks, sayReferrers, func(t *testing.T, h *house) string {
		return said(h.Referrers(t.Context(), h.request(h.cold, h.img.Digest.String()), ""))
	}},
	{"`Proxy.Import`", pulls, sayPull + ". A stored image needs the right to import, too", func(t *testing.T, h *house) string {
		return said(h.Import(t.Context(), h.request(h.cold, "1"), pullthrough.ImportOptions{}))
	}},
	{"`Proxy.ValidateRule`", nil, sayHost, nil},
	{"`Proxy.DeleteImage`", nil, sayHost, nil},
	{"`Proxy.DeleteRepo`", nil, sayHost, nil},
	{"`Proxy.Downloads`", nil, sayHost, nil},
	{"`Proxy.Pending`", nil, sayHost, nil},
	{"`Proxy.Sent`", nil, sayHost, nil},
	{"`Proxy.Idle`", nil, sayHost, nil},
	{"`Proxy.Shutdown`", nil, sayHost, nil},

	{"`ServeHTTP`: base", nil, "`Identify` may refuse it; it tells nothing", nil},
	{"`ServeHTTP`: manifest", pulls, sayPull, func(t *testing.T, h *house) string { return h.get(t, h.Proxy, testkit.ManifestPath("cold", "1")) }},
	{"`ServeHTTP`: blob", pulls, sayPull, func(t *testing.T, h *house) string {
		return h.get(t, h.Proxy, testkit.BlobPath("cold", h.img.Layers[0].Digest))
	}},
	{"`ServeHTTP`: referrers", looks, sayReferrers, func(t *testing.T, h *house) string { return h.get(t, h.Proxy, h.referrers()) }},
	{"`ServeHTTP`: tags", only(pullthrough.ActionPull), "403, also where there is no such repository; with `Policy.UpstreamTags` upstream's are for those who may import", func(t *testing.T, h *house) string {
		return h.get(t, h.Proxy, "/v2/"+h.warm.Name+"/tags/list")
	}},
	{"`ServeHTTP`: catalog", []pullthrough.Action{"DescribeRepositories", pullthrough.ActionPull},
		"403; a repository from which the caller may not pull is not in it", func(t *testing.T, h *house) string { return h.get(t, h.Proxy, "/v2/_catalog") }},
	{"`ServeHTTP`: upload", nil, "405, for everybody", nil},

	{"`Handler`: base", nil, "it is the wrapped registry's", nil},
	{"`Handler`: manifest", pulls, sayPull, func(t *testing.T, h *house) string { return h.get(t, h.around(), testkit.ManifestPath("cold", "1")) }},
	{"`Handler`: blob", pulls, sayPull, func(t *testing.T, h *house) string {
		return h.get(t, h.around(), testkit.BlobPath("cold", h.img.Layers[0].Digest))
	}},
	{"`Handler`: referrers", looks, "403; without import the wrapped registry's list, with the list that is known", func(t *testing.T, h *house) string { return h.get(t, h.around(), h.referrers()) }},
	{"`Handler`: tags", nil, "they are the wrapped registry's; with `Policy.UpstreamTags` upstream's are merged for those who may pull and import", nil},
	{"`Handler`: catalog", nil, "it is the wrapped registry's, which may list more than the caller may pull", nil},
	{"`Handler`: upload", nil, "they are the wrapped registry's", nil},

	{"`TryServe`: manifest", pulls, sayPull, func(t *testing.T, h *house) string { return h.get(t, h.beside(), testkit.ManifestPath("cold", "1")) }},
	{"`TryServe`: blob", pulls, sayPull, func(t *testing.T, h *house) string {
		return h.get(t, h.beside(), testkit.BlobPath("cold", h.img.Layers[0].Digest))
	}},
	{"`TryServe`: referrers", looks, sayReferrers, func(t *testing.T, h *house) string { return h.get(t, h.beside(), h.referrers()) }},
	{"`TryServe`: base, tags, catalog, upload", nil, sayHost, nil},

	{"`API.BatchGetImage`", pulls, sayDenied + "; without import `ImageNotFound`; without create `RepositoryNotFoundException`", func(t *testing.T, h *house) string {
		return said(h.api.BatchGetImage(t.Context(), h.caller(), ecrapi.BatchGetImageInput{RepositoryName: &h.cold.Name, ImageIds: []ecrapi.ImageIdentifier{{ImageTag: new("1")}}}))
	}},
	{"`API.GetDownloadUrlForLayer`", looks, sayDenied + "; without import `LayersNotFoundException`. No layer makes a repository", func(t *testing.T, h *house) string {
		require.NoError(t, h.api.Images.Catalog.CreateRepository(t.Context(), h.cold, ecrapi.CatalogRepository{}))
		return said(h.api.GetDownloadUrlForLayer(t.Context(), h.caller(), ecrapi.GetDownloadUrlForLayerInput{RepositoryName: &h.cold.Name, LayerDigest: new(h.img.Layers[0].Digest.String())}))
	}},
	{"`API.ListImageReferrers`", append([]pullthrough.Action{"ListImageReferrers"}, looks...), sayDenied + "; without import the list that is known, else an empty one", func(t *testing.T, h *house) string {
		return said(h.api.ListImageReferrers(t.Context(), h.caller(), ecrapi.ListImageReferrersInput{RepositoryName: &h.warm.Name, SubjectId: &ecrapi.SubjectIdentifier{ImageDigest: new(h.img.Digest.String())}}))
	}},
	{"`API.BatchCheckLayerAvailability`", only("BatchCheckLayerAvailability"), sayDenied, func(t *testing.T, h *house) string {
		return said(h.api.BatchCheckLayerAvailability(t.Context(), h.caller(), ecrapi.BatchCheckLayerAvailabilityInput{RepositoryName: &h.warm.Name, LayerDigests: []string{h.img.Layers[0].Digest.String()}}))
	}},
	{"`API.DescribeImages`", only("DescribeImages"), sayDenied, func(t *testing.T, h *house) string {
		return said(h.api.DescribeImages(t.Context(), h.caller(), ecrapi.DescribeImagesInput{RepositoryName: &h.warm.Name}))
	}},
	{"`API.ListImages`", only("ListImages"), sayDenied, func(t *testing.T, h *house) string {
		return said(h.api.ListImages(t.Context(), h.caller(), ecrapi.ListImagesInput{RepositoryName: &h.warm.Name}))
	}},
	{"`API.BatchDeleteImage`", only("BatchDeleteImage"), sayDenied, func(t *testing.T, h *house) string {
		return said(h.api.BatchDeleteImage(t.Context(), h.caller(), ecrapi.BatchDeleteImageInput{RepositoryName: &h.warm.Name, ImageIds: []ecrapi.ImageIdentifier{{ImageTag: new("none")}}}))
	}},
	{"`API.DeleteRepository`", only("DeleteRepository"), sayDenied, func(t *testing.T, h *house) string {
		return said(h.api.DeleteRepository(t.Context(), h.caller(), ecrapi.DeleteRepositoryInput{RepositoryName: &h.warm.Name, Force: new(true)}))
	}},
	setting("CreateRepository", (*ecrapi.API).CreateRepository, func(*house) ecrapi.CreateRepositoryInput {
		return ecrapi.CreateRepositoryInput{RepositoryName: new("mine/new")}
	}),
	setting("GetRepositoryPolicy", (*ecrapi.API).GetRepositoryPolicy, func(h *house) ecrapi.GetRepositoryPolicyInput {
		return ecrapi.GetRepositoryPolicyInput{RepositoryName: &h.warm.Name}
	}),
	setting("SetRepositoryPolicy", (*ecrapi.API).SetRepositoryPolicy, func(h *house) ecrapi.SetRepositoryPolicyInput {
		return ecrapi.SetRepositoryPolicyInput{RepositoryName: &h.warm.Name, PolicyText: new(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"ecr:BatchGetImage"}]}`)}
	}),
	setting("DeleteRepositoryPolicy", (*ecrapi.API).DeleteRepositoryPolicy, func(h *house) ecrapi.DeleteRepositoryPolicyInput {
		return ecrapi.DeleteRepositoryPolicyInput{RepositoryName: &h.warm.Name}
	}),
	setting("GetLifecyclePolicy", (*ecrapi.API).GetLifecyclePolicy, func(h *house) ecrapi.GetLifecyclePolicyInput {
		return ecrapi.GetLifecyclePolicyInput{RepositoryName: &h.warm.Name}
	}),
	setting("PutLifecyclePolicy", (*ecrapi.API).PutLifecyclePolicy, func(h *house) ecrapi.PutLifecyclePolicyInput {
		return ecrapi.PutLifecyclePolicyInput{RepositoryName: &h.warm.Name, LifecyclePolicyText: new(
			`{"rules":[{"rulePriority":1,"selection":{"tagStatus":"untagged","countType":"imageCountMoreThan","countNumber":1},"action":{"type":"expire"}}]}`)}
	}),
	setting("DeleteLifecyclePolicy", (*ecrapi.API).DeleteLifecyclePolicy, func(h *house) ecrapi.DeleteLifecyclePolicyInput {
		return ecrapi.DeleteLifecyclePolicyInput{RepositoryName: &h.warm.Name}
	}),
	setting("PutImageTagMutability", (*ecrapi.API).PutImageTagMutability, func(h *house) ecrapi.PutImageTagMutabilityInput {
		return ecrapi.PutImageTagMutabilityInput{RepositoryName: &h.warm.Name, ImageTagMutability: new("IMMUTABLE")}
	}),
	setting("PutImageScanningConfiguration", (*ecrapi.API).PutImageScanningConfiguration, func(h *house) ecrapi.PutImageScanningConfigurationInput {
		return ecrapi.PutImageScanningConfigurationInput{RepositoryName: &h.warm.Name, ImageScanningConfiguration: &ecrapi.ImageScanningConfiguration{ScanOnPush: true}}
	}),
	setting("BatchGetRepositoryScanningConfiguration", (*ecrapi.API).BatchGetRepositoryScanningConfiguration, func(h *house) ecrapi.BatchGetRepositoryScanningConfigurationInput {
		return ecrapi.BatchGetRepositoryScanningConfigurationInput{RepositoryNames: []string{h.warm.Name}}
	}),
	setting("ListTagsForResource", (*ecrapi.API).ListTagsForResource, func(h *house) ecrapi.ListTagsForResourceInput {
		return ecrapi.ListTagsForResourceInput{ResourceArn: h.arn()}
	}),
	setting("TagResource", (*ecrapi.API).TagResource, func(h *house) ecrapi.TagResourceInput {
		return ecrapi.TagResourceInput{ResourceArn: h.arn(), Tags: []ecrapi.Tag{{Key: new("a"), Value: new("b")}}}
	}),
	setting("UntagResource", (*ecrapi.API).UntagResource, func(h *house) ecrapi.UntagResourceInput {
		return ecrapi.UntagResourceInput{ResourceArn: h.arn(), TagKeys: []string{"a"}}
	}),
	{"`API.DescribeRepositories`", only("DescribeRepositories"), sayDenied, func(t *testing.T, h *house) string {
		return said(h.api.DescribeRepositories(t.Context(), h.caller(), ecrapi.DescribeRepositoriesInput{}))
	}},
	{"`API.GetAuthorizationToken`", nil, "`API.Identify` may refuse it; `Images.Password` gives the password", nil},
	{"`API`: rules, templates, exclusions, settings of the registry", nil, sayControl, nil},
	{"`API.Rules`, `Template`, `Credentials`, `Excluded`, `PullThroughCacheEvent`", nil, sayHost, nil},

	{"`debug.Page`", nil, "who reaches it sees the names of all tenants' images: put it behind a login. `fakeecr` shows it to this machine only", nil},
}

// house is a registry that keeps something, and whose upstream has more.
type house struct {
	*testkit.World
	api        *ecrapi.API
	img        *pullthroughtest.Image // upstream, in both repositories
	signature  *pullthroughtest.Image // of img
	warm, cold pullthrough.Repo       // one that is there, and one that is not

	mu     sync.Mutex
	refuse func(pullthrough.Action) bool
	asked  []pullthrough.Action // each once
}

const noEntry = "no entry for you"

func newHouse(t *testing.T) *house {
	h := &house{warm: testkit.Repo("warm"), cold: testkit.Repo("cold")}
	catalog := &ecrapi.Catalog{}
	h.api = &ecrapi.API{}
	h.World = testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Store, p.OnEvent, p.Authorize = catalog.Around(memstore.New()), catalog.RecordPull, h.authorize
		p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{BlobsFirst: true, Retries: -1}
		}
		h.api.Images = &ecrapi.Images{Proxy: p, Catalog: catalog}
	})
	h.img = testkit.Image(1)
	h.signature = pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, Subject: h.img, ArtifactType: "application/vnd.example.signature"})
	for _, name := range []string{"warm", "cold"} {
		h.Up.Push(name, "1", h.img)
		h.Up.Push(name, "", h.signature)
	}
	stored := testkit.Image(3)
	require.NoError(t, h.Store.PutManifest(t.Context(), h.warm, &pullthrough.Manifest{
		Descriptor: ocispec.Descriptor{MediaType: stored.MediaType, Digest: stored.Digest, Size: int64(len(stored.Content))}, Content: stored.Content, Tag: "stored",
	}))
	return h
}

// setting is the entrance of an operation that asks for its own name.
func setting[In, Out any](name string, do func(*ecrapi.API, context.Context, pullthrough.Identity, In) (Out, error), in func(*house) In) entrance {
	return entrance{"`API." + name + "`", only(pullthrough.Action(name)), sayDenied, func(t *testing.T, h *house) string {
		return said(do(h.api, t.Context(), h.caller(), in(h)))
	}}
}

// arn names the repository that is there.
func (h *house) arn() *string {
	return new("arn:aws:ecr:us-east-1:123456789012:repository/" + h.warm.Name)
}

func (h *house) authorize(_ context.Context, a pullthrough.Action, _ pullthrough.Request) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Contains(h.asked, a) {
		h.asked = append(h.asked, a)
	}
	if h.refuse != nil && h.refuse(a) {
		return errors.New(noEntry)
	}
	return nil
}

func (h *house) request(repo pullthrough.Repo, ref string) pullthrough.Request {
	return pullthrough.Request{Repo: repo, Ref: ref, Caller: "me"}
}

func (h *house) caller() pullthrough.Identity { return pullthrough.Identity{Caller: "me"} }

func (h *house) around() http.Handler { return h.Handler(http.NotFoundHandler()) }

// beside is a host with handlers of its own.
func (h *house) beside() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !h.TryServe(w, r) {
			http.NotFound(w, r)
		}
	})
}

func (h *house) referrers() string {
	return "/v2/" + h.cold.Name + "/referrers/" + h.img.Digest.String()
}

func (h *house) get(t *testing.T, handler http.Handler, path string) string {
	rec := httptest.NewRecorder()
	handler.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return fmt.Sprint(rec.Code, rec.Body)
}

// said is an answer, or the error in its place.
func said[T any](v T, err error) string {
	if err != nil {
		return err.Error()
	}
	if b, ok := any(v).(*pullthrough.Blob); ok {
		content, err := io.ReadAll(b.Body)
		return fmt.Sprint(string(content), errors.Join(err, b.Body.Close()))
	}
	return fmt.Sprintf("%+v", v)
}

// leaks is what an answer tells of what is stored, or of what upstream has. The names that a
// request has itself do not count.
func (h *house) leaks(answer string) (leaks []string) {
	for _, word := range []string{"stored", h.signature.Digest.String(), h.signature.Digest.Encoded()[:16], h.warm.Name} {
		if strings.Contains(answer, word) && !strings.Contains(answer, noEntry) {
			leaks = append(leaks, word)
		}
	}
	return leaks
}

func TestEntrances(t *testing.T) {
	for _, e := range entrances {
		if e.use == nil {
			assert.Empty(t, e.asks, e.name)
			continue
		}
		t.Run(e.name, func(t *testing.T) {
			open := newHouse(t)
			open.asked = nil
			answer := e.use(t, open)
			assert.NotContains(t, answer, noEntry)
			assert.Equal(t, e.asks, open.asked, "this is asked for, in this order: %s", answer)
			open.Settled(t)
			assert.Equal(t, slices.Contains(e.asks, pullthrough.ActionImport), len(open.Up.Log()) > 0, "upstream: %s", open.Up.Log())

			for _, missing := range append([]pullthrough.Action{""}, e.asks...) {
				h := newHouse(t)
				h.refuse = func(a pullthrough.Action) bool { return missing == "" || a == missing }
				answer := e.use(t, h)
				h.Settled(t)
				assert.Empty(t, h.Up.Log(), "without %q", missing)
				assert.Empty(t, h.leaks(answer), "without %q: %s", missing, answer)
				if missing == "" || missing == e.asks[0] {
					assert.Equal(t, e.asks[:1], h.asked, "nothing more is asked of one who is refused")
					assert.Contains(t, answer, noEntry)
				}
			}
		})
	}
}

// TestEveryEntranceHasItsRow: a new method, operation or path needs a decision.
func TestEveryEntranceHasItsRow(t *testing.T) {
	named := func(name string) bool {
		return slices.ContainsFunc(entrances, func(e entrance) bool { return strings.Contains(e.name, name) })
	}
	for m := range reflect.TypeFor[*pullthrough.Proxy]().Methods() {
		if slices.Contains([]string{"Connect", "LeaveForImports", "Running", "TakeImports", "TakeTurn", "Waiting"}, m.Name) {
			continue // in export_test.go
		}
		assert.True(t, named("`Proxy."+m.Name+"`") || named("`"+m.Name+"`: "), "Proxy.%s has no row", m.Name)
	}
	for kind := ocipath.Base; kind.String() != "unknown"; kind++ {
		for _, door := range []string{"ServeHTTP", "Handler"} {
			assert.True(t, named("`"+door+"`: "+kind.String()), "%s has no row for %s", door, kind)
		}
	}
	for m := range reflect.TypeFor[*ecrapi.API]().Methods() {
		control := slices.ContainsFunc([]string{"Rule", "Template", "Exclusion", "RegistryPolicy", "RegistryScanning", "AccountSetting", "DescribeRegistry"}, func(s string) bool { return strings.Contains(m.Name, s) }) && m.Type.NumIn() == 4
		hosts := slices.Contains([]string{"Rules", "Template", "Credentials", "Excluded", "PullThroughCacheEvent", "ServeHTTP", "TryServe"}, m.Name)
		assert.True(t, named("`API."+m.Name+"`") || control || hosts, "API.%s has no row", m.Name)
	}
	for m := range reflect.TypeFor[*debug.Page]().Methods() {
		assert.Contains(t, []string{"ServeHTTP", "Record"}, m.Name, "debug.Page.%s has no row", m.Name)
	}
}

func (e entrance) Name() string            { return e.name }
func (e entrance) Proof() func(*testing.T) { return TestEntrances }

// Cells are those of the table in docs/security.md.
func (e entrance) Cells() []string {
	asks := make([]string, len(e.asks))
	for i, a := range e.asks {
		asks[i] = "`" + string(a) + "`"
	}
	if e.asks == nil {
		asks = []string{"nothing"}
	}
	return []string{e.name, strings.Join(asks, ", "), e.refused}
}

func TestSecurityDocument(t *testing.T) {
	testkit.CheckDocument(t, "security.md", []string{"entrance", "asks `Authorize` for", "whom it refuses gets; if it asks for nothing, why"},
		[]testkit.Section[entrance]{{Title: "Entrances", Rows: entrances}})
}
