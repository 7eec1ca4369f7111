package layout_test

import (
	"io"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

const account, region = "000000000000", "us-east-1"

var owner = layout.Owner{Account: account, Region: region}

// TestPathNamesHaveOneRepositoryEach: from a repository to its path name and back.
func TestPathNamesHaveOneRepositoryEach(t *testing.T) {
	for pathName, repo := range map[string]pullthrough.Repo{
		"app/web":                                {Account: account, Region: region, Name: "app/web"},
		"123456789012/us-east-1/app/web":         {Account: "123456789012", Region: region, Name: "app/web"},
		"000000000000/eu-west-1/app":             {Account: account, Region: "eu-west-1", Name: "app"},
		"000000000000/us-east-1/123456789012/x":  {Account: account, Region: region, Name: "123456789012/x"},
		"123456789012/us-east-1/123456789012/up": {Account: "123456789012", Region: region, Name: "123456789012/up"},
	} {
		got, err := owner.PathName(repo)
		require.NoError(t, err)
		assert.Equal(t, pathName, got)
		back, ok := owner.Repo(pathName)
		assert.True(t, ok, pathName)
		assert.Equal(t, repo, back)
	}
	for _, nobodys := range []string{
		"", "123456789012", "123456789012/us-east-1", "123456789012/app", "123456789012/us_east/app", "app/_layers", "../app",
		"000000000000/us-east-1/app/web", // its repository has a plain name
	} {
		_, ok := owner.Repo(nobodys)
		assert.False(t, ok, nobodys)
	}
}

func TestPrefixes(t *testing.T) {
	for _, tc := range []struct {
		owner           layout.Owner
		account, region string
		want            []string
	}{
		{owner, account, region, []string{"", account + "/" + region}},
		{owner, "123456789012", region, []string{"123456789012/" + region}},
		{owner, account, "eu-west-1", []string{account + "/eu-west-1"}},
		{layout.Owner{}, "", "", []string{""}},
		{layout.Owner{}, account, region, []string{account + "/" + region}},
	} {
		got, err := tc.owner.Prefixes(tc.account, tc.region)
		require.NoError(t, err)
		assert.Equal(t, tc.want, got)
	}
	for _, bad := range [][2]string{{"..", region}, {account, "../x"}, {account, ""}, {"", region}} {
		_, err := owner.Prefixes(bad[0], bad[1])
		assert.ErrorIs(t, err, pullthrough.ErrInvalid)
	}
}

func TestPaths(t *testing.T) {
	d := digest.FromString("x")
	hex := d.Encoded()
	at, err := owner.Locate(t.Context(), pullthrough.Repo{Account: account, Region: region, Name: "app"}, "v1", d.String())
	require.NoError(t, err)
	const in = "docker/registry/v2/repositories/app"
	for want, got := range map[string]string{
		"docker/registry/v2/blobs/sha256/" + hex[:2] + "/" + hex + "/data": layout.Registry.Data(d),
		in + "/_layers":                                                   at.Layers(),
		in + "/_layers/sha256/" + hex + "/link":                           layout.Link(at.Layer(d)),
		in + "/_manifests/revisions/sha256/" + hex:                        at.Revision(d),
		in + "/_manifests/tags/v1/current":                                at.Tag("v1"),
		in + "/_manifests/tags/v1/index/sha256/" + hex:                    at.History("v1", d),
		"x/sha256-" + hex + ".json":                                       layout.SidecarFile("x", d),
		"pullthrough/repositories/app":                                    at.Homes()[1].Root(),
		"pullthrough/repositories/app/_referrers/sha256/" + hex + ".json": at.Referrers(d),
	} {
		assert.Equal(t, want, got)
	}
	long, err := owner.Locate(t.Context(), pullthrough.Repo{Account: "123456789012", Region: region, Name: strings.Repeat("a/", 120) + "b"})
	require.NoError(t, err)
	assert.Equal(t, layout.Own, long.Tree)
	assert.Len(t, long.Homes(), 1)
}

func TestBadValuesAreRefused(t *testing.T) {
	repo := pullthrough.Repo{Account: account, Region: region, Name: "app"}
	_, err := owner.Locate(t.Context(), repo, "..")
	assert.ErrorIs(t, err, pullthrough.ErrInvalid)
	_, err = owner.LocateDigest(t.Context(), repo, "v1")
	assert.ErrorIs(t, err, pullthrough.ErrInvalid)
	m := &pullthrough.Manifest{Content: []byte("{}"), Tag: digest.FromString("{}").String()}
	m.Descriptor.Digest = digest.FromString("{}")
	_, err = owner.LocateManifest(t.Context(), repo, m)
	assert.ErrorIs(t, err, pullthrough.ErrInvalid)
	assert.NoError(t, layout.CheckManifest(m))
	m.Content = []byte("{ }")
	assert.ErrorIs(t, layout.CheckManifest(m), pullthrough.ErrDigest)
	m.Content = make([]byte, layout.MaxManifest+1)
	assert.ErrorIs(t, layout.CheckManifest(m), pullthrough.ErrTooLarge)
}

func TestLinks(t *testing.T) {
	d, e := digest.FromString("x"), digest.FromString("y")
	alias := digest.SHA512.FromString("x")
	for content, tc := range map[string]struct {
		of digest.Digest
		ok bool
	}{
		d.String():          {d, true},
		e.String():          {d, false},
		d.String() + "\n":   {d, false},
		"":                  {d, false},
		"sha256:../../data": {"", false},
	} {
		target, err := layout.ParseLink([]byte(content), tc.of)
		assert.Equal(t, tc.ok, err == nil, content)
		if !tc.ok {
			assert.ErrorIs(t, err, layout.ErrDamaged)
			assert.ErrorIs(t, err, fs.ErrNotExist)
			assert.Empty(t, target)
		}
	}
	target, err := layout.ParseLink([]byte(d), alias)
	require.NoError(t, err)
	assert.Equal(t, d, target)
}

func TestSidecarsComeBack(t *testing.T) {
	m := &pullthrough.Manifest{Content: []byte("{}"), CheckedAt: time.Now(), Origin: "registry.example"}
	m.Descriptor.Digest = digest.FromBytes(m.Content)
	side := layout.SidecarOf(m, "application/x+json")
	content, err := side.Encode()
	require.NoError(t, err)
	back, ok := layout.ParseSidecar(content, side.Digest)
	assert.True(t, ok)
	assert.Equal(t, side, back)
	_, ok = layout.ParseSidecar(content, digest.FromString("other"))
	assert.False(t, ok)
	got, err := layout.NewManifest(m.Content, side.Digest, back)
	require.NoError(t, err)
	assert.Equal(t, "application/x+json", got.Descriptor.MediaType)
	assert.True(t, m.CheckedAt.Equal(got.CheckedAt))
	_, err = layout.NewManifest(m.Content, side.Digest, layout.Sidecar{})
	assert.ErrorIs(t, err, layout.ErrDamaged, "nothing says what it is")
	side.Origin = strings.Repeat("x", layout.MaxSidecar)
	_, err = side.Encode()
	assert.Error(t, err)
}

func TestListsOfReferrersComeBack(t *testing.T) {
	list := &ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{{Digest: digest.FromString("x"), ArtifactType: "a/b"}}}
	checked := time.Date(2026, 3, 4, 5, 6, 7, 8, time.UTC)
	content, err := layout.EncodeReferrers(list, checked)
	require.NoError(t, err)
	back, at, err := layout.ParseReferrers(content)
	require.NoError(t, err)
	assert.Equal(t, list, back)
	assert.Equal(t, checked, at)
	_, _, err = layout.ParseReferrers(content[:len(content)/2])
	assert.ErrorIs(t, err, layout.ErrDamaged)
	list.Annotations = map[string]string{"x": strings.Repeat("x", layout.MaxReferrers)}
	_, err = layout.EncodeReferrers(list, checked)
	assert.ErrorIs(t, err, pullthrough.ErrTooLarge)
}

