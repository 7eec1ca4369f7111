package diststore_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/diststore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestRepositoriesAreListedByTenant(t *testing.T) {
	for name, open := range drivers {
		t.Run(name, func(t *testing.T) {
			driver := open(t)
			s := diststore.New(driver)
			s.Account, s.Region = "000000000000", "us-east-1"
			own := func(name string) pullthrough.Repo {
				return pullthrough.Repo{Account: s.Account, Region: s.Region, Name: name}
			}
			for _, r := range []pullthrough.Repo{
				own("aa"), own("aa/bb"), own("aa/bb/cc/dd"), own("odd/manifests/link"), own("123456789012/us-east-1/xx"), own(strings.Repeat("n", 255)), tenant,
			} {
				put(t, s, r, manifestOf(image(1), "v1"))
			}
			put(t, s, own("foreign"), manifestOf(artifact("1"), "v1"))
			putBlob(t, s, own("blobs/only"), []byte("layer"))
			write(t, driver, repositories+"/up/load/_uploads/1/data", "a push to a registry")

			found, err := s.Repos(t.Context(), s.Account, s.Region)
			require.NoError(t, err)
			assert.ElementsMatch(t, []string{
				"aa", "aa/bb", "aa/bb/cc/dd", "odd/manifests/link", "123456789012/us-east-1/xx", strings.Repeat("n", 255), "foreign", "blobs/only",
			}, found)
			found, err = s.Repos(t.Context(), tenant.Account, tenant.Region)
			require.NoError(t, err)
			assert.Equal(t, []string{tenant.Name}, found)
			found, err = s.Repos(t.Context(), "999999999999", "us-east-1")
			require.NoError(t, err)
			assert.Empty(t, found)
			_, err = s.Repos(t.Context(), "..", "us-east-1")
			assert.ErrorIs(t, err, pullthrough.ErrInvalid)
		})
	}
}

func TestTagsOfNothing(t *testing.T) {
	s := diststore.New(drivers["filesystem"](t))
	_, err := s.Tags(t.Context(), repo)
	assert.ErrorIs(t, err, fs.ErrNotExist)
	putBlob(t, s, repo, []byte("layer"))
	tags, err := s.Tags(t.Context(), repo)
	require.NoError(t, err)
	assert.Empty(t, tags)
}

// endless lists what there is no end of.
type endless struct {
	storagedriver.StorageDriver
	names int
	panic bool
}

func (e endless) List(_ context.Context, path string) ([]string, error) {
	if e.panic {
		panic("the driver's")
	}
	var names []string
	for i := range e.names {
		names = append(names, fmt.Sprintf("%s/%d", path, i))
	}
	return names, nil
}

// TestListsAreBounded in what one directory has, and in how deep they are.
func TestListsAreBounded(t *testing.T) {
	for _, names := range []int{100_001, 1000} {
		s := diststore.New(endless{StorageDriver: drivers["inmemory"](t), names: names})
		_, err := s.Repos(t.Context(), "", "")
		assert.ErrorIs(t, err, pullthrough.ErrTooLarge)
	}
	_, err := diststore.New(endless{StorageDriver: drivers["inmemory"](t), names: 100_001}).Tags(t.Context(), repo)
	assert.ErrorIs(t, err, pullthrough.ErrTooLarge)
	_, err = diststore.New(endless{StorageDriver: drivers["inmemory"](t), panic: true}).Repos(t.Context(), "", "")
	assert.ErrorContains(t, err, "panicked")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	_, err = diststore.New(drivers["inmemory"](t)).Repos(ctx, "", "")
	assert.Error(t, err)
}

func TestReferrersAreKept(t *testing.T) {
	driver := drivers["filesystem"](t)
	s := diststore.New(driver)
	d := digest.FromString("subject")
	_, _, err := s.Referrers(t.Context(), repo, d)
	assert.ErrorIs(t, err, fs.ErrNotExist)
	name := "pullthrough/repositories/" + repo.Name + "/_referrers/sha256/" + d.Encoded() + ".json"
	for _, damage := range []string{"{", strings.Repeat(" ", 5<<20)} {
		write(t, driver, name, damage)
		_, _, err = s.Referrers(t.Context(), repo, d)
		assert.ErrorIs(t, err, fs.ErrNotExist)
	}
}

// TestListsOfWhatNobodyHasLeaveNoObject: a client may make up subjects and repositories.
func TestListsOfWhatNobodyHasLeaveNoObject(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	driver := drivers["inmemory"](t)
	p := &pullthrough.Proxy{Store: diststore.New(driver), Rules: pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: up.URL}}}
	t.Cleanup(func() { assert.NoError(t, p.Shutdown(context.WithoutCancel(t.Context()))) })
	for i := range 50 {
		r := httptest.NewRequest(http.MethodGet, fmt.Sprintf("/v2/hub/junk%d/referrers/%s", i, digest.FromString(fmt.Sprint(i))), nil)
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		assert.Equal(t, http.StatusOK, w.Code)
	}
	assert.Equal(t, 50, up.Count("GET /v2/*/referrers/*"))
	assert.NoError(t, driver.Walk(t.Context(), "/", func(info storagedriver.FileInfo) error {
		assert.True(t, info.IsDir(), info.Path())
		return nil
	}))
}

// What is missing of a repository that is there is an image, and no name, also where no rule covers it.
func TestARepositoryThatExistsLacksAnImageAndNoName(t *testing.T) {
	s := diststore.New(drivers["filesystem"](t))
	mine := pullthrough.Repo{Name: "mine"}
	require.NoError(t, s.PutManifest(t.Context(), mine, manifestOf(artifact("1"), "v1")))
	proxy := &pullthrough.Proxy{Store: s, Rules: pullthrough.StaticRules{}}
	for path, code := range map[string]string{
		"/v2/mine/manifests/2":                              "MANIFEST_UNKNOWN",
		"/v2/mine/blobs/" + digest.FromString("x").String(): "BLOB_UNKNOWN",
		"/v2/yours/manifests/2":                             "NAME_UNKNOWN",
	} {
		rec := httptest.NewRecorder()
		proxy.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		assert.Equal(t, 404, rec.Code, path)
		assert.Contains(t, rec.Body.String(), code, path)
	}
	assert.NoError(t, proxy.Shutdown(context.Background()))
}
