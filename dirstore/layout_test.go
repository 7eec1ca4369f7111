package dirstore_test

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// TestTheLayoutIsTheRegistrys has every path written out: it is a contract with
// other programs.
func TestTheLayoutIsTheRegistrys(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	img := image(1)
	put(t, s, repo, manifestOf(img, "v1"))
	layer := putBlob(t, s, repo, []byte("layer"))
	m, l, in := img.Digest.Encoded(), layer.Encoded(), repositories+"/"+repo.Name
	found := files(t, dir)
	for name, content := range map[string]string{
		blobs + "/sha256/" + m[:2] + "/" + m + "/data":                      string(img.Content),
		blobs + "/sha256/" + l[:2] + "/" + l + "/data":                      "layer",
		in + "/_layers/sha256/" + l + "/link":                               layer.String(),
		in + "/_layers/sha256/" + l + "/size":                               "5",
		in + "/_manifests/revisions/sha256/" + m + "/link":                  img.Digest.String(),
		in + "/_manifests/tags/v1/current/link":                             img.Digest.String(),
		in + "/_manifests/tags/v1/current/sha256-" + m + ".json":            strings.TrimSuffix(sidecarJSON(img), "}") + `,"tag":"v1"}`,
		in + "/_manifests/revisions/sha256/" + m + "/sha256-" + m + ".json": sidecarJSON(img),
	} {
		assert.Equal(t, content, found[name], name)
		delete(found, name)
	}
	assert.Empty(t, found)
}

func sidecarJSON(img *pullthroughtest.Image) string {
	return `{"digest":"` + img.Digest.String() + `","mediaType":"` + img.MediaType +
		`","checkedAt":"2026-03-04T05:06:07.000000089Z","origin":"registry.example"}`
}

// TestARepositoryHasLayersFromTheStart: without the directory the registry's
// garbage collection ends with an error.
func TestARepositoryHasLayersFromTheStart(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, repo, manifestOf(pullthroughtest.NewIndex(image(1)), "v1"))
	put(t, s, other, manifestOf(artifact("1"), "v1")) // its tag is in the registry's sight
	assert.DirExists(t, filepath.Join(dir, repositories, repo.Name, "_layers"))
	assert.DirExists(t, filepath.Join(dir, repositories, other.Name, "_layers"))
}

// TestWhatARegistryWroteIsServed is a directory as distribution leaves it.
func TestWhatARegistryWroteIsServed(t *testing.T) {
	dir := t.TempDir()
	untyped := `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:1","size":1},"layers":[]}`
	docker := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Docker: true})
	index := pullthroughtest.NewIndex(docker)
	store := func(content string) digest.Digest {
		d := digest.FromString(content)
		write(t, content, dataFile(dir, d))
		return d
	}
	push := func(tag, content string) {
		d := store(content)
		write(t, d.String(), revisionLink(dir, repo.Name, d))
		write(t, d.String(), tagLink(dir, repo.Name, tag))
		write(t, d.String(), filepath.Dir(tagLink(dir, repo.Name, tag)), "../index/sha256", d.Encoded(), "link")
	}
	push("untyped", untyped)
	push("docker", string(docker.Content))
	push("index", string(index.Content))
	layer := store("layer")
	write(t, layer.String(), layerLink(dir, repo.Name, layer))
	alias := digest.SHA512.FromString("layer") // what was pushed under sha512 is kept under sha256
	write(t, layer.String(), layerLink(dir, repo.Name, alias))

	s := open(t, dir)
	for tag, want := range map[string]*pullthrough.Manifest{
		"untyped": {Content: []byte(untyped), Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest}},
		"docker":  {Content: docker.Content, Descriptor: ocispec.Descriptor{MediaType: docker.MediaType}},
		"index":   {Content: index.Content, Descriptor: ocispec.Descriptor{MediaType: index.MediaType}},
	} {
		want.Descriptor.Digest, want.Descriptor.Size = digest.FromBytes(want.Content), int64(len(want.Content))
		assertStored(t, want, get(t, s, repo, want.Descriptor.Digest.String()))
		want.Tag = tag
		assertStored(t, want, get(t, s, repo, tag))
	}
	assert.Equal(t, "layer", string(readBlob(t, s, repo, layer)))
	assert.Equal(t, "layer", string(readBlob(t, s, repo, alias)))
	before := files(t, dir)
	require.NoError(t, s.PutBlob(t.Context(), repo, ocispec.Descriptor{Digest: alias, Size: 5}, nil))
	assert.Equal(t, before, files(t, dir))
}

