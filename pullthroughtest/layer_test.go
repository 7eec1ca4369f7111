package pullthroughtest_test

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// diffIDs are what the config of an image says of its layers.
func diffIDs(t testing.TB, img *pullthroughtest.Image) []digest.Digest {
	t.Helper()
	var config ocispec.Image
	require.NoError(t, json.NewDecoder(img.Config.Open()).Decode(&config))
	require.Len(t, config.RootFS.DiffIDs, len(img.Layers))
	return config.RootFS.DiffIDs
}

// unpacked returns a layer's archive. That of zstd is read by the conformance tests, since the standard library cannot.
func unpacked(t testing.TB, layer *pullthroughtest.Blob) []byte {
	t.Helper()
	var r io.Reader = layer.Open()
	if strings.HasSuffix(layer.MediaType, "gzip") {
		z, err := gzip.NewReader(r)
		require.NoError(t, err, layer.Size)
		z.Multistream(false) // that nothing follows is seen below
		r = z
	}
	content, err := io.ReadAll(r)
	require.NoError(t, err, layer.Size)
	return content
}

// files are the headers and the content of an archive.
func files(t testing.TB, archive []byte) (headers []*tar.Header, contents []string) {
	t.Helper()
	for r := tar.NewReader(strings.NewReader(string(archive))); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return headers, contents
		}
		require.NoError(t, err)
		content, err := io.ReadAll(r)
		require.NoError(t, err)
		headers, contents = append(headers, header), append(contents, string(content))
	}
}

func TestLayersOfASizeAreArchivesOfExactlyThatSize(t *testing.T) {
	var sizes []int64
	for size := range int64(240) {
		sizes = append(sizes, size+1, 1500+size)
	}
	for _, edge := range []int64{1 << 16, 2 << 16, 1 << 20} {
		for near := edge - 400; near < edge+400; near += 67 {
			sizes = append(sizes, near)
		}
	}
	for compression, most := range map[string]struct{ noise, overhead int64 }{"gzip": {200, 240}, "none": {1535, 2048 + 511}} {
		t.Run(compression, func(t *testing.T) {
			t.Parallel()
			for _, size := range sizes {
				img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: size, Compression: compression})
				layer := img.Layers[0]
				require.Equal(t, size, layer.Size)
				require.Equal(t, size, int64(len(content(t, layer))))
				if diffIDs(t, img)[0] == layer.Digest && compression != "none" || size <= 1535 && compression == "none" {
					require.LessOrEqual(t, size, most.noise, "there is room for an archive")
					continue
				}
				archive := unpacked(t, layer)
				require.Equal(t, digest.FromBytes(archive), diffIDs(t, img)[0], size)
				headers, contents := files(t, archive)
				require.Len(t, headers, 1)
				require.Equal(t, "layer-0", headers[0].Name)
				require.GreaterOrEqual(t, int64(len(contents[0])), size-most.overhead-size/0xffff*5, "it does not fill the size")
			}
		})
	}
}

func TestLayersOfFiles(t *testing.T) {
	want := fstest.MapFS{
		"bin":                         {Mode: fs.ModeDir | 0o755},
		"bin/tool":                    {Data: []byte("#!/bin/sh\n"), Mode: 0o755},
		"bin/link":                    {Data: []byte("tool"), Mode: fs.ModeSymlink | 0o777},
		"etc/empty":                   {Mode: 0o600},
		"large":                       {Data: []byte(strings.Repeat("0123456789abcdef", 20_000)), Mode: 0o644},
		strings.Repeat("long", 60):    {Data: []byte("x"), Mode: 0o644},
		"päth/" + "with é and space ": {Data: []byte{0, 0xff}, Mode: 0o640},
	}
	names := []string{"bin/", "bin/link", "bin/tool", "etc/", "etc/empty", "large", strings.Repeat("long", 60), "päth/", "päth/with é and space "}
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, want))
	require.NoError(t, fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		info, statErr := fs.Lstat(want, name)
		if name == "." || d.Type() == fs.ModeSymlink || statErr != nil {
			return errors.Join(err, statErr)
		}
		return errors.Join(err, os.Chmod(filepath.Join(dir, name), info.Mode().Perm()))
	}))
	for compression := range map[string]bool{"gzip": true, "none": true} {
		t.Run(compression, func(t *testing.T) {
			o := pullthroughtest.ImageOptions{Files: want, Layers: 2, LayerSize: 5000, Compression: compression}
			img := pullthroughtest.NewImage(o)
			require.Len(t, img.Layers, 2)
			assert.EqualValues(t, 5000, img.Layers[1].Size)
			archive := unpacked(t, img.Layers[0])
			assert.Equal(t, diffIDs(t, img)[0], digest.FromBytes(archive))
			headers, contents := files(t, archive)
			var got []string
			for i, h := range headers {
				got = append(got, h.Name)
				file, err := fs.Lstat(want, strings.TrimSuffix(h.Name, "/"))
				require.NoError(t, err)
				assert.Equal(t, file.Mode().Type(), h.FileInfo().Mode().Type(), h.Name)
				assert.Equal(t, file.Mode().Perm(), h.FileInfo().Mode().Perm(), h.Name)
				assert.True(t, h.ModTime.Unix() == 0 && h.Uid == 0 && h.Gid == 0 && h.Uname == "", h.Name)
				if h.Typeflag == tar.TypeReg {
					assert.Equal(t, string(want[h.Name].Data), contents[i], h.Name)
				}
			}
			assert.Equal(t, names, got)
			assert.Equal(t, "tool", headers[1].Linkname)

			o.Files = os.DirFS(dir)
			assert.Equal(t, img.Layers[0].Digest, pullthroughtest.NewImage(o).Layers[0].Digest, "the same files from a disk")
		})
	}
}

func TestCompressionIsInTheMediaType(t *testing.T) {
	for _, c := range []struct{ compression, oci, docker string }{
		{"", ocispec.MediaTypeImageLayerGzip, "application/vnd.docker.image.rootfs.diff.tar.gzip"},
		{"gzip", ocispec.MediaTypeImageLayerGzip, "application/vnd.docker.image.rootfs.diff.tar.gzip"},
		{"zstd", ocispec.MediaTypeImageLayerZstd, "application/vnd.docker.image.rootfs.diff.tar.zstd"},
		{"none", ocispec.MediaTypeImageLayer, "application/vnd.docker.image.rootfs.diff.tar"},
	} {
		o := pullthroughtest.ImageOptions{Compression: c.compression, Files: fstest.MapFS{"a": {}}, Layers: 2}
		for _, layer := range pullthroughtest.NewImage(o).Layers {
			assert.Equal(t, c.oci, layer.MediaType)
		}
		o.Docker = true
		for _, layer := range pullthroughtest.NewImage(o).Layers {
			assert.Equal(t, c.docker, layer.MediaType)
		}
	}
}

func TestNewImagePanicsOnWhatItCannotMake(t *testing.T) {
	for want, o := range map[string]pullthroughtest.ImageOptions{
		`unknown Compression "lz4"`:  {Compression: "lz4"},
		"read Files: open nowhere: ": {Files: brokenFS{}},
	} {
		func() {
			defer func() { assert.Contains(t, fmt.Sprint(recover()), want) }()
			pullthroughtest.NewImage(o)
		}()
	}
}

// brokenFS cannot be read.
type brokenFS struct{}

func (brokenFS) Open(string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: "nowhere", Err: fs.ErrPermission}
}
