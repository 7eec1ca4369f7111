package pullthroughtest_test

import (
	"debug/elf"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// emulators run the programs of other architectures, where they are installed.
var emulators = map[string]string{"amd64": "qemu-x86_64", "arm64": "qemu-aarch64"}

func TestHelloRuns(t *testing.T) {
	for i, architecture := range []string{"amd64", "arm64"} {
		t.Run(architecture, func(t *testing.T) {
			img := pullthroughtest.NewHello().Children[i]
			var config ocispec.Image
			require.NoError(t, json.NewDecoder(img.Config.Open()).Decode(&config))
			assert.Equal(t, ocispec.Platform{OS: "linux", Architecture: architecture}, config.Platform)
			assert.Equal(t, []string{"/hello"}, config.Config.Entrypoint)

			root := t.TempDir()
			headers, contents := files(t, unpacked(t, img.Layers[0]))
			require.Len(t, headers, 1)
			program := filepath.Join(root, headers[0].Name)
			require.NoError(t, os.WriteFile(program, []byte(contents[0]), headers[0].FileInfo().Mode()))
			file, err := elf.Open(program)
			require.NoError(t, err)
			assert.Equal(t, elf.ET_EXEC, file.Type)
			require.NoError(t, file.Close())

			command := []string{program}
			if runtime.GOOS != "linux" || runtime.GOARCH != architecture {
				emulator, err := exec.LookPath(emulators[architecture])
				if err != nil {
					t.Skip("not this machine's")
				}
				command = []string{emulator, program}
			}
			out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput()
			require.NoError(t, err, string(out))
			assert.Equal(t, pullthroughtest.HelloOutput, string(out))
		})
	}
}

// An image has the same digest everywhere and for ever: tests may name it, and what they have recorded stays valid.
func TestImagesHaveTheSameDigestsForEver(t *testing.T) {
	for name, c := range map[string]struct {
		img  *pullthroughtest.Image
		want string
	}{
		"hello":        {pullthroughtest.NewHello(), "sha256:45ea7dd317c7266f7228f38a24a9745d439008d3a9cc55cf5f20c18a37524a5d"},
		"gzip":         {pullthroughtest.NewImage(pullthroughtest.ImageOptions{}), "sha256:46b69f06068ce4829e371cdc5c7a53490eff9e58e0462ee18948a064a3842714"},
		"zstd":         {pullthroughtest.NewImage(pullthroughtest.ImageOptions{Compression: "zstd"}), "sha256:3a19dc7ab76ce0de611b071e5c2837f5862edb64628e9c91eb8f59295a1a01c8"},
		"uncompressed": {pullthroughtest.NewImage(pullthroughtest.ImageOptions{Compression: "none", LayerSize: 4096}), "sha256:baa9b63af1e90af10a0fb46954110ba28bb276404090fc04fce2ca48d2ca5b80"},
	} {
		assert.Equal(t, c.want, c.img.Digest.String(), name)
	}
}

func TestAttestationsAreBuildKits(t *testing.T) {
	hello := pullthroughtest.NewHello()
	var index ocispec.Index
	require.NoError(t, json.Unmarshal(hello.Content, &index))
	require.Len(t, index.Manifests, 4)
	for i, d := range index.Manifests[2:] {
		img, attestation := hello.Children[i], hello.Children[2+i]
		assert.Equal(t, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageManifest, Digest: attestation.Digest, Size: int64(len(attestation.Content)),
			Platform: &ocispec.Platform{OS: "unknown", Architecture: "unknown"},
			Annotations: map[string]string{
				"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": img.Digest.String(),
			},
		}, d)
		assert.Equal(t, attestation.Layers[0].Digest, diffIDs(t, attestation)[0])
		var manifest ocispec.Manifest
		require.NoError(t, json.Unmarshal(attestation.Content, &manifest))
		assert.Equal(t, "application/vnd.in-toto+json", manifest.Layers[0].MediaType)
		assert.Equal(t, "https://slsa.dev/provenance/v0.2", manifest.Layers[0].Annotations["in-toto.io/predicate-type"])
		assert.Contains(t, string(content(t, attestation.Layers[0])), img.Digest.Encoded())
		assert.Nil(t, manifest.Subject)
	}
}
