package diststore_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
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
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/diststore"
	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// pulls is a history that needs each kind of file: images of all types, a tag
// that moves, one that is confirmed, another tenant, a name that the registry
// cannot read, referrers.
func pulls(t *testing.T, s pullthrough.Store) {
	t.Helper()
	up := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	big := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 4, LayerSize: large})
	sha512 := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 5, Algorithm: digest.SHA512})
	index := pullthroughtest.NewIndex(image(1), image(2))
	var clock atomic.Pointer[time.Time] // what is stored a moment after its pull asks it too
	clock.Store(&checked)
	p := &pullthrough.Proxy{
		Store: s, SpoolDir: t.TempDir(), Now: func() time.Time { return *clock.Load() },
		Rules:    pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: up.URL}},
		Identify: identify,
	}
	pull := func(account, name, tag string, img *pullthroughtest.Image) {
		up.Push(name, tag, img)
		pullImage(t, p, account, "hub/"+name, tag, img)
		require.NoError(t, p.Idle(t.Context()))
	}
	pull("", "library/alpine", "latest", index)
	pull("", "library/alpine", "v1", image(1))
	pull("", "library/docker", "v1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 3, Docker: true}))
	pull("", "library/big", "v1", big)
	pull("", "library/sha512", "v1", sha512)
	pull("", "library/artifact", "v1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 6, ArtifactType: "application/vnd.example", Subject: image(1)}))
	pull("123456789012", "library/alpine", "latest", index)
	pull("", strings.Repeat("n", 240)+"/a", "v1", image(7))
	clock.Store(new(checked.Add(25 * time.Hour)))
	pull("", "library/alpine", "latest", image(8)) // it has moved
	pull("", "library/alpine", "v1", image(1))     // it is confirmed
	require.NoError(t, p.Shutdown(t.Context()))

	put(t, s, repo, manifestOf(artifact("1"), "odd")) // no upstream of ours offers such a thing
	if lists, ok := s.(pullthrough.ReferrerStore); ok {
		list := &ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{index.Descriptor()}}
		require.NoError(t, lists.PutReferrers(t.Context(), repo, index.Digest, list, checked))
	}
}

func identify(r *http.Request) (pullthrough.Identity, error) {
	if account := r.Header.Get("X-Account"); account != "" {
		return pullthrough.Identity{Account: account, Region: "eu-west-1"}, nil
	}
	return pullthrough.Identity{}, nil
}

// pullImage pulls an image over HTTP, with all that it refers to.
func pullImage(t *testing.T, p *pullthrough.Proxy, account, name, ref string, img *pullthroughtest.Image) {
	t.Helper()
	fetch := func(path string, d digest.Digest) {
		t.Helper()
		r := httptest.NewRequest(http.MethodGet, "/v2/"+name+path, nil)
		r.Header.Set("X-Account", account)
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		require.Equal(t, http.StatusOK, w.Code, "%s: %.200s", path, w.Body)
		assert.Equal(t, d, d.Algorithm().FromBytes(w.Body.Bytes()), path)
	}
	fetch("/manifests/"+ref, img.Digest)
	for _, child := range img.Children {
		pullImage(t, p, account, name, child.Digest.String(), child)
	}
	for _, b := range img.Blobs() {
		fetch("/blobs/"+b.Digest.String(), b.Digest)
	}
}

// TestTheFilesAreThoseOfDirstore, name by name and byte for byte.
func TestTheFilesAreThoseOfDirstore(t *testing.T) {
	ours, theirs := scratch(t), scratch(t)
	bucket := diststore.New(onDisk(ours))
	require.NoError(t, bucket.CheckFormat(t.Context()))
	pulls(t, bucket)
	local, err := dirstore.Open(theirs)
	require.NoError(t, err)
	pulls(t, local)
	require.NoError(t, local.Close())
	got, want := files(t, ours), files(t, theirs)
	for _, name := range []string{layout.Lock, layout.Gate, layout.Sweep, layout.Size} {
		delete(want, name) // they are between processes on one machine
	}
	for name, content := range want {
		assert.Contains(t, got, name)
		assert.True(t, sameBut(name, content, got[name]), "%s has other bytes: %.300q, want %.300q", name, got[name], content)
		delete(got, name)
	}
	for name := range got {
		assert.Fail(t, "dirstore has no such file", name)
	}
	assert.Greater(t, len(want), 80)
}

