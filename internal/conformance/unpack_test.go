package conformance_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// unpackFiles are in the first layer of each image that is unpacked.
var unpackFiles = fstest.MapFS{
	"etc":      {Mode: fs.ModeDir | 0o755},
	"etc/name": {Data: []byte("unpacked"), Mode: 0o640},
	"etc/link": {Data: []byte("name"), Mode: fs.ModeSymlink | 0o777},
}

// unpackImages are images of pullthroughtest in every form.
func unpackImages() map[string]*pullthroughtest.Image {
	images := map[string]*pullthroughtest.Image{}
	for name, o := range map[string]pullthroughtest.ImageOptions{
		"gzip":         {},
		"zstd":         {Compression: "zstd"},
		"uncompressed": {Compression: "none"},
		"docker":       {Docker: true},
		"variant":      {Platform: ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}},
	} {
		o.Files, o.Layers, o.LayerSize, o.Entrypoint = unpackFiles, 3, 200_001, []string{"/bin/true"}
		images[name] = pullthroughtest.NewImage(o)
	}
	return images
}

// TestImagesAreValid is `crane validate` for the images that tests make, pulled through fakeecr.
// It reads gzip only.
func TestImagesAreValid(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	f := startFakeECR(t, up.URL)
	images := unpackImages()
	delete(images, "zstd")
	delete(images, "uncompressed")
	images["default"] = pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	images["index"] = pullthroughtest.NewIndex(images["gzip"], images["variant"])
	images["docker list"] = pullthroughtest.NewIndex(images["docker"])
	for title, img := range images {
		t.Run(title, func(t *testing.T) {
			tag := strings.ReplaceAll(title, " ", "-")
			up.Push("app", tag, img)
			craneValidate(t, f.ref(&image{repo: "app", tag: tag}), &image{})
		})
	}
	assertOnce(t, up)
}

// An attestation's layer is no archive, which `crane validate` takes for an error. So the images of the
// index are validated one by one.
func TestHelloIsValid(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	up.Push("hello", "v1", pullthroughtest.NewHello())
	f := startFakeECR(t, up.URL)
	ref, err := name.ParseReference(f.ref(&image{repo: "hello", tag: "v1"}).String())
	require.NoError(t, err)
	index, err := remote.Index(ref, remote.WithTransport(newTransport(t)))
	require.NoError(t, err)
	manifest, err := index.IndexManifest()
	require.NoError(t, err)
	require.Len(t, manifest.Manifests, 4)
	for i, d := range manifest.Manifests {
		img, err := index.Image(d.Digest)
		require.NoError(t, err)
		if i >= 2 {
			assert.Equal(t, "unknown/unknown", d.Platform.String())
			continue
		}
		assert.NoError(t, validate.Image(img))

		path := filepath.Join(t.TempDir(), "image.tar") // as docker load reads it
		require.NoError(t, tarball.WriteToFile(path, ref, img))
		loaded, err := tarball.ImageFromPath(path, nil)
		require.NoError(t, err)
		assert.NoError(t, validate.Image(loaded))
	}
	assertOnce(t, up)
}

// skopeo copies to an OCI layout, and umoci unpacks that. umoci verifies what is in the layers.
func TestSkopeoAndUmociUnpack(t *testing.T) {
	requireSkopeo(t)
	requireTool(t, "umoci")
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	f := startFakeECR(t, up.URL)
	images := unpackImages()
	delete(images, "zstd") // umoci of Debian does not know it; containerd's tests unpack it
	for title, img := range images {
		t.Run(title, func(t *testing.T) {
			up.Push("app", title, img)
			root, config := unpackByUmoci(t, f.ref(&image{repo: "app", tag: title}), "--all")
			assert.Equal(t, []string{"/bin/true"}, config.Process.Args)
			content, err := os.ReadFile(filepath.Join(root, "etc/link"))
			require.NoError(t, err)
			assert.Equal(t, "unpacked", string(content))
			assert.FileExists(t, filepath.Join(root, "layer-1"))
			assert.FileExists(t, filepath.Join(root, "layer-2"))
		})
	}
	t.Run("hello", func(t *testing.T) {
		up.Push("hello", "v1", pullthroughtest.NewHello())
		root, config := unpackByUmoci(t, f.ref(&image{repo: "hello", tag: "v1"}), "--override-os=linux")
		require.Equal(t, []string{"/hello"}, config.Process.Args)
		if runtime.GOOS != "linux" {
			return
		}
		out, err := exec.CommandContext(t.Context(), filepath.Join(root, "hello")).Output()
		require.NoError(t, err)
		assert.Equal(t, pullthroughtest.HelloOutput, string(out))
	})
	assertOnce(t, up)
}

// assertOnce asserts that upstream was asked for nothing twice.
func assertOnce(t testing.TB, up *pullthroughtest.Upstream) {
	t.Helper()
	seen := map[string]bool{}
	for _, line := range up.Log() {
		assert.False(t, seen[line], "asked again: %s", line)
		seen[line] = true
	}
}

// runtimeConfig is what umoci writes for runc.
type runtimeConfig struct {
	Process struct {
		Args []string `json:"args"`
	} `json:"process"`
}

func unpackByUmoci(t testing.TB, from ref, flag string) (root string, config runtimeConfig) {
	t.Helper()
	dir := t.TempDir()
	layout, bundle := filepath.Join(dir, "layout"), filepath.Join(dir, "bundle")
	skopeo(t, "copy", flag, "--src-tls-verify=false", "docker://"+from.String(), "oci:"+layout+":v1")
	out, err := exec.CommandContext(t.Context(), "umoci", "unpack", "--rootless", "--image", layout+":v1", bundle).CombinedOutput()
	require.NoError(t, err, string(out))
	raw, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(raw, &config))
	return filepath.Join(bundle, "rootfs"), config
}
