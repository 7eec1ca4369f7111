package pullthrough_test

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
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var ecrRepositories = []trait{
	{"C01", "the first pull makes the repository", "documented", "a Store that is a `RepoCreator` makes it, after upstream has shown the image and before anything is put", testC01},
	{"C02", "it is made for what the caller asked, by what the rule and a template say", "documented", "`CreateRepo` is told the rule and the request", testC02},
	{"C03", "many clients pull from a repository that is not there", "inferred", "it is made once for each tag or digest that they pull, and none fails", testC03},
	{"C04", "nothing is made for an image that upstream does not have, or does not give", "chosen, `repo-after-404`", "the same", testC04},
	{"C05", "when the repository cannot be made, for example since a template's role is missing, the pull fails", "documented, `template-role-missing`", "an error of `CreateRepo` is `NAME_UNKNOWN`, with an event; a Store may say something else by an `*Error` of its own", testC05},
	{"C06", "a repository that is there keeps its settings", "documented", "`CreateRepo` is not called", testC06},
	{"C07", "a repository that was deleted is made again by the next pull", "inferred", "the same", testC07},
	{"C08", "blobs of a repository that is not there are `NAME_UNKNOWN`", "inferred", "the same; upstream is not asked, since blobs come after their image. With `Policy.BlobsFirst` they are fetched, and make no repository", testC08},
	{"C09", "lists of tags and referrers make no repository", "inferred", "the same", testC09},
	{"C10", "a registry knows its repositories", "inferred", "a Store that fails to tell harms no pull; one that is no `RepoCreator` has a repository as soon as something is put", testC10},
}

func testC01(t *testing.T) {
	for name, ref := range map[string]string{"tag": "1", "digest": image(1).Digest.String()} {
		t.Run(name, func(t *testing.T) {
			e, s := startRepoECR(t, nil)
			e.push("1", image(1))
			e.serves(t, ref, image(1))
			require.Len(t, s.creations(), 1)
			assert.Equal(t, []string{asks("GET", ref, 200)}, s.creations()[0].asked, "upstream has shown the image")
			assert.Equal(t, []digest.Digest{image(1).Digest}, s.puts(), "nothing was put before it was there")
			assert.Empty(t, e.told.storeFailures())
			e.serves(t, ref, image(1))
			e.servesBlobs(t, image(1))
			assert.Len(t, s.creations(), 1)
		})
	}
}

func testC02(t *testing.T) {
	e, s := startRepoECR(t, nil)
	e.push("1", image(1))
	e.serves(t, "1", image(1), "X-Caller", "ann")
	require.Len(t, s.creations(), 1)
	c := s.creations()[0]
	assert.Equal(t, e.Rules.(pullthrough.StaticRules)[0], c.rule)
	assert.Equal(t, pullthrough.Request{Repo: ecrRepo("a"), Ref: "1", Caller: "ann"}, c.r)
}

func testC03(t *testing.T) {
	e, s := startRepoECR(t, nil)
	const tags = 4
	for i := range tags {
		e.push(strconv.Itoa(i), image(int64(i)))
	}
	stall := newGate(t)
	e.up.Fault(pullthroughtest.Fault{Stall: stall.c})
	var herd sync.WaitGroup
	for i := range 8 * tags {
		herd.Go(func() { e.brings(t, manifestPath("a", strconv.Itoa(i%tags)), "", image(int64(i%tags)).Content) })
	}
	require.NoError(t, e.up.Wait(t.Context(), "*", tags))
	stall.open()
	herd.Wait()
	e.settled(t)
	assert.Len(t, e.up.Log(), tags)
	made := map[string]int{}
	for _, c := range s.creations() {
		made[c.r.Ref]++
	}
	assert.NotEmpty(t, made)
	for tag, times := range made {
		assert.Equal(t, 1, times, tag)
	}
	assert.Empty(t, e.told.storeFailures())
	assert.Len(t, e.tagsOf(t, "a"), tags)
}

