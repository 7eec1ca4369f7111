package dirstore_test

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
)

var (
	_ pullthrough.RepoCreator   = (*dirstore.Store)(nil)
	_ pullthrough.TagLister     = (*dirstore.Store)(nil)
	_ pullthrough.RepoLister    = (*dirstore.Store)(nil)
	_ pullthrough.ReferrerStore = (*dirstore.Store)(nil)
)

func logger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func exists(t testing.TB, s *dirstore.Store, repo pullthrough.Repo) bool {
	t.Helper()
	exists, err := s.RepoExists(t.Context(), repo)
	require.NoError(t, err)
	return exists
}

func TestRepositoriesAreMadeAndFound(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	long := tenant
	long.Name = "a/" + strings.Repeat("b", 240)
	for _, at := range []pullthrough.Repo{repo, tenant, long} {
		assert.False(t, exists(t, s, at))
		_, err := s.Tags(t.Context(), at)
		assert.ErrorIs(t, err, fs.ErrNotExist)
		for range 2 {
			require.NoError(t, s.CreateRepo(t.Context(), at, pullthrough.Rule{}, pullthrough.Request{}))
			assert.True(t, exists(t, s, at))
		}
		tags, err := s.Tags(t.Context(), at)
		require.NoError(t, err)
		assert.Empty(t, tags)
	}
	putBlob(t, s, other, []byte("layer"))
	assert.True(t, exists(t, s, other))
	assert.False(t, exists(t, s, pullthrough.Repo{Name: "hub"}), "it only holds others")
	_, err := s.RepoExists(t.Context(), pullthrough.Repo{Name: "../x"})
	assert.ErrorIs(t, err, pullthrough.ErrInvalid)
	assert.ErrorIs(t, s.CreateRepo(t.Context(), pullthrough.Repo{Name: "../x"}, pullthrough.Rule{}, pullthrough.Request{}), pullthrough.ErrInvalid)
}

// TestARepositoryIsMadeByItsFirstPut: the pull does not wait for the disk, and a full one
// does not refuse it.
func TestARepositoryIsMadeByItsFirstPut(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	n := steps(s)
	require.NoError(t, s.CreateRepo(t.Context(), repo, pullthrough.Rule{}, pullthrough.Request{}))
	assert.True(t, exists(t, s, repo))
	assert.Zero(t, n.Load())
	assert.False(t, exists(t, open(t, dir), repo))
	s.SetProbe(func(op, _ string) error {
		if op == "mkdir" {
			return syscall.ENOSPC
		}
		return nil
	})
	assert.ErrorIs(t, s.PutManifest(t.Context(), repo, manifestOf(image(1), "v1")), syscall.ENOSPC)
	s.SetProbe(nil)
	put(t, s, repo, manifestOf(image(1), "v1"))
	assert.True(t, exists(t, open(t, dir), repo))
	require.NoError(t, os.RemoveAll(filepath.Join(dir, repositories, repo.Name)))
	assert.False(t, exists(t, s, repo), "it is remembered until the disk knows")
}

func TestTagsAreListed(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	var want []string
	for i := range 3 {
		want = append(want, fmt.Sprint("v", i))
		put(t, s, repo, manifestOf(image(1), want[i]))
	}
	put(t, s, repo, manifestOf(artifact("1"), "artifact"))
	put(t, s, other, manifestOf(image(1), "elsewhere"))
	tagsDir := filepath.Dir(filepath.Dir(filepath.Dir(tagLink(dir, repo.Name, "v1"))))
	require.NoError(t, os.Mkdir(filepath.Join(tagsDir, ".hidden"), 0o755)) // no tag
	write(t, "", tagsDir, "file")
	got, err := s.Tags(t.Context(), repo)
	require.NoError(t, err)
	assert.ElementsMatch(t, append(want, "artifact"), got)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Tags(ctx, repo)
	assert.ErrorIs(t, err, context.Canceled)
}

