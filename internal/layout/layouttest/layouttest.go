// Package layouttest has a directory as the project wrote it before there was a
// note of the format, and checks that a store serves all of it. The directory is
// dirstore/testdata/format1.txt: each file follows a line "-- NAME --", without
// the line break that ends it; a name that ends with a slash is a directory.
package layouttest

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
)

// Manifest is a manifest that the directory holds.
type Manifest struct {
	Repo      pullthrough.Repo
	Tag       string
	MediaType string
	Content   string
	Digest    digest.Digest
	Checked   time.Time // zero: a registry wrote the tag
	Origin    string
}

// Blob is a blob that the directory holds.
type Blob struct {
	Repo    pullthrough.Repo
	Digest  digest.Digest
	Content string
}

// Own is the repository with most of the content, Tenant the one of another
// account, Empty one without any.
var (
	Own    = pullthrough.Repo{Name: "hub/library/app"}
	Tenant = pullthrough.Repo{Account: "123456789012", Region: "eu-west-1", Name: "hub/library/app"}
	Empty  = pullthrough.Repo{Name: "hub/empty"}
	sha512 = pullthrough.Repo{Name: "hub/sha512"}
	long   = pullthrough.Repo{Name: strings.Repeat("n", 248) + "/hub/app"}
)

// Subject is the manifest that has a list of referrers.
var Subject = digest.FromString(index)

// Checked is when upstream confirmed the manifests; the tag "v1" a day later.
var Checked = time.Date(2026, 3, 4, 5, 6, 7, 89, time.UTC)

const (
	origin       = "registry.example"
	config       = `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`
	artifactType = "application/vnd.oci.artifact.manifest.v1+json"
	artifact     = `{"mediaType":"` + artifactType + `","blobs":[],"annotations":{"what":"no registry reads this"}}`
)

// image is an image manifest with the config above and one layer.
func image(algorithm digest.Algorithm, layer string) string {
	descriptor := func(mediaType, content string) string {
		return fmt.Sprintf(`{"mediaType":"%s","digest":"%s","size":%d}`, mediaType, algorithm.FromString(content), len(content))
	}
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":"%s","config":%s,"layers":[%s]}`, ocispec.MediaTypeImageManifest,
		descriptor(ocispec.MediaTypeImageConfig, config), descriptor(ocispec.MediaTypeImageLayer, layer))
}

var (
	image1 = image(digest.SHA256, "layer one")
	image2 = image(digest.SHA256, "layer two")
	index  = fmt.Sprintf(`{"schemaVersion":2,"mediaType":"%s","manifests":[{"mediaType":"%s","digest":"%s","size":%d}]}`,
		ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, digest.FromString(image1), len(image1))
	list  = strings.ReplaceAll(strings.ReplaceAll(index, ocispec.MediaTypeImageIndex, manifest.MediaTypeDockerList), "oci.image", "docker.distribution")
	big   = image(digest.SHA512, "layer one")
	dayOn = Checked.AddDate(0, 0, 1)
)

// Manifests are all manifests of the directory, by their tags.
func Manifests() []Manifest {
	all := []Manifest{
		{Repo: Own, Tag: "latest", MediaType: ocispec.MediaTypeImageIndex, Content: index, Checked: Checked, Origin: origin},
		{Repo: Own, Tag: "v1", MediaType: ocispec.MediaTypeImageManifest, Content: image1, Checked: dayOn, Origin: origin},
		{Repo: Own, Tag: "list", MediaType: manifest.MediaTypeDockerList, Content: list, Checked: Checked, Origin: origin},
		{Repo: Own, Tag: "odd", MediaType: artifactType, Content: artifact, Checked: Checked, Origin: origin},
		{Repo: Own, Tag: "pushed", MediaType: ocispec.MediaTypeImageManifest, Content: image2},
		{Repo: Tenant, Tag: "v1", MediaType: ocispec.MediaTypeImageManifest, Content: image1, Checked: Checked, Origin: origin},
		{Repo: sha512, Tag: "v1", MediaType: ocispec.MediaTypeImageManifest, Content: big, Digest: digest.SHA512.FromString(big), Checked: Checked, Origin: origin},
		{Repo: long, Tag: "v1", MediaType: ocispec.MediaTypeImageManifest, Content: image2, Checked: Checked, Origin: origin},
	}
	for i := range all {
		if all[i].Digest == "" {
			all[i].Digest = digest.FromString(all[i].Content)
		}
	}
	return all
}

// Blobs are all blobs of the directory.
func Blobs() (all []Blob) {
	for _, repo := range []pullthrough.Repo{Own, Tenant, long} {
		for _, content := range []string{config, "layer one", "layer two"} {
			all = append(all, Blob{repo, digest.FromString(content), content})
		}
	}
	for _, content := range []string{config, "layer one"} {
		all = append(all, Blob{sha512, digest.SHA512.FromString(content), content})
	}
	// The registry keeps what was pushed under sha512 as sha256, and links to it.
	return append(all, Blob{Own, digest.SHA512.FromString("layer two"), "layer two"})
}

