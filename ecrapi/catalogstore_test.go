package ecrapi_test

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

// bare is a Store and nothing else.
type bare struct{ pullthrough.Store }

// keeper keeps lists of referrers.
type keeper struct{}

func (keeper) Referrers(context.Context, pullthrough.Repo, digest.Digest) (*ocispec.Index, time.Time, error) {
	return nil, time.Time{}, fs.ErrNotExist
}

func (keeper) PutReferrers(context.Context, pullthrough.Repo, digest.Digest, *ocispec.Index, time.Time) error {
	return nil
}

// lender lends places.
type lender struct{}

func (lender) StageBlob(context.Context, pullthrough.Repo, digest.Digest) (pullthrough.Stage, error) {
	return nil, errors.ErrUnsupported
}

func TestTheStoreIsWhatTheInnerOneIs(t *testing.T) {
	mem := memstore.New()
	for name, c := range map[string]struct {
		inner         pullthrough.Store
		keeps, stages bool
	}{
		"a bare one": {bare{mem}, false, false},
		"memory":     {mem, false, false},
		"referrers": {struct {
			bare
			keeper
		}{bare{mem}, keeper{}}, true, false},
		"stages": {struct {
			bare
			lender
		}{bare{mem}, lender{}}, false, true},
		"both": {struct {
			bare
			keeper
			lender
		}{bare{mem}, keeper{}, lender{}}, true, true},
	} {
		store := new(ecrapi.Catalog).Around(c.inner)
		_, keeps := store.(pullthrough.ReferrerStore)
		_, stager := store.(pullthrough.BlobStager)
		_, creates := store.(pullthrough.RepoCreator)
		_, tags := store.(pullthrough.TagLister)
		_, repos := store.(pullthrough.RepoLister)
		assert.Equal(t, c.keeps, keeps, name)
		assert.Equal(t, c.stages, stager, name)
		_, manifests := store.(pullthrough.ManifestLister)
		_, deletes := store.(pullthrough.ImageDeleter)
		assert.True(t, creates && tags && repos && manifests && deletes, name)
	}
	dir, err := dirstore.Open(t.TempDir())
	require.NoError(t, err)
	defer func() { assert.NoError(t, dir.Close()) }()
	_, stager := new(ecrapi.Catalog).Around(dir).(pullthrough.BlobStager)
	assert.True(t, stager, "downloads go to their place in the directory")
}

func TestTagsAndRepositoriesAreListed(t *testing.T) {
	for name, inner := range map[string]pullthrough.Store{"memory": memstore.New(), "a bare one": bare{memstore.New()}} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t, inner, nil)
			r.up.Push("a", "v1", image(1))
			r.up.Push("a", "v2", image(2))
			store := r.proxy.Store.(interface {
				pullthrough.TagLister
				pullthrough.RepoLister
			})
			_, err := store.Tags(t.Context(), repo("a"))
			assert.ErrorIs(t, err, fs.ErrNotExist)
			r.pull(t, "a", "v1")
			r.pull(t, "a", "v2")
			tags, err := store.Tags(t.Context(), repo("a"))
			require.NoError(t, err)
			assert.ElementsMatch(t, []string{"v1", "v2"}, tags)
			repos, err := store.Repos(t.Context(), "", "")
			require.NoError(t, err)
			assert.Equal(t, []string{"hub/a"}, repos)
			repos, err = store.Repos(t.Context(), "", "eu-west-1")
			require.NoError(t, err)
			assert.Empty(t, repos)
		})
	}
}