func testC04(t *testing.T) {
	for code, wire := range map[int]int{404: 404, 401: 403, 403: 403, 429: 429, 500: 502, 503: 502} {
		e, s := startRepoECR(t, nil, policy(pullthrough.Policy{Retries: -1}))
		e.push("1", image(1))
		e.up.Fault(status(code))
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			r := e.ask(t, method, manifestPath("a", "1"))
			assert.Equal(t, wire, r.StatusCode)
			if wire != 404 && method == http.MethodGet {
				got, _ := ociError(t, r)
				assert.NotEqual(t, "NAME_UNKNOWN", got, "the refusal keeps its meaning")
			}
		}
		e.settled(t)
		assert.Empty(t, s.creations())
		assert.Empty(t, s.puts())
	}
	for name, body := range map[string]string{"a web page": "<html>", "schema 1": `{"schemaVersion":1,"fsLayers":[]}`} {
		e, s := startRepoECR(t, nil, policy(pullthrough.Policy{Retries: -1}))
		e.push("1", image(1))
		e.up.Fault(pullthroughtest.Fault{Body: []byte(body)})
		assert.NotEqual(t, 200, e.get(t, manifestPath("a", "1")).StatusCode, name)
		assert.Empty(t, s.creations(), name)
	}
}

func testC05(t *testing.T) {
	e, s := startRepoECR(t, nil)
	s.refuse = errors.New("canary: the template has no role")
	e.push("1", image(1))
	for range 2 {
		r := e.get(t, manifestPath("a", "1"))
		assert.Equal(t, sayNoRepository("hub/a", registryAccount), assertOCI(t, r, 404, "NAME_UNKNOWN"))
	}
	e.settled(t)
	assert.Empty(t, s.puts())
	failed := e.told.of(pullthrough.EventFetch)
	require.NotEmpty(t, failed)
	assert.ErrorIs(t, failed[0].Err, s.refuse)

	s.refuse = &pullthrough.Error{Kind: pullthrough.ErrDenied, Message: "the template has no role"}
	e.refuses(t, "1", 403, "DENIED", "the template has no role")
	s.refuse = nil
	e.serves(t, "1", image(1))
	assert.Len(t, s.puts(), 1)
}

func testC06(t *testing.T) {
	e, s := startRepoECR(t, []string{"a"})
	e.push("1", image(1))
	e.serves(t, "1", image(1))
	e.push("1", image(2))
	e.pass(day)
	e.serves(t, "1", image(2))
	e.servesBlobs(t, image(2))
	assert.Empty(t, s.creations())
}

func testC07(t *testing.T) {
	e, s := startRepoECR(t, nil)
	img := image(1)
	e.push("1", img)
	e.serves(t, "1", img)
	s.removeRepo("a", "1", img.Digest.String())
	e.serves(t, "1", img)
	assert.Len(t, s.creations(), 2)
	e.asked(t, asks("GET", "1", 200), asks("GET", "1", 200))
}

func testC08(t *testing.T) {
	e, s := startRepoECR(t, nil)
	img := image(1)
	e.push("1", img)
	path := blobPath("a", img.Layers[0].Digest)
	e.refusesAt(t, path, 404, "NAME_UNKNOWN", sayNoRepository("hub/a", registryAccount))
	assert.Equal(t, 404, e.ask(t, http.MethodHead, path).StatusCode)
	e.asked(t)
	assert.Empty(t, s.creations())
	e.serves(t, "1", img)
	e.servesBlobs(t, img)
}

func testC09(t *testing.T) {
	e, s := startRepoECR(t, nil)
	subject, signature, sbom := e.signed()
	e.lists(t, subject.Digest, signature, sbom)
	assertOCI(t, e.get(t, tagsPath("a")), 404, "NAME_UNKNOWN")
	assert.Equal(t, 200, e.get(t, "/v2/_catalog").StatusCode)
	assert.Empty(t, s.creations())
}

func testC10(t *testing.T) {
	e, s := startRepoECR(t, []string{"a"})
	s.blind = errors.New("canary: the database is down")
	img := image(1)
	e.push("1", img)
	e.serves(t, "1", img)
	e.servesBlobs(t, img)
	assert.NotEmpty(t, e.told.storeFailures())

	plain := startECR(t, pullthroughtest.Config{}, in(onlyStore{memstore.New()}))
	plain.push("1", img)
	plain.servesBlobs(t, img) // before its image
	plain.serves(t, "1", img)
}
