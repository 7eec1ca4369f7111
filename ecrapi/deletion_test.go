package ecrapi_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func identifier(img *pullthroughtest.Image, tag string) string {
	id := `{"imageDigest":"` + img.Digest.String() + `"`
	if tag != "" {
		id += `,"imageTag":"` + tag + `"`
	}
	return id + `}`
}

func (r *registry) deletes(t *testing.T, ids, gone, failures string) {
	t.Helper()
	r.ok(t, "BatchDeleteImage", `{`+hubA+`,"imageIds":[`+ids+`]}`, `{"imageIds":[`+gone+`],"failures":[`+failures+`]}`)
}

func TestBatchDeleteImage(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	one, two := image(1), image(2)
	r.up.Push("a", "v1", one)
	r.up.Push("a", "v2", one)
	r.up.Push("a", "v3", two)
	for _, tag := range []string{"v1", "v2", "v3"} {
		r.pull(t, "a", tag)
	}
	before := len(r.up.Log())
	r.deletes(t, `{"imageTag":"v1"}`, identifier(one, "v1"), ``)
	assert.Equal(t, map[string][]string{"v2": {one.Digest.String()}, "v3": {two.Digest.String()}}, r.tagged(t))
	r.deletes(t, `{"imageTag":"v2"}`, identifier(one, "v2"), ``)
	assert.Equal(t, map[string][]string{"v3": {two.Digest.String()}}, r.tagged(t), "an image goes with its last tag")
	assert.Equal(t, 1, len(r.tagged(t)))

	fails := func(id, code, reason string) string {
		return `{"imageId":` + id + `,"failureCode":"` + code + `","failureReason":"` + reason + `"}`
	}
	for id, failure := range map[string][2]string{
		`{"imageTag":"v1"}`:   {"ImageNotFound", "Requested image not found"},
		identifier(one, ""):   {"ImageNotFound", "Requested image not found"},
		`{}`:                  {"MissingDigestAndTag", "Invalid request parameters: both tag and digest cannot be null"},
		identifier(one, "v3"): {"ImageTagDoesNotMatchDigest", "Requested image tag does not match the requested image digest"},
		`{"imageDigest":"x"}`: {"InvalidImageDigest", "Invalid request parameters: image digest should satisfy the regex '[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+'"},
		`{"imageTag":"a b"}`:  {"InvalidImageTag", "Invalid request parameters: image tag should satisfy the regex '[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}'"},
	} {
		r.deletes(t, id, ``, fails(id, failure[0], failure[1]))
	}
	r.up.Push("a", "v4", two)
	r.pull(t, "a", "v4")
	r.deletes(t, `{"imageTag":"none"},`+identifier(two, ""), identifier(two, "v3")+","+identifier(two, "v4"), fails(`{"imageTag":"none"}`, "ImageNotFound", "Requested image not found"))
	assert.Empty(t, r.tagged(t), "the repository stays")
	assert.Len(t, r.up.Log(), before+1, "a deletion asks nobody upstream")
	r.fails(t, "BatchDeleteImage", `{`+hubA+`}`, "InvalidParameterException", constraint("imageIds", mustNotBeNull))
}

func TestAnImageThatAListRefersToStays(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	child := image(1)
	index := pullthroughtest.NewIndex(child)
	r.up.Push("a", "v1", index)
	r.up.Push("a", "child", child)
	r.bring(t, "a", "v1")
	r.pull(t, "a", "child")
	refused := func(id string) string {
		return `{"imageId":` + id + `,"failureCode":"ImageReferencedByManifestList","failureReason":"Requested image referenced by manifest list: [` + index.Digest.String() + `]"}`
	}
	r.deletes(t, identifier(child, ""), ``, refused(identifier(child, "")))
	r.deletes(t, `{"imageTag":"child"}`, ``, refused(`{"imageTag":"child"}`))
	assert.Equal(t, map[string][]string{"v1": {index.Digest.String()}, "child": {child.Digest.String()}}, r.tagged(t))
	r.deletes(t, `{"imageTag":"v1"},{"imageTag":"child"}`, identifier(index, "v1")+","+identifier(child, "child"), ``)
	assert.Empty(t, r.tagged(t), "in the order of the request")
}