// TestRepositoriesAreListedByOwner, whatever their names look like.
func TestRepositoriesAreListedByOwner(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	s.Account, s.Region = "000000000000", "us-east-1"
	own := pullthrough.Repo{Account: s.Account, Region: s.Region}
	foreign := pullthrough.Repo{Account: "123456789012", Region: "us-east-1"}
	elsewhere := pullthrough.Repo{Account: s.Account, Region: "eu-west-1"}
	long := "a/" + strings.Repeat("b", 252)
	for _, name := range []string{"app", "app/web", "app/web/deep", "123456789012/us-east-1/x", "000000000000", long} {
		at := own
		at.Name = name
		putBlob(t, s, at, []byte(name))
		put(t, s, at, manifestOf(artifact(name), "v1"))
	}
	for _, at := range []pullthrough.Repo{foreign, elsewhere} {
		at.Name = "theirs/" + at.Region
		put(t, s, at, manifestOf(artifact("1"), "v1"))
	}
	for _, tc := range []struct {
		of   pullthrough.Repo
		want []string
	}{
		{own, []string{"app", "app/web", "app/web/deep", "123456789012/us-east-1/x", "000000000000", long}},
		{foreign, []string{"theirs/us-east-1"}},
		{elsewhere, []string{"theirs/eu-west-1"}},
		{pullthrough.Repo{Account: "999999999999", Region: "us-east-1"}, nil},
	} {
		got, err := s.Repos(t.Context(), tc.of.Account, tc.of.Region)
		require.NoError(t, err)
		assert.ElementsMatch(t, tc.want, got)
	}
	_, err := s.Repos(t.Context(), "..", "..")
	assert.ErrorIs(t, err, pullthrough.ErrInvalid)
}

func TestReferrersComeBack(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	subject := image(1).Digest
	_, _, err := s.Referrers(t.Context(), repo, subject)
	assert.ErrorIs(t, err, fs.ErrNotExist)
	list := &ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{{Digest: image(2).Digest, ArtifactType: "a/b", Size: 7}}}
	for i := range 2 {
		at := checked.Add(time.Duration(i) * time.Hour)
		require.NoError(t, s.PutReferrers(t.Context(), repo, subject, list, at))
		for _, process := range []*dirstore.Store{s, open(t, dir)} {
			got, when, err := process.Referrers(t.Context(), repo, subject)
			require.NoError(t, err)
			assert.Equal(t, list, got)
			assert.Equal(t, at, when)
		}
		_, _, err = s.Referrers(t.Context(), other, subject)
		assert.ErrorIs(t, err, fs.ErrNotExist)
	}
	for name := range files(t, dir) {
		assert.True(t, strings.HasPrefix(name, "pullthrough/"), "the registry shall not see %s", name)
	}
	list = &ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	require.NoError(t, s.PutReferrers(t.Context(), repo, subject, list, checked))
	got, _, err := open(t, dir).Referrers(t.Context(), repo, subject)
	require.NoError(t, err)
	assert.Empty(t, got.Manifests, "they have been removed upstream")
}

// TestDamagedReferrersAreAMiss, and so is what a power failure leaves.
func TestDamagedReferrersAreAMiss(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	d := image(1).Digest
	list := &ocispec.Index{Manifests: []ocispec.Descriptor{{Digest: image(2).Digest}}}
	for _, content := range []string{"", "{", `{"checkedAt":"2026-01-01T00:00:00Z"}`, strings.Repeat(" ", 5<<20)} {
		write(t, content, dir, "pullthrough/repositories", repo.Name, "_referrers/sha256", d.Encoded()+".json")
		_, _, err := s.Referrers(t.Context(), repo, d)
		assert.ErrorIs(t, err, fs.ErrNotExist)
		require.NoError(t, s.PutReferrers(t.Context(), repo, d, list, checked))
		got, _, err := s.Referrers(t.Context(), repo, d)
		require.NoError(t, err)
		assert.Equal(t, list, got)
	}
}

// TestEmptyListsFillNoDisk: anybody may ask for the referrers of anything.
func TestEmptyListsFillNoDisk(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	none := &ocispec.Index{Manifests: []ocispec.Descriptor{}}
	for i := range 2000 {
		require.NoError(t, s.PutReferrers(t.Context(), repo, digest.FromString(fmt.Sprint(i)), none, checked))
	}
	assert.Empty(t, files(t, dir))
	got, at, err := s.Referrers(t.Context(), repo, digest.FromString("1999"))
	require.NoError(t, err)
	assert.Equal(t, none, got)
	assert.Equal(t, checked, at)
	_, _, err = s.Referrers(t.Context(), repo, digest.FromString("0"))
	assert.ErrorIs(t, err, fs.ErrNotExist)
	_, _, err = s.Referrers(t.Context(), repo, "v1")
	assert.ErrorIs(t, err, pullthrough.ErrInvalid)
	assert.ErrorIs(t, s.PutReferrers(t.Context(), repo, "../x", none, checked), pullthrough.ErrInvalid)
}