// Referrers is the list of what refers to [Subject], confirmed at [Checked].
func Referrers() *ocispec.Index {
	return &ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{{
		MediaType: artifactType, Digest: digest.FromString(artifact), Size: int64(len(artifact)), ArtifactType: "application/vnd.example",
	}}}
}

// Unpack writes the directory in file below dir, and returns its files.
func Unpack(t testing.TB, file, dir string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	files := make(map[string]string)
	for _, part := range strings.Split("\n"+string(text), "\n-- ")[1:] {
		name, content, ok := strings.Cut(part, " --\n")
		require.True(t, ok, part)
		at := filepath.Join(dir, filepath.FromSlash(name))
		if strings.HasSuffix(name, "/") {
			require.NoError(t, os.MkdirAll(at, 0o755))
			continue
		}
		files[name] = content
		require.NoError(t, os.MkdirAll(filepath.Dir(at), 0o755))
		require.NoError(t, os.WriteFile(at, []byte(content), 0o644))
	}
	return files
}

// AssertServed checks that s serves and lists all that the directory holds.
func AssertServed(t testing.TB, s pullthrough.Store) {
	t.Helper()
	for _, want := range Manifests() {
		m, err := s.Manifest(t.Context(), want.Repo, want.Tag)
		require.NoError(t, err, "%v %s", want.Repo, want.Tag)
		assert.Equal(t, want.manifest(), m)
		m, err = s.Manifest(t.Context(), want.Repo, string(want.Digest))
		require.NoError(t, err, "%v %s", want.Repo, want.Digest)
		assert.Equal(t, want.Content, string(m.Content))
		assert.Equal(t, want.MediaType, m.Descriptor.MediaType)
	}
	for _, want := range Blobs() {
		b, err := s.Blob(t.Context(), want.Repo, want.Digest)
		require.NoError(t, err, "%v %s", want.Repo, want.Digest)
		content, err := io.ReadAll(b.Body)
		require.NoError(t, err)
		require.NoError(t, b.Body.Close())
		assert.Equal(t, want.Content, string(content))
		assert.Equal(t, int64(len(content)), b.Descriptor.Size)
	}
	_, err := s.Blob(t.Context(), sha512, digest.FromString("layer one"))
	assert.ErrorIs(t, err, fs.ErrNotExist, "another repository's blob")
	assertListed(t, s)
}

func (m Manifest) manifest() *pullthrough.Manifest {
	return &pullthrough.Manifest{
		Descriptor: ocispec.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: int64(len(m.Content))},
		Content:    []byte(m.Content), Tag: m.Tag, CheckedAt: m.Checked, Origin: m.Origin,
	}
}

func assertListed(t testing.TB, s pullthrough.Store) {
	t.Helper()
	tags, err := s.(pullthrough.TagLister).Tags(t.Context(), Own)
	require.NoError(t, err)
	assert.Subset(t, tags, []string{"latest", "list", "odd", "pushed", "v1"})
	repos, err := s.(pullthrough.RepoLister).Repos(t.Context(), "", "")
	require.NoError(t, err)
	assert.ElementsMatch(t, []string{Own.Name, Empty.Name, sha512.Name, long.Name}, repos)
	repos, err = s.(pullthrough.RepoLister).Repos(t.Context(), Tenant.Account, Tenant.Region)
	require.NoError(t, err)
	assert.Equal(t, []string{Tenant.Name}, repos)
	there, err := s.(pullthrough.RepoCreator).RepoExists(t.Context(), Empty)
	require.NoError(t, err)
	assert.True(t, there)
	list, checked, err := s.(pullthrough.ReferrerStore).Referrers(t.Context(), Own, Subject)
	require.NoError(t, err)
	assert.Equal(t, Referrers(), list)
	assert.Equal(t, Checked, checked)
}

// Add puts a blob, a manifest that needs it and two tags into repositories of the
// directory, and checks that they come back.
func Add(t testing.TB, s pullthrough.Store) {
	t.Helper()
	const layer = "layer three"
	added := Manifest{MediaType: ocispec.MediaTypeImageManifest, Content: image(digest.SHA256, layer), Checked: Checked, Origin: origin}
	added.Digest = digest.FromString(added.Content)
	desc := ocispec.Descriptor{Digest: digest.FromString(layer), Size: int64(len(layer))}
	for _, repo := range []pullthrough.Repo{Own, Tenant, Empty} {
		require.NoError(t, s.PutBlob(t.Context(), repo, desc, bytes.NewReader([]byte(layer))))
		for _, tag := range []string{"new", "newer"} {
			added.Tag = tag
			require.NoError(t, s.PutManifest(t.Context(), repo, added.manifest()))
			m, err := s.Manifest(t.Context(), repo, tag)
			require.NoError(t, err)
			assert.Equal(t, added.manifest(), m)
		}
		b, err := s.Blob(t.Context(), repo, desc.Digest)
		require.NoError(t, err)
		assert.Equal(t, desc.Size, b.Descriptor.Size)
		assert.NoError(t, b.Body.Close())
	}
}

// AssertUnchanged checks that the files are below dir as they were.
func AssertUnchanged(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if assert.NoError(t, err) && name != "pullthrough/size" { // it counts what is added
			assert.Equal(t, want, string(got), name)
		}
	}
}
