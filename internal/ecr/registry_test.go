package ecr_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// ecr is a private registry with the rule hub = upstream, as its clients see it.
// Time in it passes when a test says so.
type ecr struct {
	*testkit.Face
	told  *testkit.Events
	mu    sync.Mutex
	clock time.Time
}

// startECR returns a registry after changes that are made before its first use.
func startECR(t *testing.T, c pullthroughtest.Config, changes ...func(*pullthrough.Proxy)) *ecr {
	t.Helper()
	e := &ecr{told: &testkit.Events{}, clock: time.Now()}
	e.Face = testkit.NewFace(t, c, func(p *pullthrough.Proxy) {
		p.Now = e.now
		p.OnEvent = e.told.On
		p.Identify = func(r *http.Request) (pullthrough.Identity, error) {
			return pullthrough.Identity{Account: testkit.RegistryAccount, Region: "eu-west-1", Caller: r.Header.Get("X-Caller")}, nil
		}
		for _, change := range changes {
			change(p)
		}
	})
	return e
}

func (e *ecr) now() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.clock
}

func (e *ecr) pass(d time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.clock = e.clock.Add(d)
}

func ecrRepo(name string) pullthrough.Repo {
	return pullthrough.Repo{Account: testkit.RegistryAccount, Region: "eu-west-1", Name: testkit.Prefix + "/" + name}
}

func in(store pullthrough.Store) func(*pullthrough.Proxy) {
	return func(p *pullthrough.Proxy) { p.Store = store }
}

func fills(mode pullthrough.FillMode) func(*pullthrough.Proxy) {
	return func(p *pullthrough.Proxy) { p.Fill = mode }
}

// push makes the image the one that the tag of a, or of another repository, has
// upstream, and forgets what was asked of upstream before.
func (e *ecr) push(ref string, img *pullthroughtest.Image, other ...string) {
	e.Up.Push(append(other, "a")[0], ref, img)
	e.Up.Reset()
}

// serves pulls the tag or digest of a by GET, which must be that image, and waits
// until the Store has it.
func (e *ecr) serves(t *testing.T, ref string, img *pullthroughtest.Image, header ...string) {
	t.Helper()
	testkit.AssertManifest(t, e.Get(t, testkit.ManifestPath("a", ref), header...), http.MethodGet, img, img.Digest)
	e.Settled(t)
}

// servesBlobs pulls config and layers of an image of a.
func (e *ecr) servesBlobs(t *testing.T, img *pullthroughtest.Image) {
	t.Helper()
	for _, b := range img.Blobs() {
		testkit.AssertContent(t, e.Get(t, testkit.BlobPath("a", b.Digest)), b.Digest, testkit.OctetStream, int(b.Size))
	}
}

// refuses pulls the tag or digest of a, which must be answered with the error.
func (e *ecr) refuses(t *testing.T, ref string, status int, code, message string) {
	t.Helper()
	assert.Equal(t, message, testkit.AssertOCI(t, e.Get(t, testkit.ManifestPath("a", ref)), status, code))
}

// brings is what a client in a goroutine of its own does, where a test must not
// end: a GET that must bring this content.
func (e *ecr) brings(t *testing.T, path, caller string, content []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, e.Server.URL+path, nil)
	if !assert.NoError(t, err) {
		return
	}
	r.Header.Set("X-Caller", caller)
	resp, err := e.Server.Client().Do(r)
	if !assert.NoError(t, err) {
		return
	}
	defer func() { assert.NoError(t, resp.Body.Close()) }()
	got, err := io.ReadAll(resp.Body)
	assert.NoError(t, err)
	assert.Equal(t, http.StatusOK, resp.StatusCode)
	testkit.AssertSame(t, content, got)
}

// asked checks what upstream was asked since it was last looked at: lines such
// as "GET /v2/a/manifests/1 200".
func (e *ecr) asked(t *testing.T, want ...string) {
	t.Helper()
	e.Settled(t)
	assert.Equal(t, want, e.Up.Log())
	e.Up.Reset()
}

// asks builds a line for asked about the repository a.
func asks(method, ref string, status int) string {
	return fmt.Sprintf("%s /v2/a/manifests/%s %d", method, ref, status)
}

