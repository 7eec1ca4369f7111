// Package hosts_test runs the examples of this directory: Stores over what others have, and the routers of others.
package hosts_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/conformance/hosts/layoutstore"
	"github.com/ecr-pullthrough/pullthrough/internal/conformance/hosts/ociregistrystore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// The account and the Region that TestStore uses most.
const account, region = "111122223333", "us-east-1"

var stores = map[string]func(t *testing.T) pullthrough.Store{
	"ociregistry": func(*testing.T) pullthrough.Store {
		return &ociregistrystore.Store{Registry: ocimem.New(), Account: account, Region: region}
	},
	"ociregistry whose tags do not move": func(*testing.T) pullthrough.Store {
		return &ociregistrystore.Store{Registry: ocimem.NewWithConfig(&ocimem.Config{ImmutableTags: true}), Account: account, Region: region}
	},
	"layouts": func(t *testing.T) pullthrough.Store { return &layoutstore.Store{Dir: t.TempDir()} },
}

func TestStores(t *testing.T) {
	for name, open := range stores {
		t.Run(name, func(t *testing.T) { pullthroughtest.TestStore(t, open) })
	}
}

func identify(*http.Request) (pullthrough.Identity, error) {
	return pullthrough.Identity{Account: account, Region: region}, nil
}

// pull pulls a whole image by crane, and verifies it.
func pull(t *testing.T, ref string) {
	t.Helper()
	img, err := crane.Pull(ref)
	require.NoError(t, err)
	require.NoError(t, validate.Image(img))
}

func TestPullsIntoTheStores(t *testing.T) {
	for name, open := range stores {
		for _, fill := range []pullthrough.FillMode{pullthrough.FillLazy, pullthrough.FillEager} {
			if strings.HasPrefix(name, "ociregistry") && fill != pullthrough.FillEager {
				continue // it wants layers before manifests
			}
			t.Run(name, func(t *testing.T) {
				w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(p *pullthrough.Proxy) {
					p.Store, p.Fill, p.Identify = open(t), fill, identify
				})
				img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 3, LayerSize: 2 << 20})
				w.Up.Push("team/app", "v1", img)
				server := httptest.NewServer(w.Proxy)
				defer server.Close()
				ref := strings.TrimPrefix(server.URL, "http://") + "/hub/team/app:v1"
				pull(t, ref)
				w.Settled(t)
				assert.Equal(t, 1+len(img.Blobs()), w.Up.Count("GET /v2/* 200"))
				w.Up.Reset()
				pull(t, ref)
				assert.Empty(t, w.Up.Log())
			})
		}
	}
}

// What a Store has written can be read by what it was written for, and by the next process.
func TestALayoutIsOneThatOthersRead(t *testing.T) {
	dir := t.TempDir()
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store = &layoutstore.Store{Dir: dir} })
	w.Up.Push("a", "1", img)
	w.Pull(t, "a", "1", img)
	index, err := layout.ImageIndexFromPath(dir + "/account-/region-/hub/a/+")
	require.NoError(t, err)
	require.NoError(t, validate.Index(index))
	assert.Equal(t, 1+len(img.Blobs()), len(w.Up.Log()))

	next := &pullthrough.Proxy{Store: &layoutstore.Store{Dir: dir}, Rules: pullthrough.StaticRules{}}
	m, err := next.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
	require.NoError(t, err)
	assert.Equal(t, img.Digest, m.Descriptor.Digest)
	assert.NoError(t, next.Shutdown(context.Background()))
}

func TestTheStoreOverAnOCIRegistryTakes110Lines(t *testing.T) {
	lines := testkit.CodeLines(t, "ociregistrystore/store.go", nil)
	assert.Greater(t, lines, 80, "this counts something else")
	assert.LessOrEqual(t, lines, 110)
}