func TestARepositoryIsMadeByItsTemplate(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	r.template(t, `"imageTagMutability":"IMMUTABLE_WITH_EXCLUSION","imageTagMutabilityExclusionFilters":[{"filterType":"WILDCARD","filter":"late*"}],`+
		`"encryptionConfiguration":{"encryptionType":"KMS"},"customRoleArn":"`+role+`","resourceTags":[{"Key":"team","Value":"a"}],"repositoryPolicy":"{}","lifecyclePolicy":"{\"rules\":[]}"`)
	r.up.Push("a", "v1", image(1))
	r.pull(t, "a", "v1")
	r.ok(t, "DescribeRepositories", `{}`, `{"repositories":[{"repositoryArn":"arn:aws:ecr:us-east-1:123456789012:repository/hub/a","registryId":"123456789012","repositoryName":"hub/a",
		"repositoryUri":"123456789012.dkr.ecr.us-east-1.amazonaws.com/hub/a","createdAt":946684800,"imageTagMutability":"IMMUTABLE_WITH_EXCLUSION",
		"imageTagMutabilityExclusionFilters":[{"filterType":"WILDCARD","filter":"late*"}],"imageScanningConfiguration":{"scanOnPush":false},"encryptionConfiguration":{"encryptionType":"KMS"}}]}`)
	settings, err := r.catalog.Repository(t.Context(), repo("a"))
	require.NoError(t, err)
	assert.Equal(t, "{}", settings.RepositoryPolicy)
	assert.Equal(t, `{"rules":[]}`, settings.LifecyclePolicy)
	require.Len(t, settings.ResourceTags, 1)
	assert.Equal(t, "team", *settings.ResourceTags[0].Key)

	resp, body := r.send(t, target+"DeleteRepositoryCreationTemplate", `{"prefix":"hub"}`)
	require.Equal(t, 200, resp.StatusCode, body)
	again, err := r.catalog.Repository(t.Context(), repo("a"))
	require.NoError(t, err)
	assert.Equal(t, settings, again, "what is made keeps its settings")
	_, err = r.catalog.Repository(t.Context(), repo("b"))
	assert.ErrorIs(t, err, fs.ErrNotExist)
}

func TestARepositoryWithoutATemplate(t *testing.T) {
	r := newRegistry(t, memstore.New(), nil)
	r.up.Push("a", "v1", image(1))
	r.pull(t, "a", "v1")
	settings, err := r.catalog.Repository(t.Context(), repo("a"))
	require.NoError(t, err)
	assert.Equal(t, ecrapi.CatalogRepository{
		CreatedAt: r.time(), ImageTagMutability: "MUTABLE", EncryptionConfiguration: ecrapi.EncryptionConfiguration{EncryptionType: new("AES256")},
	}, settings)
}

// template-role-missing
func TestATemplateThatCannotBeApplied(t *testing.T) {
	for _, members := range []string{`"resourceTags":[{"Key":"team","Value":"a"}]`, `"encryptionConfiguration":{"encryptionType":"KMS"}`} {
		r := newRegistry(t, memstore.New(), nil)
		r.template(t, members)
		r.up.Push("a", "v1", image(1))
		_, err := r.proxy.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "v1"})
		status, code, _ := pullthrough.OCI(err)
		assert.Equal(t, http.StatusNotFound, status, members)
		assert.Equal(t, "NAME_UNKNOWN", code, members)
		assert.Equal(t, 404, r.request(http.MethodGet, "/v2/hub/a/manifests/v1"), "and the next time too")
		r.fails(t, "BatchGetImage", `{`+hubA+`,"imageIds":[{"imageTag":"v1"}]}`, "RepositoryNotFoundException", noRepository("hub/a"))
		r.ok(t, "DescribeRepositories", `{}`, `{"repositories":[]}`)
	}
}

func noRepository(name string) string {
	return "The repository with name '" + name + "' does not exist in the registry with id '123456789012'"
}