// Deleting a tag is how a refresh is forced.
func TestTheNextPullOfADeletedTagAsksUpstream(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	one, two := image(1), image(2)
	r.up.Push("a", "v1", one)
	r.pull(t, "a", "v1")
	r.up.Push("a", "v1", two)
	r.pull(t, "a", "v1")
	assert.Equal(t, []string{"GET /v2/a/manifests/v1 200"}, r.up.Log(), "it is fresh")
	r.deletes(t, `{"imageTag":"v1"}`, identifier(one, "v1"), ``)
	require.Equal(t, http.StatusOK, r.request(http.MethodGet, "/v2/hub/a/manifests/v1"))
	r.idle(t)
	assert.Equal(t, map[string][]string{"v1": {two.Digest.String()}}, r.tagged(t))
	assert.Equal(t, 2, r.up.Count("GET /v2/a/manifests/v1 200"))
}

func TestDeleteRepository(t *testing.T) {
	for name, inner := range map[string]pullthrough.Store{"memory": memstore.New(), "directory": openDir(t)} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t, inner, nil)
			r.template(t, `"imageTagMutability":"IMMUTABLE"`)
			r.up.Push("a", "v1", image(1))
			r.up.Push("a/b", "v1", image(2))
			r.pull(t, "a", "v1")
			r.pull(t, "a/b", "v1")
			r.fails(t, "DeleteRepository", `{`+hubA+`}`, "RepositoryNotEmptyException",
				"The repository with name 'hub/a' in registry with id '123456789012' cannot be deleted because it still contains images")
			r.fails(t, "DeleteRepository", `{`+hubA+`,"force":false,"registryId":"1"}`, "InvalidParameterException", constraint("registryId", "Member must satisfy regular expression pattern: [0-9]{12}"))
			_, described := r.send(t, target+"DescribeRepositories", `{"repositoryNames":["hub/a"]}`)
			_, deleted := r.send(t, target+"DeleteRepository", `{`+hubA+`,"registryId":"123456789012","force":true}`)
			assert.Equal(t, `{"repository":`+described[len(`{"repositories":[`):len(described)-len(`]}`)]+`}`, deleted)
			r.fails(t, "DeleteRepository", `{`+hubA+`,"force":true}`, "RepositoryNotFoundException", noRepository("hub/a"))
			r.fails(t, "ListImages", `{`+hubA+`}`, "RepositoryNotFoundException", noRepository("hub/a"))
			assert.Equal(t, 404, r.request(http.MethodGet, "/v2/hub/a/tags/list"))
			assert.Equal(t, 200, r.request(http.MethodGet, "/v2/hub/a/b/tags/list"), "another repository")

			before := len(r.up.Log())
			r.pull(t, "a", "v1")
			assert.Len(t, r.up.Log(), before+1, "it is imported and made anew")
			r.deletes(t, `{"imageTag":"v1"}`, identifier(image(1), "v1"), ``)
			resp, body := r.send(t, target+"DeleteRepository", `{`+hubA+`}`)
			assert.Equal(t, 200, resp.StatusCode, "an empty one needs no force: %s", body)
		})
	}
}

func openDir(t *testing.T) *dirstore.Store {
	t.Helper()
	dir, err := dirstore.Open(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, dir.Close()) })
	return dir
}

// What others have put into a Store, or removed from it, shows in /v2/ and here alike, and
// the Catalog's notes may be lost.
func TestTheStoreIsTheTruth(t *testing.T) {
	for name, inner := range map[string]interface {
		pullthrough.Store
		pullthrough.ImageDeleter
	}{"memory": memstore.New(), "directory": openDir(t)} {
		t.Run(name, func(t *testing.T) {
			child := image(1)
			index := pullthroughtest.NewIndex(child)
			require.NoError(t, inner.PutManifest(t.Context(), repo("a"), manifestOf(child, "")))
			require.NoError(t, inner.PutManifest(t.Context(), repo("a"), manifestOf(index, "v1")))
			r := newRegistry(t, inner, nil)
			r.ok(t, "DescribeRepositories", `{}`, `{"repositories":[{"repositoryArn":"arn:aws:ecr:us-east-1:123456789012:repository/hub/a","registryId":"123456789012","repositoryName":"hub/a",
				"repositoryUri":"123456789012.dkr.ecr.us-east-1.amazonaws.com/hub/a","createdAt":946684800,"imageTagMutability":"MUTABLE","imageScanningConfiguration":{"scanOnPush":false},"encryptionConfiguration":{"encryptionType":"AES256"}}]}`)
			r.wait(time.Hour)
			assert.Equal(t, map[string][]string{"v1": {index.Digest.String()}, "": {child.Digest.String()}}, r.tagged(t))
			r.ok(t, "DescribeImages", `{`+hubA+`,"imageIds":[{"imageDigest":"`+child.Digest.String()+`"}]}`, `{"imageDetails":[`+detail(child, `,"imagePushedAt":946688400`)+`]}`)
			require.NoError(t, inner.PutManifest(t.Context(), repo("a"), manifestOf(image(2), "v1")))
			require.NoError(t, inner.DeleteImage(t.Context(), repo("a"), child.Digest.String()))
			assert.Equal(t, map[string][]string{"v1": {image(2).Digest.String()}, "": {index.Digest.String()}}, r.tagged(t))
			require.NoError(t, inner.DeleteRepo(t.Context(), repo("a")))
			r.ok(t, "DescribeRepositories", `{}`, `{"repositories":[]}`)
			r.fails(t, "ListImages", `{`+hubA+`}`, "RepositoryNotFoundException", noRepository("hub/a"))
			assert.Empty(t, r.up.Log())
		})
	}
}

