package ecr_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var ecrPermissions = []trait{
	{"P01", "the first pull of a repository needs `ecr:BatchGetImage`, `ecr:BatchImportUpstreamImage` and `ecr:CreateRepository`", "documented", "`Proxy.Authorize` is asked for each, in this order, before upstream is", testFirstPullNeedsThreePermissions},
	{"P02", "in a repository that is there a new image needs the first two, a cached one the first", "documented", "the same", testNewImageNeedsTwoPermissions},
	{"P03", "without `BatchImportUpstreamImage` a new image is `Requested image not found`", "documented", "the same: 404, nobody is asked, and nobody learns what upstream has", testWithoutImportPermission},
	{"P04", "without `CreateRepository` a new repository is `NAME_UNKNOWN`", "documented", "the same", testWithoutCreatePermission},
	{"P05", "without `BatchImportUpstreamImage` a repository that is not there is `NAME_UNKNOWN` too", "documented", "the same", testWithoutImportPermissionNoRepository},
	{"P06", "whether cached tags need `BatchImportUpstreamImage` too, reports disagree", "measured, `import-permission`", "they do not; a tag that is due is served unchecked to those who lack it", testCachedTagsNeedNoImportPermission},
	{"P07", "permissions are the caller's", "inferred", "each caller is asked for before it may join a pull that runs for another; what one is refused is not remembered for others", testPermissionsAreTheCallers},
	{"P08", "blobs need what their image needs", "inferred", "the same: without the import permission a blob that is not here is `BLOB_UNKNOWN`", testBlobsNeedWhatTheirImageNeeds},
	{"P09", "identity, repository and registry policies may grant an import", "documented", "that is up to `Proxy.Authorize`, which is told account, Region, repository, reference and caller", testAuthorizeIsToldWhatItNeeds},
	{"P10", "the import behind a pull runs without the caller", "documented", "the same: nobody is asked again", testImportRunsWithoutItsCaller},
}

// guard is an Authorize that refuses actions to one caller.
type guard struct {
	caller  string
	actions []pullthrough.Action
	mu      sync.Mutex
	asked   []pullthrough.Action
	last    pullthrough.Request
}

func (g *guard) say(a pullthrough.Action) string {
	return "User: " + g.caller + " is not authorized to perform: ecr:" + string(a)
}

func (g *guard) authorize(_ context.Context, a pullthrough.Action, r pullthrough.Request) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked, g.last = append(g.asked, a), r
	if r.Caller == g.caller && slices.Contains(g.actions, a) {
		return errors.New(g.say(a))
	}
	return nil
}

// took returns the actions that were asked for since it was last called.
func (g *guard) took() []pullthrough.Action {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer func() { g.asked = nil }()
	return g.asked
}

// refusingTo is a registry without repositories that refuses actions to one
// caller; its upstream has an image as the tag 1 of a.
func refusingTo(t *testing.T, caller string, actions ...pullthrough.Action) (*ecr, *guard, *pullthroughtest.Image) {
	t.Helper()
	g := &guard{caller: caller, actions: actions}
	e, _ := startRepoECR(t, nil, func(p *pullthrough.Proxy) { p.Authorize = g.authorize })
	img := testkit.Image(1)
	e.push("1", img)
	return e, g, img
}

func testFirstPullNeedsThreePermissions(t *testing.T) {
	assert.Equal(t, []pullthrough.Action{"BatchGetImage", "BatchImportUpstreamImage", "CreateRepository"},
		[]pullthrough.Action{pullthrough.ActionPull, pullthrough.ActionImport, pullthrough.ActionCreate})
	all := []pullthrough.Action{pullthrough.ActionPull, pullthrough.ActionImport, pullthrough.ActionCreate}
	e, g, img := refusingTo(t, "")
	stall := testkit.NewGate(t)
	e.Up.Fault(pullthroughtest.Fault{Stall: stall.C})
	var pull sync.WaitGroup
	pull.Go(func() { e.brings(t, testkit.ManifestPath("a", "1"), "", img.Content) })
	require.NoError(t, e.Up.Wait(t.Context(), "*", 1))
	assert.Equal(t, all, g.took())
	stall.Open()
	pull.Wait()
	assert.Empty(t, g.took())

	e, g, _ = refusingTo(t, "")
	assert.Equal(t, 200, e.Ask(t, http.MethodHead, testkit.ManifestPath("a", "1")).StatusCode)
	assert.Equal(t, all, g.took())
}

