package conformance_test

import (
	"context"
	"encoding/json"
	"io"
	"path"
	"strings"
	"testing"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// someImages are of each kind that a registry reads. Two repositories share one
// of them, and large is a layer of several parts.
func someImages(large int64) []tagged {
	amd, arm := image(1, 3, 100<<10, false), image(2, 3, 100<<10, false)
	both := pullthroughtest.NewIndex(amd, arm)
	docker, big := image(3, 2, 300<<10, true), image(4, 1, large, false)
	return []tagged{
		{"library/alpine", "latest", both}, {"library/alpine", "amd64", amd}, {"library/busybox", "latest", both},
		{"library/nginx", "1.27", docker}, {"library/big", "v1", big}, {"team/app/web", "v1", image(5, 20, 10<<10, false)},
	}
}

func image(seed int64, layers int, size int64, docker bool) *pullthroughtest.Image {
	return pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: seed, Layers: layers, LayerSize: size, Docker: docker})
}

// newUpstream is a registry with the images.
func newUpstream(t testing.TB, images []tagged) *pullthroughtest.Upstream {
	t.Helper()
	up := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	for _, img := range images {
		up.Push(img.repo, img.tag, img.Image)
	}
	return up
}

// requireSound reads every object: content has its digest, links name what is
// there, and nothing is there that does not belong. It returns how many.
func requireSound(t testing.TB, driver storagedriver.StorageDriver) (objects int) {
	t.Helper()
	all := make(map[string]string)
	require.NoError(t, driver.Walk(t.Context(), "/", func(info storagedriver.FileInfo) error {
		if info.IsDir() {
			return nil
		}
		content, err := contentOf(t.Context(), driver, info.Path())
		if int64(len(content)) != info.Size() {
			t.Errorf("%s has %d bytes, listed are %d", info.Path(), len(content), info.Size())
		}
		all[info.Path()] = content
		return err
	}))
	for name, content := range all {
		switch path.Base(name) {
		case "data":
			hex := path.Base(path.Dir(name))
			algorithm := digest.Algorithm(path.Base(path.Dir(path.Dir(path.Dir(name)))))
			assert.Equal(t, hex, algorithm.FromString(content).Encoded(), name)
		case "link":
			d := digest.Digest(content)
			if assert.NoError(t, d.Validate(), name) {
				assert.Contains(t, all, "/docker/registry/v2/blobs/"+d.Algorithm().String()+"/"+d.Encoded()[:2]+"/"+d.Encoded()+"/data", name)
			}
			if dir := path.Dir(name); strings.Contains(name, "/revisions/") {
				assert.Contains(t, all, sidecar(dir, d))
			} else if path.Base(dir) == "current" {
				assert.Contains(t, all, sidecar(dir, d))
			}
		case "size": // of a directory that was copied
			assert.Regexp(t, "^[0-9]+$", content, name)
		case "_pullthrough":
			assert.Empty(t, content, name)
			assert.Equal(t, "_layers", path.Base(path.Dir(name)))
		default:
			assert.Equal(t, ".json", path.Ext(name), name)
			assert.True(t, json.Valid([]byte(content)), name)
		}
	}
	return len(all)
}

func sidecar(dir string, d digest.Digest) string {
	return dir + "/" + d.Algorithm().String() + "-" + d.Encoded() + ".json"
}

func contentOf(ctx context.Context, driver storagedriver.StorageDriver, name string) (string, error) {
	r, err := driver.Reader(ctx, name, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = r.Close() }()
	content, err := io.ReadAll(r)
	return string(content), err
}