// Pulls of what never gets into the Store take bounded memory: the time of the oldest is
// forgotten.
func TestManyPullsOfWhatIsNotStored(t *testing.T) {
	for others, forgotten := range map[int64]bool{1: false, 1024: true} {
		r := newRegistry(t, memstore.New(), nil)
		pulled := func(d string) {
			r.catalog.RecordPull(t.Context(), pullthrough.Event{
				Kind: pullthrough.EventManifest, Source: pullthrough.SourceFill, Digest: d, Request: pullthrough.Request{Repo: repo("a"), Ref: "v1"},
			})
		}
		pulled(image(1).Digest.String())
		for i := range others {
			pulled(digest.FromString(fmt.Sprint(i)).String())
		}
		require.NoError(t, r.proxy.Store.PutManifest(t.Context(), repo("a"), manifestOf(image(1), "v1")))
		assert.Equal(t, forgotten, r.pulledAt(t, image(1)) == 0, "after %d others", others)
		assert.Empty(t, r.up.Log())
	}
}

// A host makes and changes repositories, and all that reads them shows that.
func TestAHostChangesRepositories(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	ctx := t.Context()
	require.NoError(t, r.catalog.CreateRepository(ctx, repo("a"), ecrapi.CatalogRepository{ImageTagMutability: "IMMUTABLE"}))
	assert.ErrorIs(t, r.catalog.CreateRepository(ctx, repo("a"), ecrapi.CatalogRepository{}), fs.ErrExist)
	r.ok(t, "ListImages", `{`+hubA+`}`, `{"imageIds":[]}`)
	assert.Equal(t, 200, r.request(http.MethodGet, "/v2/hub/a/tags/list"))
	require.NoError(t, r.catalog.UpdateRepository(ctx, repo("a"), func(s *ecrapi.CatalogRepository) error {
		s.RepositoryPolicy, s.ResourceTags = "{}", []ecrapi.Tag{{Key: new("team"), Value: new("a")}}
		return nil
	}))
	refusal := errors.New("no")
	assert.Equal(t, refusal, r.catalog.UpdateRepository(ctx, repo("a"), func(s *ecrapi.CatalogRepository) error {
		s.RepositoryPolicy = "lost"
		return refusal
	}))
	assert.ErrorIs(t, r.catalog.UpdateRepository(ctx, repo("b"), func(*ecrapi.CatalogRepository) error { return nil }), fs.ErrNotExist)
	settings, err := r.catalog.Repository(ctx, repo("a"))
	require.NoError(t, err)
	assert.Equal(t, "{}", settings.RepositoryPolicy)
	assert.Equal(t, "IMMUTABLE", settings.ImageTagMutability)
	assert.Equal(t, r.time(), settings.CreatedAt)
	names, err := r.catalog.Repositories(ctx, "", "")
	require.NoError(t, err)
	assert.Equal(t, []string{"hub/a"}, names)
	require.NoError(t, r.proxy.DeleteRepo(context.Background(), repo("a")))
	_, err = r.catalog.Repository(ctx, repo("a"))
	assert.ErrorIs(t, err, fs.ErrNotExist)
	assert.Empty(t, r.up.Log())
}