// What others did to a Store that lists nothing shows when it is read.
func TestTheCatalogFollowsAStoreThatListsNothing(t *testing.T) {
	mem := &forgetfulStore{Store: memstore.New()}
	r := newRegistry(t, bare{mem}, nil)
	one, two := image(1), image(2)
	require.NoError(t, mem.PutManifest(t.Context(), repo("a"), manifestOf(one, "v1")))
	r.ok(t, "DescribeRepositories", `{}`, `{"repositories":[]}`)
	r.pull(t, "a", one.Digest.String())
	assert.Equal(t, map[string][]string{"": {one.Digest.String()}}, r.tagged(t))
	r.pull(t, "a", "v1")
	assert.Equal(t, map[string][]string{"v1": {one.Digest.String()}}, r.tagged(t))
	require.NoError(t, mem.PutManifest(t.Context(), repo("a"), manifestOf(two, "v1")))
	r.pull(t, "a", "v1")
	assert.Equal(t, map[string][]string{"v1": {two.Digest.String()}, "": {one.Digest.String()}}, r.tagged(t))

	mem.lost = one.Digest.String()
	_, err := r.proxy.Store.Manifest(t.Context(), repo("a"), mem.lost)
	require.ErrorIs(t, err, fs.ErrNotExist)
	assert.Equal(t, map[string][]string{"v1": {two.Digest.String()}}, r.tagged(t))
	mem.lost = "v1"
	_, err = r.proxy.Store.Manifest(t.Context(), repo("a"), mem.lost)
	require.ErrorIs(t, err, fs.ErrNotExist)
	assert.Equal(t, map[string][]string{"": {two.Digest.String()}}, r.tagged(t))
	mem.lost = ""
	r.pull(t, "a", "v1")
	mem.lost = two.Digest.String()
	_, err = r.proxy.Store.Manifest(t.Context(), repo("a"), mem.lost)
	require.ErrorIs(t, err, fs.ErrNotExist)
	assert.Empty(t, r.tagged(t))
	mem.lost = ""
	r.pull(t, "a", two.Digest.String())
	assert.Equal(t, map[string][]string{"": {two.Digest.String()}}, r.tagged(t), "the tag went with the image")
}

func TestDamagedManifestsAreNotNoted(t *testing.T) {
	mem := bare{memstore.New()}
	damaged := manifestOf(image(1), "v1")
	damaged.Content = []byte("{}")
	require.NoError(t, mem.PutManifest(t.Context(), repo("a"), damaged))
	r := newRegistry(t, mem, nil)
	_, err := r.proxy.Store.Manifest(t.Context(), repo("a"), "v1")
	require.NoError(t, err)
	r.ok(t, "DescribeRepositories", `{}`, `{"repositories":[]}`)
}

// forgetfulStore has lost something.
type forgetfulStore struct {
	*memstore.Store
	lost string
}

func (s *forgetfulStore) Manifest(ctx context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	if ref == s.lost {
		return nil, fs.ErrNotExist
	}
	return s.Store.Manifest(ctx, repo, ref)
}

// What was read before a put, and comes after it, is old.
func TestALateReadDoesNotUndoAPut(t *testing.T) {
	mem := memstore.New()
	one, two := image(1), image(2)
	require.NoError(t, mem.PutManifest(t.Context(), repo("a"), manifestOf(one, "v1")))
	inner := &lateStore{Store: mem, read: make(chan struct{}), gate: make(chan struct{})}
	r := newRegistry(t, bare{inner}, nil)
	done := make(chan error)
	go func() {
		_, err := r.proxy.Store.Manifest(context.Background(), repo("a"), "v1")
		done <- err
	}()
	<-inner.read
	require.NoError(t, r.proxy.Store.PutManifest(t.Context(), repo("a"), manifestOf(two, "v1")))
	close(inner.gate)
	require.NoError(t, <-done)
	assert.Equal(t, map[string][]string{"v1": {two.Digest.String()}}, r.tagged(t))
}

// lateStore is slow to tell what it has read.
type lateStore struct {
	*memstore.Store
	read, gate chan struct{}
}

func (s *lateStore) Manifest(ctx context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	m, err := s.Store.Manifest(ctx, repo, ref)
	close(s.read)
	<-s.gate
	return m, err
}
