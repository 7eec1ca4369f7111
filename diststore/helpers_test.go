package diststore_test

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/diststore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

var (
	_ pullthrough.Store         = (*diststore.Store)(nil)
	_ pullthrough.RepoCreator   = (*diststore.Store)(nil)
	_ pullthrough.TagLister     = (*diststore.Store)(nil)
	_ pullthrough.RepoLister    = (*diststore.Store)(nil)
	_ pullthrough.ReferrerStore = (*diststore.Store)(nil)
)

func TestMain(m *testing.M) { testkit.Main(m) }

var (
	repo    = pullthrough.Repo{Name: "hub/library/alpine"}
	other   = pullthrough.Repo{Name: "hub/library/busybox"}
	tenant  = pullthrough.Repo{Account: "123456789012", Region: "eu-west-1", Name: repo.Name}
	checked = time.Date(2026, 3, 4, 5, 6, 7, 89, time.UTC)
)

const (
	repositories = "docker/registry/v2/repositories"
	blobs        = "docker/registry/v2/blobs"

	// large is more than is sent in one request.
	large = 5 << 20
)

// scratch is a directory in memory where there is such a thing: the driver syncs
// every file.
func scratch(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "diststore")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func onDisk(dir string) storagedriver.StorageDriver {
	return filesystem.New(filesystem.DriverParameters{RootDirectory: dir, MaxThreads: 100})
}

// drivers are what most tests run on.
var drivers = map[string]func(t testing.TB) storagedriver.StorageDriver{
	"filesystem": func(t testing.TB) storagedriver.StorageDriver { return onDisk(scratch(t)) },
	"inmemory":   func(testing.TB) storagedriver.StorageDriver { return inmemory.New() },
}

// probe is a driver that counts what it is asked for, and fails on demand.
type probe struct {
	storagedriver.StorageDriver
	name string                                            // "": the driver's
	fail func(op, path string) error                       // nil: nothing fails
	wrap func(r io.ReadCloser, offset int64) io.ReadCloser // nil: nothing breaks
	url  string                                            // for redirects

	mu    sync.Mutex
	calls []string
}

func (p *probe) before(op, path string) error {
	p.mu.Lock()
	p.calls = append(p.calls, op+" "+path)
	p.mu.Unlock()
	if p.fail == nil {
		return nil
	}
	return p.fail(op, path)
}

// asked returns the operations since the last call.
func (p *probe) asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	ops := []string{}
	for _, call := range p.calls {
		op, _, _ := strings.Cut(call, " ")
		ops = append(ops, op)
	}
	p.calls = nil
	return ops
}

func (p *probe) Name() string {
	if p.name != "" {
		return p.name
	}
	return p.StorageDriver.Name()
}

func (p *probe) PutContent(ctx context.Context, path string, content []byte) error {
	if err := p.before("put", path); err != nil {
		return err
	}
	return p.StorageDriver.PutContent(ctx, path, content)
}

func (p *probe) GetContent(ctx context.Context, path string) ([]byte, error) {
	if err := p.before("get", path); err != nil {
		return nil, err
	}
	return p.StorageDriver.GetContent(ctx, path)
}

func (p *probe) Reader(ctx context.Context, path string, offset int64) (io.ReadCloser, error) {
	if err := p.before("get", path); err != nil {
		return nil, err
	}
	r, err := p.StorageDriver.Reader(ctx, path, offset)
	if err == nil && p.wrap != nil {
		r = p.wrap(r, offset)
	}
	return r, err
}

func (p *probe) Writer(ctx context.Context, path string, appending bool) (storagedriver.FileWriter, error) {
	if err := p.before("writer", path); err != nil {
		return nil, err
	}
	w, err := p.StorageDriver.Writer(ctx, path, appending)
	return &probeWriter{FileWriter: w, probe: p, path: path}, err
}

func (p *probe) Stat(ctx context.Context, path string) (storagedriver.FileInfo, error) {
	if err := p.before("stat", path); err != nil {
		return nil, err
	}
	return p.StorageDriver.Stat(ctx, path)
}

func (p *probe) List(ctx context.Context, path string) ([]string, error) {
	if err := p.before("list", path); err != nil {
		return nil, err
	}
	return p.StorageDriver.List(ctx, path)
}

func (p *probe) Move(ctx context.Context, from, to string) error {
	if err := p.before("move", to); err != nil {
		return err
	}
	return p.StorageDriver.Move(ctx, from, to)
}

