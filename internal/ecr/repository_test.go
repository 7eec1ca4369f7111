package ecr_test

import (
	"errors"
	"net/http"
	"strconv"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var ecrRepositories = []trait{
	{"C01", "the first pull makes the repository", "documented", "a Store that is a `RepoCreator` makes it, after upstream has shown the image and before anything is put", testPullMakesTheRepository},
	{"C02", "it is made for what the caller asked, by what the rule and a template say", "documented", "`CreateRepo` is told the rule and the request", testCreationIsToldRuleAndRequest},
	{"C03", "many clients pull from a repository that is not there", "inferred", "it is made once for each tag or digest that they pull, and none fails", testHerdMakesTheRepositoryOnce},
	{"C04", "nothing is made for an image that upstream does not have, or does not give", "chosen, `repo-after-404`", "the same", testNothingIsMadeForAMissingImage},
	{"C05", "when the repository cannot be made, for example since a template's role is missing, the pull fails", "documented, `template-role-missing`", "an error of `CreateRepo` is `NAME_UNKNOWN`, with an event; a Store may say something else by an `*Error` of its own", testCreationThatFails},
	{"C06", "a repository that is there keeps its settings", "documented", "`CreateRepo` is not called", testExistingRepositoryIsNotMade},
	{"C07", "a repository that was deleted is made again by the next pull", "inferred", "the same", testDeletedRepositoryIsMadeAgain},
	{"C08", "blobs of a repository that is not there are `NAME_UNKNOWN`", "inferred", "the same; upstream is not asked, since blobs come after their image. With `Policy.BlobsFirst` they are fetched, and make no repository", testBlobsOfAMissingRepository},
	{"C09", "lists of tags and referrers make no repository", "inferred", "the same", testListsMakeNoRepository},
	{"C10", "a registry knows its repositories", "inferred", "a Store that fails to tell harms no pull; one that is no `RepoCreator` has a repository as soon as something is put", testStoresThatDoNotKnowRepositories},
}

func testPullMakesTheRepository(t *testing.T) {
	for name, ref := range map[string]string{"tag": "1", "digest": testkit.Image(1).Digest.String()} {
		t.Run(name, func(t *testing.T) {
			e, s := startRepoECR(t, nil)
			e.push("1", testkit.Image(1))
			e.serves(t, ref, testkit.Image(1))
			require.Len(t, s.creations(), 1)
			assert.Equal(t, []string{asks("GET", ref, 200)}, s.creations()[0].asked, "upstream has shown the image")
			assert.Equal(t, []digest.Digest{testkit.Image(1).Digest}, s.puts(), "nothing was put before it was there")
			assert.Empty(t, e.told.StoreFailures())
			e.serves(t, ref, testkit.Image(1))
			e.servesBlobs(t, testkit.Image(1))
			assert.Len(t, s.creations(), 1)
		})
	}
}

func testCreationIsToldRuleAndRequest(t *testing.T) {
	e, s := startRepoECR(t, nil)
	e.push("1", testkit.Image(1))
	e.serves(t, "1", testkit.Image(1), "X-Caller", "ann")
	require.Len(t, s.creations(), 1)
	c := s.creations()[0]
	assert.Equal(t, e.Rules.(pullthrough.StaticRules)[0], c.rule)
	assert.Equal(t, pullthrough.Request{Repo: ecrRepo("a"), Ref: "1", Caller: "ann"}, c.r)
}

func testHerdMakesTheRepositoryOnce(t *testing.T) {
	e, s := startRepoECR(t, nil)
	const tags = 4
	for i := range tags {
		e.push(strconv.Itoa(i), testkit.Image(int64(i)))
	}
	stall := testkit.NewGate(t)
	e.Up.Fault(pullthroughtest.Fault{Stall: stall.C})
	var herd sync.WaitGroup
	for i := range 8 * tags {
		herd.Go(func() {
			e.brings(t, testkit.ManifestPath("a", strconv.Itoa(i%tags)), "", testkit.Image(int64(i%tags)).Content)
		})
	}
	require.NoError(t, e.Up.Wait(t.Context(), "*", tags))
	stall.Open()
	herd.Wait()
	e.Settled(t)
	assert.Len(t, e.Up.Log(), tags)
	made := map[string]int{}
	for _, c := range s.creations() {
		made[c.r.Ref]++
	}
	assert.NotEmpty(t, made)
	for tag, times := range made {
		assert.Equal(t, 1, times, tag)
	}
	assert.Empty(t, e.told.StoreFailures())
	assert.Len(t, e.tagsOf(t, "a"), tags)
}

func testNothingIsMadeForAMissingImage(t *testing.T) {
	for code, wire := range map[int]int{404: 404, 401: 403, 403: 403, 429: 429, 500: 502, 503: 502} {
		e, s := startRepoECR(t, nil, testkit.WithPolicy(pullthrough.Policy{Retries: -1}))
		e.push("1", testkit.Image(1))
		e.Up.Fault(testkit.Status(code))
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			r := e.Ask(t, method, testkit.ManifestPath("a", "1"))
			assert.Equal(t, wire, r.StatusCode)
			if wire != 404 && method == http.MethodGet {
				got, _ := testkit.OCIError(t, r)
				assert.NotEqual(t, "NAME_UNKNOWN", got, "the refusal keeps its meaning")
			}
		}
		e.Settled(t)
		assert.Empty(t, s.creations())
		assert.Empty(t, s.puts())
	}
	for name, body := range map[string]string{"a web page": "<html>", "schema 1": `{"schemaVersion":1,"fsLayers":[]}`} {
		e, s := startRepoECR(t, nil, testkit.WithPolicy(pullthrough.Policy{Retries: -1}))
		e.push("1", testkit.Image(1))
		e.Up.Fault(pullthroughtest.Fault{Body: []byte(body)})
		assert.NotEqual(t, 200, e.Get(t, testkit.ManifestPath("a", "1")).StatusCode, name)
		assert.Empty(t, s.creations(), name)
	}
}

