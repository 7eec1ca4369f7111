package containerd_test

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/transfer/image"
	transferlocal "github.com/containerd/containerd/v2/core/transfer/local"
	transferregistry "github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	buildkitconfig "github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/util/resolver"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// The files of docs/tools.md that are tried here.
const (
	defaultHosts  = "/etc/containerd/certs.d/_default/hosts.toml"
	hubHosts      = "/etc/containerd/certs.d/docker.io/hosts.toml"
	buildkitdFile = "/etc/buildkit/buildkitd.toml"
)

// mirrored are images of several registries that have the same name there, by reference.
var mirrored = map[string]struct {
	img        *pullthroughtest.Image
	repository string
}{
	"docker.io/library/alpine:3.22":   {mirrorImage(1), "docker-hub/library/alpine"},
	"quay.io/library/alpine:3.22":     {mirrorImage(2), "quay/library/alpine"},
	"localhost:1/library/alpine:3.22": {mirrorImage(3), "local/library/alpine"},
}

func mirrorImage(seed int64) *pullthroughtest.Image {
	return pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: seed, Platform: ocispec.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}})
}

// newMirror is a mirror of the registries that have the images, each of which has an upstream of its own.
func newMirror(t *testing.T) (w *world, ups map[string]*pullthroughtest.Upstream) {
	t.Helper()
	ups = map[string]*pullthroughtest.Upstream{}
	for ref, m := range mirrored {
		host, rest, _ := strings.Cut(ref, "/")
		repo, tag, _ := strings.Cut(rest, ":")
		ups[host] = pullthroughtest.New(t, pullthroughtest.Config{})
		ups[host].Push(repo, tag, m.img)
	}
	w = newWorld(t, pullthroughtest.Config{}, pullthrough.FillLazy)
	w.Proxy.Mirror = true
	w.Proxy.Rules = pullthrough.StaticRules{
		{Prefix: "docker-hub", UpstreamURL: "docker.io"}, {Prefix: "quay", UpstreamURL: "quay.io"}, {Prefix: "local", UpstreamURL: "http://localhost:1"},
	}
	w.Proxy.Endpoint = func(_ context.Context, _ pullthrough.Repo, rule pullthrough.Rule) (*url.URL, error) {
		return url.Parse(ups[strings.TrimPrefix(rule.UpstreamURL, "http://")].URL)
	}
	return w, ups
}

// hostDir is a directory of containerd with one file of docs/tools.md for the registry.
func hostDir(t *testing.T, name, host string) string {
	t.Helper()
	dir := t.TempDir()
	at := filepath.Join(dir, filepath.Base(filepath.Dir(name)))
	require.NoError(t, os.Mkdir(at, 0o700))
	file := testkit.ToolFiles(t, host)[name]
	require.NotEmpty(t, file)
	// Nothing goes on to the registry itself.
	require.NoError(t, os.WriteFile(filepath.Join(at, "hosts.toml"), []byte("server = \"http://"+host+"\"\n\n"+file), 0o600))
	return dir
}

// mirrorPull pulls by containerd's transfer service with that directory of hosts, and returns what came.
func mirrorPull(t *testing.T, hosts, from string) (got []string, err error) {
	t.Helper()
	blobs, err := local.NewStore(t.TempDir())
	require.NoError(t, err)
	file, err := bolt.Open(filepath.Join(t.TempDir(), "meta.db"), 0o600, &bolt.Options{NoSync: true})
	require.NoError(t, err)
	defer func() { assert.NoError(t, file.Close()) }()
	db := metadata.NewDB(file, blobs, nil)
	ctx := namespaces.WithNamespace(t.Context(), "conformance")
	require.NoError(t, db.Init(ctx))
	source, err := transferregistry.NewOCIRegistry(ctx, from, transferregistry.WithHostDir(hosts))
	require.NoError(t, err)
	service := transferlocal.NewTransferService(db.ContentStore(), metadata.NewImageStore(db), transferlocal.TransferConfig{MaxConcurrentDownloads: 3})
	if err := service.Transfer(ctx, source, image.NewStore(from)); err != nil {
		return nil, err
	}
	require.NoError(t, db.ContentStore().Walk(ctx, func(i content.Info) error {
		got = append(got, i.Digest.String())
		return rehash(ctx, db.ContentStore(), i)
	}))
	return got, nil
}

