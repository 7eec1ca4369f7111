package dirstore_test

import (
	"bytes"
	"encoding/json"
	"io"
	"io/fs"
	"math/rand/v2"
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
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var (
	_ pullthrough.Store      = (*dirstore.Store)(nil)
	_ pullthrough.BlobStager = (*dirstore.Store)(nil)
)

// TestMain has all directories of tests in memory, if there is such a place: syncs cost
// nothing there. TMPDIR says another place.
func TestMain(m *testing.M) {
	if os.Getenv("TMPDIR") == "" {
		if dir, err := os.MkdirTemp("/dev/shm", "dirstore"); err == nil {
			_ = os.Remove(dir)
			_ = os.Setenv("TMPDIR", filepath.Dir(dir))
		}
	}
	testkit.Main(m)
}

var (
	repo    = pullthrough.Repo{Name: "hub/library/alpine"}
	other   = pullthrough.Repo{Name: "hub/library/busybox"}
	tenant  = pullthrough.Repo{Account: "123456789012", Region: "eu-west-1", Name: repo.Name}
	checked = time.Date(2026, 3, 4, 5, 6, 7, 89, time.UTC)
)

const (
	repositories = "docker/registry/v2/repositories"
	blobs        = "docker/registry/v2/blobs"
)

func open(t testing.TB, dir string) *dirstore.Store {
	t.Helper()
	s, err := dirstore.Open(dir)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// scratch is a directory of the test. See [TestMain].
func scratch(t testing.TB) string {
	t.Helper()
	return t.TempDir()
}

// noise is n bytes that differ for each seed.
func noise(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	content := make([]byte, n)
	_, _ = r.Read(content)
	return content
}

func descriptor(content []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(content), Size: int64(len(content))}
}

func putBlob(t testing.TB, s *dirstore.Store, repo pullthrough.Repo, content []byte) digest.Digest {
	t.Helper()
	desc := descriptor(content)
	require.NoError(t, s.PutBlob(t.Context(), repo, desc, bytes.NewReader(content)))
	return desc.Digest
}

func readBlob(t testing.TB, s *dirstore.Store, repo pullthrough.Repo, d digest.Digest) []byte {
	t.Helper()
	b, err := s.Blob(t.Context(), repo, d)
	require.NoError(t, err)
	content, err := io.ReadAll(b.Body)
	require.NoError(t, err)
	require.NoError(t, b.Body.Close())
	assert.Equal(t, d, b.Descriptor.Digest)
	assert.Equal(t, int64(len(content)), b.Descriptor.Size)
	assert.Equal(t, pullthrough.SourceHit, b.Source)
	return content
}

func assertNoBlob(t testing.TB, s *dirstore.Store, repo pullthrough.Repo, d digest.Digest) {
	t.Helper()
	_, err := s.Blob(t.Context(), repo, d)
	assert.ErrorIs(t, err, fs.ErrNotExist)
}

func assertNoManifest(t testing.TB, s *dirstore.Store, repo pullthrough.Repo, ref string) {
	t.Helper()
	_, err := s.Manifest(t.Context(), repo, ref)
	assert.ErrorIs(t, err, fs.ErrNotExist)
}

// manifestOf is img as it comes from upstream.
func manifestOf(img *pullthroughtest.Image, tag string) *pullthrough.Manifest {
	return &pullthrough.Manifest{
		Descriptor: ocispec.Descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: int64(len(img.Content))},
		Content:    img.Content, Tag: tag, CheckedAt: checked, Origin: "registry.example", Source: pullthrough.SourceFill,
	}
}

func image(seed int64) *pullthroughtest.Image {
	return pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: seed})
}

// artifact is a manifest that the registry does not read.
func artifact(seed string) *pullthroughtest.Image {
	content := []byte(`{"mediaType":"application/vnd.oci.artifact.manifest.v1+json","blobs":[],"annotations":{"seed":"` + seed + `"}}`)
	return &pullthroughtest.Image{MediaType: "application/vnd.oci.artifact.manifest.v1+json", Digest: digest.FromBytes(content), Content: content}
}

func put(t testing.TB, s *dirstore.Store, repo pullthrough.Repo, m *pullthrough.Manifest) {
	t.Helper()
	require.NoError(t, s.PutManifest(t.Context(), repo, m))
}

func get(t testing.TB, s *dirstore.Store, repo pullthrough.Repo, ref string) *pullthrough.Manifest {
	t.Helper()
	m, err := s.Manifest(t.Context(), repo, ref)
	require.NoError(t, err)
	return m
}

// assertStored compares all but the Source, which no store keeps.
func assertStored(t testing.TB, want, got *pullthrough.Manifest) {
	t.Helper()
	expected := *want
	expected.Source = pullthrough.SourceHit
	assert.Equal(t, &expected, got)
}

// files are the regular files below dir with their content, apart from staging,
// locks and the count.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	require.NoError(t, filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		content, err := os.ReadFile(name)
		rel, _ := filepath.Rel(dir, name)
		if !strings.HasPrefix(rel, "pullthrough/staging/") && filepath.Dir(rel) != "pullthrough" {
			found[rel] = string(content)
		}
		return err
	}))
	return found
}

// staged are the files in all staging directories.
func staged(t testing.TB, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "pullthrough/staging/*/*"))
	require.NoError(t, err)
	return found
}

// assertSound checks what must hold after whatever has happened: everything
// that has its final name is whole, and of a kind that belongs there.
func assertSound(t testing.TB, dir string) {
	t.Helper()
	for name, content := range files(t, dir) {
		base, parent := filepath.Base(name), filepath.Base(filepath.Dir(name))
		switch {
		case base == "data":
			algorithm := digest.SHA256
			if len(parent) == 128 {
				algorithm = digest.SHA512
			}
			assert.Equal(t, parent, algorithm.FromString(content).Encoded(), name)
		case base == "link":
			assert.NoError(t, digest.Digest(content).Validate(), name)
		case base == "size":
			assert.Regexp(t, `^[0-9]+$`, content, name)
		default:
			assert.Equal(t, ".json", filepath.Ext(base), name)
			assert.True(t, json.Valid([]byte(content)), name)
		}
	}
	tags, err := filepath.Glob(filepath.Join(dir, repositories, "*/*/*/_manifests/tags/*/*"))
	require.NoError(t, err)
	for _, name := range tags {
		assert.Contains(t, []string{"current", "index"}, filepath.Base(name), name)
	}
}

// write puts a file where somebody else would.
func write(t testing.TB, content string, elem ...string) {
	t.Helper()
	name := filepath.Join(elem...)
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(t, os.WriteFile(name, []byte(content), 0o644))
}

func layerLink(dir, name string, d digest.Digest) string {
	return filepath.Join(dir, repositories, name, "_layers", d.Algorithm().String(), d.Encoded(), "link")
}

func sizeNote(dir, name string, d digest.Digest) string {
	return filepath.Join(filepath.Dir(layerLink(dir, name, d)), "size")
}

func revisionLink(dir, name string, d digest.Digest) string {
	return filepath.Join(dir, repositories, name, "_manifests/revisions", d.Algorithm().String(), d.Encoded(), "link")
}

func tagLink(dir, name, tag string) string {
	return filepath.Join(dir, repositories, name, "_manifests/tags", tag, "current/link")
}

func dataFile(dir string, d digest.Digest) string {
	return filepath.Join(dir, blobs, d.Algorithm().String(), d.Encoded()[:2], d.Encoded(), "data")
}