func testCreationThatFails(t *testing.T) {
	e, s := startRepoECR(t, nil)
	s.refuse = errors.New("canary: the template has no role")
	e.push("1", testkit.Image(1))
	for range 2 {
		r := e.Get(t, testkit.ManifestPath("a", "1"))
		assert.Equal(t, testkit.SayNoRepository("hub/a", testkit.RegistryAccount), testkit.AssertOCI(t, r, 404, "NAME_UNKNOWN"))
	}
	e.Settled(t)
	assert.Empty(t, s.puts())
	failed := e.told.Of(pullthrough.EventFetch)
	require.NotEmpty(t, failed)
	assert.ErrorIs(t, failed[0].Err, s.refuse)

	s.refuse = &pullthrough.Error{Kind: pullthrough.ErrDenied, Message: "the template has no role"}
	e.refuses(t, "1", 403, "DENIED", "the template has no role")
	s.refuse = nil
	e.serves(t, "1", testkit.Image(1))
	assert.Len(t, s.puts(), 1)
}

func testExistingRepositoryIsNotMade(t *testing.T) {
	e, s := startRepoECR(t, []string{"a"})
	e.push("1", testkit.Image(1))
	e.serves(t, "1", testkit.Image(1))
	e.push("1", testkit.Image(2))
	e.pass(day)
	e.serves(t, "1", testkit.Image(2))
	e.servesBlobs(t, testkit.Image(2))
	assert.Empty(t, s.creations())
}

func testDeletedRepositoryIsMadeAgain(t *testing.T) {
	e, s := startRepoECR(t, nil)
	img := testkit.Image(1)
	e.push("1", img)
	e.serves(t, "1", img)
	s.removeRepo("a", "1", img.Digest.String())
	e.serves(t, "1", img)
	assert.Len(t, s.creations(), 2)
	e.asked(t, asks("GET", "1", 200), asks("GET", "1", 200))
}

func testBlobsOfAMissingRepository(t *testing.T) {
	e, s := startRepoECR(t, nil)
	img := testkit.Image(1)
	e.push("1", img)
	path := testkit.BlobPath("a", img.Layers[0].Digest)
	e.refusesAt(t, path, 404, "NAME_UNKNOWN", testkit.SayNoRepository("hub/a", testkit.RegistryAccount))
	assert.Equal(t, 404, e.Ask(t, http.MethodHead, path).StatusCode)
	e.asked(t)
	assert.Empty(t, s.creations())
	e.serves(t, "1", img)
	e.servesBlobs(t, img)
}

func testListsMakeNoRepository(t *testing.T) {
	e, s := startRepoECR(t, nil)
	subject, signature, sbom := e.signed()
	e.lists(t, subject.Digest, signature, sbom)
	testkit.AssertOCI(t, e.Get(t, tagsPath("a")), 404, "NAME_UNKNOWN")
	assert.Equal(t, 200, e.Get(t, "/v2/_catalog").StatusCode)
	assert.Empty(t, s.creations())
}

func testStoresThatDoNotKnowRepositories(t *testing.T) {
	e, s := startRepoECR(t, []string{"a"})
	s.blind = errors.New("canary: the database is down")
	img := testkit.Image(1)
	e.push("1", img)
	e.serves(t, "1", img)
	e.servesBlobs(t, img)
	assert.NotEmpty(t, e.told.StoreFailures())

	plain := startECR(t, pullthroughtest.Config{}, in(onlyStore{memstore.New()}))
	plain.push("1", img)
	plain.servesBlobs(t, img) // before its image
	plain.serves(t, "1", img)
}