// TestATagThatTheRegistryMovesIsLocal: also when it moves back to what upstream
// had before.
func TestATagThatTheRegistryMovesIsLocal(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, repo, manifestOf(image(1), "v1"))
	put(t, s, repo, manifestOf(image(2), "v1"))
	write(t, image(1).Digest.String(), tagLink(dir, repo.Name, "v1"))
	m := get(t, s, repo, "v1")
	assert.Equal(t, image(1).Digest, m.Descriptor.Digest)
	assert.Equal(t, image(1).MediaType, m.Descriptor.MediaType)
	assert.Zero(t, m.CheckedAt)
	assert.Empty(t, m.Origin)
}

// TestTagsThatDifferInCaseOnly, on a file system that does not tell them apart: a second
// name of a tag's directory looks the same. The second tag is served and not stored.
func TestTagsThatDifferInCaseOnly(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, repo, manifestOf(image(1), "v1"))
	tags := filepath.Dir(filepath.Dir(filepath.Dir(tagLink(dir, repo.Name, "v1"))))
	require.NoError(t, os.Symlink("v1", filepath.Join(tags, "V1")))
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	up.Push("library/alpine", "V1", image(2))
	up.Push("library/alpine", "v1", image(1))
	var failures atomic.Int32
	p := &pullthrough.Proxy{Store: s, Rules: pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: up.URL}}, Now: func() time.Time { return checked }}
	p.OnEvent = func(_ context.Context, e pullthrough.Event) {
		if e.Kind == pullthrough.EventStoreFailed {
			failures.Add(1)
			assert.ErrorContains(t, e.Err, "differs in case")
		}
	}
	for range 2 {
		for tag, img := range map[string]*pullthroughtest.Image{"v1": image(1), "V1": image(2)} {
			m, err := p.Manifest(t.Context(), pullthrough.Request{Repo: repo, Ref: tag})
			require.NoError(t, err)
			assert.Equal(t, img.Digest, m.Descriptor.Digest)
			require.NoError(t, p.Idle(t.Context()))
		}
	}
	require.NoError(t, p.Shutdown(t.Context()))
	assert.Positive(t, failures.Load())
	assert.Zero(t, up.Count("GET /v2/*/manifests/v1"))
	assert.Positive(t, up.Count("GET /v2/*/manifests/V1"))
	stored, err := s.Tags(t.Context(), repo)
	require.NoError(t, err)
	assert.Equal(t, []string{"v1"}, stored)
}

// testNoTwoRepositoriesShareAPlace, however they are named.
func testNoTwoRepositoriesShareAPlace(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	s.Account, s.Region = "000000000000", "us-east-1"
	places := map[string]pullthrough.Repo{
		"app/web":                        {Account: s.Account, Region: s.Region, Name: "app/web"},
		"123456789012/us-east-1/app/web": {Account: "123456789012", Region: s.Region, Name: "app/web"},
		"000000000000/eu-west-1/app/web": {Account: s.Account, Region: "eu-west-1", Name: "app/web"},
		"000000000000/us-east-1/123456789012/us-east-1/app/web": {Account: s.Account, Region: s.Region, Name: "123456789012/us-east-1/app/web"},
		"000000000000/us-east-1/000000000000/us-east-1/app/web": {Account: s.Account, Region: s.Region, Name: "000000000000/us-east-1/app/web"},
		"000000000000/us-east-1/123456789012":                   {Account: s.Account, Region: s.Region, Name: "123456789012"},
	}
	for place, repo := range places {
		content := []byte(place)
		for _, other := range places {
			assertNoBlob(t, s, other, digest.FromBytes(content))
		}
		d := putBlob(t, s, repo, content)
		assert.FileExists(t, layerLink(dir, place, d))
		put(t, s, repo, manifestOf(artifact(place), "v1"))
	}
	for place, repo := range places {
		assert.Equal(t, artifact(place).Digest, get(t, s, repo, "v1").Descriptor.Digest, place)
	}
}