// sameBut compares two files; the two upstreams had ports of their own.
func sameBut(name, a, b string) bool {
	if filepath.Ext(name) == ".json" {
		return withoutPort(a) == withoutPort(b)
	}
	return a == b
}

func withoutPort(s string) string {
	before, after, _ := strings.Cut(s, `"origin":"127.0.0.1:`)
	_, after, _ = strings.Cut(after, `"`)
	return before + after
}

// TestEachReadsWhatTheOtherWrote: a directory may change hands.
func TestEachReadsWhatTheOtherWrote(t *testing.T) {
	dir := scratch(t)
	ours := diststore.New(onDisk(dir))
	put(t, ours, repo, manifestOf(image(1), "v1"))
	content := noise(1, large)
	d := putBlob(t, ours, repo, content)

	local, err := dirstore.Open(dir)
	require.NoError(t, err)
	defer func() { assert.NoError(t, local.Close()) }()
	assertStored(t, manifestOf(image(1), "v1"), get(t, local, repo, "v1"))
	assertBlob(t, local, repo, content)
	put(t, local, other, manifestOf(image(2), "v2"))
	putBlob(t, local, other, content)

	assertStored(t, manifestOf(image(2), "v2"), get(t, ours, other, "v2"))
	assert.True(t, bytes.Equal(content, readBlob(t, ours, other, d)))
}

// TestWhatARegistryWroteIsServed is a bucket as distribution leaves it.
func TestWhatARegistryWroteIsServed(t *testing.T) {
	driver := drivers["inmemory"](t)
	s := diststore.New(driver)
	docker := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Docker: true})
	write(t, driver, dataFile(docker.Digest), string(docker.Content))
	write(t, driver, revisionLink(repo.Name, docker.Digest), docker.Digest.String())
	write(t, driver, tagLink(repo.Name, "v1"), docker.Digest.String())
	layer := digest.FromString("layer")
	write(t, driver, dataFile(layer), "layer")
	alias := digest.SHA512.FromString("layer") // what was pushed under sha512 is kept under sha256
	write(t, driver, layerLink(repo.Name, alias), layer.String())

	m := get(t, s, repo, "v1")
	assert.Equal(t, docker.Digest, m.Descriptor.Digest)
	assert.Equal(t, docker.MediaType, m.Descriptor.MediaType)
	assert.Zero(t, m.CheckedAt)
	assert.Empty(t, m.Origin)
	assert.Equal(t, "layer", string(readBlob(t, s, repo, alias)))
	require.NoError(t, s.PutBlob(t.Context(), repo, ocispec.Descriptor{Digest: alias, Size: 5}, nil))
	assertNoBlob(t, s, repo, layer)
}

// TestARepositoryHasLayersFromTheStart: without the directory the registry's
// garbage collection ends with an error, where the driver does not overlook it.
func TestARepositoryHasLayersFromTheStart(t *testing.T) {
	layers := "/" + repositories + "/" + repo.Name + "/_layers"
	for driver, want := range map[string][]string{"filesystem": {}, "inmemory": {}, "gcs": {layers + "/_pullthrough"}} {
		t.Run(driver, func(t *testing.T) {
			p := &probe{StorageDriver: drivers["inmemory"](t), name: driver}
			s := diststore.New(p)
			put(t, s, repo, manifestOf(pullthroughtest.NewIndex(image(1)), "v1"))
			found, err := p.List(t.Context(), layers)
			require.NoError(t, err)
			assert.ElementsMatch(t, want, found)
			tags, err := s.Tags(t.Context(), repo)
			require.NoError(t, err)
			assert.Equal(t, []string{"v1"}, tags)
		})
	}
}