func testNewImageNeedsTwoPermissions(t *testing.T) {
	e, g, img := refusingTo(t, "")
	e.serves(t, "1", img)
	g.took()
	e.push("2", testkit.Image(2))
	e.serves(t, "2", testkit.Image(2))
	assert.Equal(t, []pullthrough.Action{pullthrough.ActionPull, pullthrough.ActionImport}, g.took())
	e.Settled(t)
	for _, ref := range []string{"1", "2", img.Digest.String()} {
		e.Get(t, testkit.ManifestPath("a", ref))
		assert.Equal(t, []pullthrough.Action{pullthrough.ActionPull}, g.took())
	}
}

func testWithoutImportPermission(t *testing.T) {
	e, g, img := refusingTo(t, "bob", pullthrough.ActionImport)
	e.serves(t, "1", img, "X-Caller", "ann") // now the repository is there
	e.push("2", testkit.Image(2))
	for _, ref := range []string{"2", "absent", testkit.Image(2).Digest.String()} {
		r := e.Get(t, testkit.ManifestPath("a", ref), "X-Caller", "bob")
		assert.Equal(t, testkit.SayNotFound, testkit.AssertOCI(t, r, 404, "MANIFEST_UNKNOWN"))
		assert.Equal(t, 404, e.Ask(t, http.MethodHead, testkit.ManifestPath("a", ref), "X-Caller", "bob").StatusCode)
	}
	e.asked(t)
	_, err := e.Manifest(t.Context(), pullthrough.Request{Repo: ecrRepo("a"), Ref: "2", Caller: "bob"})
	require.ErrorIs(t, err, pullthrough.ErrDenied, "the host can tell")
	assert.ErrorContains(t, err, g.say(pullthrough.ActionImport))
	e.serves(t, "2", testkit.Image(2), "X-Caller", "ann")
	e.asked(t, asks("GET", "2", 200))
}

func testWithoutCreatePermission(t *testing.T) {
	e, g, img := refusingTo(t, "bob", pullthrough.ActionCreate)
	for _, path := range []string{testkit.ManifestPath("a", "1"), testkit.ManifestPath("a", "absent"), testkit.ManifestPath("a", img.Digest.String())} {
		r := e.Get(t, path, "X-Caller", "bob")
		assert.Equal(t, testkit.SayNoRepository("hub/a", testkit.RegistryAccount), testkit.AssertOCI(t, r, 404, "NAME_UNKNOWN"))
	}
	e.asked(t)
	_, err := e.Manifest(t.Context(), pullthrough.Request{Repo: ecrRepo("a"), Ref: "1", Caller: "bob"})
	require.ErrorIs(t, err, pullthrough.ErrDenied)
	assert.ErrorContains(t, err, g.say(pullthrough.ActionCreate))

	e.serves(t, "1", img, "X-Caller", "ann")
	e.push("2", testkit.Image(2))
	e.serves(t, "2", testkit.Image(2), "X-Caller", "bob") // now it is there
}

func testWithoutImportPermissionNoRepository(t *testing.T) {
	e, _, img := refusingTo(t, "bob", pullthrough.ActionImport)
	for _, ref := range []string{"1", "absent", img.Digest.String()} {
		r := e.Get(t, testkit.ManifestPath("a", ref), "X-Caller", "bob")
		assert.Equal(t, testkit.SayNoRepository("hub/a", testkit.RegistryAccount), testkit.AssertOCI(t, r, 404, "NAME_UNKNOWN"))
	}
	e.asked(t)
}

func testCachedTagsNeedNoImportPermission(t *testing.T) {
	e, _, img := refusingTo(t, "bob", pullthrough.ActionImport, pullthrough.ActionCreate)
	e.serves(t, "1", img, "X-Caller", "ann")
	e.servesBlobs(t, img)
	e.Settled(t)
	e.push("1", testkit.Image(2))
	for range 2 {
		e.serves(t, "1", img, "X-Caller", "bob")
		e.serves(t, img.Digest.String(), img, "X-Caller", "bob")
		assert.Equal(t, 200, e.Get(t, testkit.BlobPath("a", img.Layers[0].Digest), "X-Caller", "bob").StatusCode)
		e.pass(day)
	}
	e.asked(t)
	e.serves(t, "1", testkit.Image(2), "X-Caller", "ann")
	e.serves(t, "1", testkit.Image(2), "X-Caller", "bob")
}