func TestSizes(t *testing.T) {
	assert.NoError(t, layout.CheckBlobSize(0, digest.FromString("")))
	assert.ErrorIs(t, layout.CheckBlobSize(0, digest.FromString("x")), layout.ErrDamaged)
	assert.NoError(t, layout.CheckWritten(3, 3))
	assert.ErrorIs(t, layout.CheckWritten(2, 3), io.ErrUnexpectedEOF)
	assert.Error(t, layout.CheckWritten(4, 3))
	assert.NoError(t, layout.CheckContent([]byte("x"), digest.FromString("x")))
	assert.ErrorIs(t, layout.CheckContent([]byte("y"), digest.FromString("x")), layout.ErrDamaged)
}

func TestReferences(t *testing.T) {
	a, b, c := digest.FromString("a"), digest.SHA512.FromString("b"), digest.FromString("c")
	content := `{"config":{"digest":"` + a.String() + `"},"layers":[{"digest":"` + b.String() + `"},{"digest":"../.."}],"annotations":7}`
	assert.Equal(t, []digest.Digest{a, b}, layout.References([]byte(content)))
	assert.Equal(t, []digest.Digest{c}, layout.References([]byte(`{"config":[],"manifests":[{"digest":"`+c.String()+`"}]}`)))
	assert.Empty(t, layout.References([]byte("<html>")))
}