// repoStore is a Store as an emulator of Amazon ECR has it: repositories are
// made before anything is put into them, images can be deleted, and it
// remembers what it was told to do.
type repoStore struct {
	*memstore.Store
	up *pullthroughtest.Upstream // nil: what it was asked is of no interest

	mu      sync.Mutex
	repos   map[string]bool
	gone    map[string]bool            // references that were deleted
	created []creation                 // calls of CreateRepo
	tags    map[digest.Digest][]string // of the manifests that were put; a tag is "" for none
	sizes   map[digest.Digest]int64    // of the blobs that were put
	order   []digest.Digest            // of all that was put
	refuse  error                      // of CreateRepo
	blind   error                      // of RepoExists
}

// creation is a call of CreateRepo, with what upstream was asked before.
type creation struct {
	rule  pullthrough.Rule
	r     pullthrough.Request
	asked []string
}

func newRepoStore(names ...string) *repoStore {
	s := &repoStore{
		Store: memstore.New(), repos: map[string]bool{}, gone: map[string]bool{},
		tags: map[digest.Digest][]string{}, sizes: map[digest.Digest]int64{},
	}
	for _, name := range names {
		s.repos[testkit.Prefix+"/"+name] = true
	}
	return s
}

func (s *repoStore) RepoExists(_ context.Context, repo pullthrough.Repo) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.repos[repo.Name], s.blind
}

func (s *repoStore) CreateRepo(_ context.Context, repo pullthrough.Repo, rule pullthrough.Rule, r pullthrough.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := creation{rule: rule, r: r}
	if s.up != nil {
		c.asked = s.up.Log()
	}
	s.created = append(s.created, c)
	if s.refuse == nil {
		s.repos[repo.Name] = true
	}
	return s.refuse
}

func (s *repoStore) creations() []creation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.created)
}

func (s *repoStore) Manifest(ctx context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone[ref] {
		return nil, fs.ErrNotExist
	}
	return s.Store.Manifest(ctx, repo, ref)
}

var errNoSuchRepo = errors.New("put into a repository that is not there")

func (s *repoStore) PutManifest(ctx context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.repos[repo.Name] {
		return errNoSuchRepo
	}
	d := m.Descriptor.Digest
	s.tags[d] = append(s.tags[d], m.Tag)
	s.order = append(s.order, d)
	delete(s.gone, m.Tag)
	delete(s.gone, d.String())
	return s.Store.PutManifest(ctx, repo, m)
}

func (s *repoStore) PutBlob(ctx context.Context, repo pullthrough.Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.repos[repo.Name] {
		return errNoSuchRepo
	}
	s.sizes[desc.Digest] = desc.Size
	s.order = append(s.order, desc.Digest)
	return s.Store.PutBlob(ctx, repo, desc, r)
}

// Tags knows repositories that nothing is in.
func (s *repoStore) Tags(ctx context.Context, repo pullthrough.Repo) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.repos[repo.Name] {
		return nil, fs.ErrNotExist
	}
	tags, _ := s.Store.Tags(ctx, repo) // a miss: nothing is in it
	return slices.DeleteFunc(tags, func(tag string) bool { return s.gone[tag] }), nil
}

// remove deletes tags and digests, as BatchDeleteImage does.
func (s *repoStore) remove(refs ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ref := range refs {
		s.gone[ref] = true
	}
}

// removeRepo deletes a repository with all that is in it.
func (s *repoStore) removeRepo(name string, refs ...string) {
	s.remove(refs...)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.repos, testkit.Prefix+"/"+name)
}

// puts are the manifests and blobs that were put, in order.
func (s *repoStore) puts() []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.order)
}

// startRepoECR is a registry with a repoStore that has the repositories.
func startRepoECR(t *testing.T, names []string, changes ...func(*pullthrough.Proxy)) (*ecr, *repoStore) {
	t.Helper()
	s := newRepoStore(names...)
	e := startECR(t, pullthroughtest.Config{}, append([]func(*pullthrough.Proxy){in(s)}, changes...)...)
	s.up = e.Up
	return e, s
}

// local puts a manifest into the repository a as somebody who pushes it.
func (e *ecr) local(t *testing.T, tag string) *pullthroughtest.Image {
	t.Helper()
	m := testkit.LocalManifest(tag)
	require.NoError(t, e.Store.PutManifest(t.Context(), ecrRepo("a"), m))
	return testkit.Image(99)
}

// What a client reads of an upstream that is down is ours: Amazon ECR's sentence
// is not known.
const sayUnavailable = "The upstream registry could not be reached or gave no usable answer."