// TestNamesTooLongForTheRegistryAreKeptFromIt: its garbage collection ends at
// them.
func TestNamesTooLongForTheRegistryAreKeptFromIt(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	long := tenant
	long.Name = "a/" + strings.Repeat("b", 240)
	put(t, s, long, manifestOf(image(1), "v1"))
	d := putBlob(t, s, long, []byte("layer"))
	assertStored(t, manifestOf(image(1), "v1"), get(t, s, long, "v1"))
	assert.Equal(t, "layer", string(readBlob(t, s, long, d)))
	entries, err := os.ReadDir(filepath.Join(dir, repositories))
	require.NoError(t, err)
	assert.Empty(t, entries)
}

// TestHostileValuesNeverBecomePaths tries each in every method.
func TestHostileValuesNeverBecomePaths(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "store")
	s := open(t, dir)
	good, img := digest.FromString("layer"), image(1)
	write(t, good.String(), parent, "link")
	hostile := []string{
		"", ".", "..", "../..", "../../../../../../etc", "/etc/passwd", "a/../../b", "a//b", "A", "a\x00b", "a\\b", "_layers", "a/_manifests",
		"sha256:..", "sha256:../../../../../../../../etc/passwd", "sha256:" + strings.Repeat("A", 64), "sha256:" + strings.Repeat("g", 64),
		"sha512:" + good.Encoded(), "md5:" + strings.Repeat("a", 32), "sha256//" + good.Encoded(), strings.Repeat("a", 300), "ü", "a\nb",
	}
	refused := func(t *testing.T, err error) {
		t.Helper()
		assert.ErrorIs(t, err, pullthrough.ErrInvalid)
		assert.NotErrorIs(t, err, fs.ErrNotExist)
	}
	for _, value := range hostile {
		t.Run(value, func(t *testing.T) {
			repos := []pullthrough.Repo{{Name: value}, {Account: value, Region: "us-east-1", Name: "app"}, {Account: "123456789012", Region: value, Name: "app"}}
			for _, bad := range repos {
				_, err := s.Blob(t.Context(), bad, good)
				refused(t, err)
				_, err = s.Manifest(t.Context(), bad, "v1")
				refused(t, err)
				_, err = s.StageBlob(t.Context(), bad, good)
				refused(t, err)
				refused(t, s.PutBlob(t.Context(), bad, ocispec.Descriptor{Digest: good, Size: 5}, strings.NewReader("layer")))
				refused(t, s.PutManifest(t.Context(), bad, manifestOf(img, "v1")))
				_, err = s.Tags(t.Context(), bad)
				refused(t, err)
				_, _, err = s.Referrers(t.Context(), bad, good)
				refused(t, err)
			}
			bad := digest.Digest(value)
			_, err := s.Blob(t.Context(), repo, bad)
			refused(t, err)
			_, err = s.StageBlob(t.Context(), repo, bad)
			refused(t, err)
			refused(t, s.PutBlob(t.Context(), repo, ocispec.Descriptor{Digest: bad, Size: 5}, strings.NewReader("layer")))
			m := manifestOf(img, "v1")
			m.Descriptor.Digest = bad
			refused(t, s.PutManifest(t.Context(), repo, m))
			if value != "A" && value != "_layers" { // they are good tags
				_, err = s.Manifest(t.Context(), repo, value)
				refused(t, err)
				if value != "" {
					refused(t, s.PutManifest(t.Context(), repo, manifestOf(img, value)))
				}
			}
		})
	}
	refused(t, s.PutManifest(t.Context(), repo, manifestOf(img, img.Digest.String())))
	assert.Empty(t, files(t, dir))
	entries, err := os.ReadDir(parent)
	require.NoError(t, err)
	assert.Len(t, entries, 2)
}

// TestSymbolicLinksLeadNowhere: whoever can plant one in the directory still
// cannot have us read or write elsewhere.
func TestSymbolicLinksLeadNowhere(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	s := open(t, dir)
	d := putBlob(t, s, repo, []byte("layer"))
	require.NoError(t, os.RemoveAll(filepath.Dir(dataFile(dir, d))))
	write(t, "secret", outside, "data")
	require.NoError(t, os.Symlink(outside, filepath.Dir(dataFile(dir, d))))
	_, err := s.Blob(t.Context(), repo, d)
	assert.Error(t, err)
	assert.Error(t, s.PutBlob(t.Context(), repo, descriptor([]byte("layer")), bytes.NewReader([]byte("layer"))))
	content, err := os.ReadFile(filepath.Join(outside, "data"))
	require.NoError(t, err)
	assert.Equal(t, "secret", string(content))
}