func (p *probe) Delete(ctx context.Context, path string) error {
	if err := p.before("delete", path); err != nil {
		return err
	}
	return p.StorageDriver.Delete(ctx, path)
}

func (p *probe) RedirectURL(r *http.Request, path string) (string, error) {
	if err := p.before("redirect", path); err != nil {
		return "", err
	}
	if p.url == "" {
		return "", nil
	}
	return p.url + path, nil
}

type probeWriter struct {
	storagedriver.FileWriter
	probe *probe
	path  string
	began bool
}

func (w *probeWriter) Write(b []byte) (int, error) {
	if !w.began { // the others are like the first
		w.began = true
		if err := w.probe.before("write", w.path); err != nil {
			return 0, err
		}
	}
	return w.FileWriter.Write(b)
}

func (w *probeWriter) Commit(ctx context.Context) error {
	if err := w.probe.before("commit", w.path); err != nil {
		return err
	}
	return w.FileWriter.Commit(ctx)
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

func putBlob(t testing.TB, s pullthrough.Store, repo pullthrough.Repo, content []byte) digest.Digest {
	t.Helper()
	desc := descriptor(content)
	require.NoError(t, s.PutBlob(t.Context(), repo, desc, bytes.NewReader(content)))
	return desc.Digest
}

func openBlob(t testing.TB, s pullthrough.Store, repo pullthrough.Repo, d digest.Digest) *pullthrough.Blob {
	t.Helper()
	b, err := s.Blob(t.Context(), repo, d)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Body.Close()) })
	return b
}

func readBlob(t testing.TB, s pullthrough.Store, repo pullthrough.Repo, d digest.Digest) []byte {
	t.Helper()
	b := openBlob(t, s, repo, d)
	content, err := io.ReadAll(b.Body)
	require.NoError(t, err)
	assert.Equal(t, d, b.Descriptor.Digest)
	assert.Equal(t, int64(len(content)), b.Descriptor.Size)
	return content
}

// assertBlob compares without printing megabytes.
func assertBlob(t testing.TB, s pullthrough.Store, repo pullthrough.Repo, content []byte) {
	t.Helper()
	assert.True(t, bytes.Equal(content, readBlob(t, s, repo, digest.FromBytes(content))), "the blob is not the one that was put")
}

func assertNoBlob(t testing.TB, s pullthrough.Store, repo pullthrough.Repo, d digest.Digest) {
	t.Helper()
	_, err := s.Blob(t.Context(), repo, d)
	assert.ErrorIs(t, err, fs.ErrNotExist)
}

func assertNoManifest(t testing.TB, s pullthrough.Store, repo pullthrough.Repo, ref string) {
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

func put(t testing.TB, s pullthrough.Store, repo pullthrough.Repo, m *pullthrough.Manifest) {
	t.Helper()
	require.NoError(t, s.PutManifest(t.Context(), repo, m))
}

func get(t testing.TB, s pullthrough.Store, repo pullthrough.Repo, ref string) *pullthrough.Manifest {
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

// files are the regular files below dir with their content, what is on its way
// apart.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	require.NoError(t, filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		content, err := os.ReadFile(name)
		rel, _ := filepath.Rel(dir, name)
		if !strings.HasPrefix(rel, "pullthrough/staging/") {
			found[rel] = string(content)
		}
		return err
	}))
	return found
}

// write puts an object where somebody else would.
func write(t testing.TB, driver storagedriver.StorageDriver, name, content string) {
	t.Helper()
	require.NoError(t, driver.PutContent(t.Context(), "/"+name, []byte(content)))
}

func layerLink(name string, d digest.Digest) string {
	return repositories + "/" + name + "/_layers/" + d.Algorithm().String() + "/" + d.Encoded() + "/link"
}

func sizeNote(name string, d digest.Digest) string {
	return strings.TrimSuffix(layerLink(name, d), "link") + "size"
}

func revisionLink(name string, d digest.Digest) string {
	return repositories + "/" + name + "/_manifests/revisions/" + d.Algorithm().String() + "/" + d.Encoded() + "/link"
}

func tagLink(name, tag string) string {
	return repositories + "/" + name + "/_manifests/tags/" + tag + "/current/link"
}

func dataFile(d digest.Digest) string {
	return blobs + "/" + d.Algorithm().String() + "/" + d.Encoded()[:2] + "/" + d.Encoded() + "/data"
}