// TestTagsThatDifferInCaseOnly, on a file system that does not tell them apart: a second
// name of a tag's directory looks the same. The second tag is not stored.
func TestTagsThatDifferInCaseOnly(t *testing.T) {
	dir := scratch(t)
	s := diststore.New(onDisk(dir))
	put(t, s, repo, manifestOf(image(1), "v1"))
	require.NoError(t, os.Symlink("v1", filepath.Join(dir, repositories, repo.Name, "_manifests/tags/V1")))
	for range 2 {
		assertNoManifest(t, s, repo, "V1")
		err := s.PutManifest(t.Context(), repo, manifestOf(image(2), "V1"))
		assert.ErrorContains(t, err, "differs in case")
		assertStored(t, manifestOf(image(1), "v1"), get(t, s, repo, "v1"))
		s = diststore.New(onDisk(dir))
	}
}

// TestHostileValuesNeverBecomePaths tries each in every method.
func TestHostileValuesNeverBecomePaths(t *testing.T) {
	p := &probe{StorageDriver: drivers["inmemory"](t)}
	s := diststore.New(p)
	for _, value := range []string{
		"", ".", "..", "../..", "/etc/passwd", "a/../../b", "a//b", "a\x00b", "a\\b", "a/_manifests", "sha256:..",
		"sha256:" + strings.Repeat("A", 64), "sha512:" + strings.Repeat("a", 64), strings.Repeat("a", 300), "ü", "a\nb",
	} {
		d := digest.FromString("layer")
		for _, bad := range []pullthrough.Repo{{Name: value}, {Account: value, Region: "us-east-1", Name: "app"}, {Account: "123456789012", Region: value, Name: "app"}} {
			refused := func(err error) { t.Helper(); assert.ErrorIs(t, err, pullthrough.ErrInvalid, "%q", value) }
			_, err := s.Blob(t.Context(), bad, d)
			refused(err)
			_, err = s.Manifest(t.Context(), bad, "v1")
			refused(err)
			refused(s.PutBlob(t.Context(), bad, ocispec.Descriptor{Digest: d, Size: 5}, strings.NewReader("layer")))
			refused(s.PutManifest(t.Context(), bad, manifestOf(image(1), "v1")))
			_, err = s.Tags(t.Context(), bad)
			refused(err)
			_, _, err = s.Referrers(t.Context(), bad, d)
			refused(err)
		}
		_, err := s.Blob(t.Context(), repo, digest.Digest(value))
		assert.ErrorIs(t, err, pullthrough.ErrInvalid, "%q", value)
		_, _, err = s.Referrers(t.Context(), repo, digest.Digest(value))
		assert.ErrorIs(t, err, pullthrough.ErrInvalid, "%q", value)
		m := manifestOf(image(1), "v1")
		m.Descriptor.Digest = digest.Digest(value)
		assert.ErrorIs(t, s.PutManifest(t.Context(), repo, m), pullthrough.ErrInvalid, "%q", value)
	}
	assert.Empty(t, p.asked())
}

// TestOtherContentIsRefused is about callers that do not verify.
func TestOtherContentIsRefused(t *testing.T) {
	p := &probe{StorageDriver: drivers["inmemory"](t)}
	s := diststore.New(p)
	m := manifestOf(image(1), "v1")
	m.Content = image(2).Content
	assert.ErrorIs(t, s.PutManifest(t.Context(), repo, m), pullthrough.ErrDigest)
	content := noise(1, large)
	desc := descriptor(content)
	assert.ErrorIs(t, s.PutBlob(t.Context(), repo, desc, bytes.NewReader(content[1:])), io.ErrUnexpectedEOF)
	assert.Error(t, s.PutBlob(t.Context(), repo, desc, bytes.NewReader(append(content, 0))))
	assertNoBlob(t, s, repo, desc.Digest)
	found, err := p.List(t.Context(), "/pullthrough/uploads")
	require.NoError(t, err)
	assert.Empty(t, found)
}