// objectsOf are the digests of all that an image has.
func objectsOf(img *pullthroughtest.Image) []string {
	all := []string{img.Digest.String()}
	for _, b := range img.Blobs() {
		all = append(all, b.Digest.String())
	}
	return all
}

// repositories are those that are stored.
func (w *world) repositories(t *testing.T) []string {
	t.Helper()
	w.Settled(t)
	repos, err := w.Proxy.Store.(pullthrough.RepoLister).Repos(t.Context(), "", "")
	require.NoError(t, err)
	slices.Sort(repos)
	return repos
}

// One _default/hosts.toml serves all registries that have a rule, cold, warm and with upstream gone.
func TestContainerdPullsByOneMirror(t *testing.T) {
	t.Parallel()
	w, ups := newMirror(t)
	hosts := hostDir(t, defaultHosts, w.host())
	for _, when := range []string{"cold", "warm", "upstream gone"} {
		for ref, m := range mirrored {
			got, err := mirrorPull(t, hosts, ref)
			require.NoError(t, err, "%s, %s", ref, when)
			assert.ElementsMatch(t, objectsOf(m.img), got, "%s, %s", ref, when)
		}
		assert.Equal(t, []string{"docker-hub/library/alpine", "local/library/alpine", "quay/library/alpine"}, w.repositories(t))
		for host, up := range ups {
			want := 3 // manifest, config, layer
			if when != "cold" {
				want = 0
			}
			assert.Equal(t, want, up.Count("GET *"), "%s, %s: %v", host, when, up.Log())
			up.Reset()
			if when == "warm" {
				up.Close()
			}
		}
	}
	_, err := mirrorPull(t, hosts, "ghcr.io/library/alpine:3.22")
	assert.ErrorContains(t, err, "not found")
}

// A registry that has no mirror mode is a mirror by the prefix in its path; ns means nothing there.
func TestContainerdPullsByAPath(t *testing.T) {
	t.Parallel()
	w, ups := newMirror(t)
	w.Proxy.Mirror = false
	hosts := hostDir(t, hubHosts, w.host())
	const ref = "docker.io/library/alpine:3.22"
	got, err := mirrorPull(t, hosts, ref)
	require.NoError(t, err)
	assert.ElementsMatch(t, objectsOf(mirrored[ref].img), got)
	assert.Equal(t, []string{"docker-hub/library/alpine"}, w.repositories(t))
	assert.Empty(t, ups["quay.io"].Log())
}

// BuildKit's resolver reads its file, and asks the mirror as containerd does.
func TestBuildKitPullsByAMirror(t *testing.T) {
	t.Parallel()
	w, ups := newMirror(t)
	config, err := buildkitconfig.Load(strings.NewReader(testkit.ToolFiles(t, w.host())[buildkitdFile]))
	require.NoError(t, err)
	require.Len(t, config.Registries, 3)
	r := docker.NewResolver(docker.ResolverOptions{Hosts: resolver.NewRegistryConfig(config.Registries)})
	for ref, m := range mirrored {
		host, _, _ := strings.Cut(ref, "/")
		if host == "localhost:1" {
			continue // the file has no mirror for it
		}
		name, desc, err := r.Resolve(t.Context(), ref)
		require.NoError(t, err, ref)
		assert.Equal(t, m.img.Digest, desc.Digest)
		fetcher, err := r.Fetcher(t.Context(), name)
		require.NoError(t, err)
		blobs, err := local.NewStore(t.TempDir())
		require.NoError(t, err)
		ctx := namespaces.WithNamespace(t.Context(), "conformance")
		require.NoError(t, images.Dispatch(ctx, images.Handlers(remotes.FetchHandler(blobs, fetcher), images.ChildrenHandler(blobs)), nil, desc))
		var got []string
		require.NoError(t, blobs.Walk(ctx, func(i content.Info) error {
			got = append(got, i.Digest.String())
			return nil
		}))
		assert.ElementsMatch(t, objectsOf(m.img), got)
		assert.Equal(t, 3, ups[host].Count("GET *"), "%v", ups[host].Log())
	}
	assert.Equal(t, []string{"docker-hub/library/alpine", "quay/library/alpine"}, w.repositories(t))
}