func testPermissionsAreTheCallers(t *testing.T) {
	e, _, img := refusingTo(t, "bob", pullthrough.ActionImport)
	require.NoError(t, e.Store.(pullthrough.RepoCreator).CreateRepo(t.Context(), ecrRepo("a"), pullthrough.Rule{}, pullthrough.Request{}))
	stall := testkit.NewGate(t)
	e.Up.Fault(pullthroughtest.Fault{Stall: stall.C})
	var ann sync.WaitGroup
	ann.Go(func() { e.brings(t, testkit.ManifestPath("a", "1"), "ann", img.Content) })
	require.NoError(t, e.Up.Wait(t.Context(), "*", 1))
	r := e.Get(t, testkit.ManifestPath("a", "1"), "X-Caller", "bob") // at once, while ann waits
	assert.Equal(t, testkit.SayNotFound, testkit.AssertOCI(t, r, 404, "MANIFEST_UNKNOWN"))
	r = e.Get(t, testkit.ManifestPath("a", img.Digest.String()), "X-Caller", "bob")
	assert.Equal(t, testkit.SayNotFound, testkit.AssertOCI(t, r, 404, "MANIFEST_UNKNOWN"))
	stall.Open()
	ann.Wait()
	e.asked(t, asks("GET", "1", 200))
	e.serves(t, "1", img, "X-Caller", "bob") // now it is cached

	layer, content := img.Layers[0], testkit.BlobContent(t, img.Layers[0])
	body := testkit.NewGate(t)
	e.Up.Heal()
	e.Up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Stall: body.C})
	ann.Go(func() { e.brings(t, testkit.BlobPath("a", layer.Digest), "ann", content) })
	require.NoError(t, e.Up.Wait(t.Context(), testkit.Blobs, 1))
	testkit.AssertOCI(t, e.Get(t, testkit.BlobPath("a", layer.Digest), "X-Caller", "bob"), 404, "BLOB_UNKNOWN")
	body.Open()
	ann.Wait()
}

func testBlobsNeedWhatTheirImageNeeds(t *testing.T) {
	e, g, img := refusingTo(t, "bob", pullthrough.ActionImport)
	e.serves(t, "1", img, "X-Caller", "ann")
	e.Up.Reset()
	g.took()
	path := testkit.BlobPath("a", img.Layers[0].Digest)
	testkit.AssertOCI(t, e.Get(t, path, "X-Caller", "bob"), 404, "BLOB_UNKNOWN")
	e.asked(t)
	assert.Equal(t, 200, e.Get(t, path, "X-Caller", "ann").StatusCode)
	e.Settled(t)
	assert.Equal(t, 200, e.Get(t, path, "X-Caller", "bob").StatusCode)
	want := []pullthrough.Action{pullthrough.ActionPull, pullthrough.ActionImport, pullthrough.ActionPull, pullthrough.ActionImport, pullthrough.ActionPull}
	assert.Equal(t, want, g.took())
}

func testAuthorizeIsToldWhatItNeeds(t *testing.T) {
	e, g, img := refusingTo(t, "")
	e.serves(t, "1", img, "X-Caller", "arn:aws:iam::210987654321:role/node")
	assert.Equal(t, pullthrough.Request{Repo: ecrRepo("a"), Ref: "1", Caller: "arn:aws:iam::210987654321:role/node"}, g.last)
}

func testImportRunsWithoutItsCaller(t *testing.T) {
	g := &guard{}
	e, _ := startRepoECR(t, nil, fills(pullthrough.FillBackground), func(p *pullthrough.Proxy) { p.Authorize = g.authorize })
	list, children := index()
	e.push("1", list)
	e.serves(t, "1", list, "X-Caller", "ann")
	assert.Equal(t, []pullthrough.Action{pullthrough.ActionPull, pullthrough.ActionImport, pullthrough.ActionCreate}, g.took())
	e.goesOffline(t, append(children, list)...)
}
