package conformance_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/diststore"
)

var benchDrivers = []struct {
	name string
	open func(b *testing.B) storagedriver.StorageDriver
}{
	{"filesystem", func(b *testing.B) storagedriver.StorageDriver {
		return filesystem.New(filesystem.DriverParameters{RootDirectory: scratch(b), MaxThreads: 100})
	}},
	{"s3", func(b *testing.B) storagedriver.StorageDriver { return open(b, startServer(b).bucket(b, "bench")) }},
}

var benchSizes = []int{1 << 20, 256 << 20}

// newDigest is of nothing: a store believes its proxy.
func newDigest() digest.Digest {
	var sum [32]byte
	_, _ = rand.Read(sum[:])
	return digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(sum[:]))
}

func BenchmarkPut(b *testing.B) {
	for _, size := range benchSizes {
		content := make([]byte, size)
		_, _ = rand.Read(content)
		b.Run(fmt.Sprintf("file/%dMiB", size>>20), func(b *testing.B) {
			name := filepath.Join(scratch(b), "data")
			b.SetBytes(int64(size))
			for b.Loop() {
				require.NoError(b, writeFile(name, content))
			}
		})
		for _, d := range benchDrivers {
			b.Run(fmt.Sprintf("%s/%dMiB", d.name, size>>20), func(b *testing.B) {
				driver := d.open(b)
				s := diststore.New(driver)
				b.SetBytes(int64(size))
				for b.Loop() {
					desc := ocispec.Descriptor{Digest: newDigest(), Size: int64(size)}
					require.NoError(b, s.PutBlob(b.Context(), repo, desc, bytes.NewReader(content)))
					b.StopTimer()
					require.NoError(b, driver.Delete(b.Context(), "/docker/registry/v2/blobs"))
					b.StartTimer()
				}
			})
		}
	}
}

// writeFile is a file's copy that a power failure does not undo.
func writeFile(name string, content []byte) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if _, err = io.Copy(struct{ io.Writer }{f}, bytes.NewReader(content)); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	return err
}

func BenchmarkGet(b *testing.B) {
	for _, size := range benchSizes {
		content := make([]byte, size)
		_, _ = rand.Read(content)
		b.Run(fmt.Sprintf("file/%dMiB", size>>20), func(b *testing.B) {
			name := filepath.Join(scratch(b), "data")
			require.NoError(b, writeFile(name, content))
			b.SetBytes(int64(size))
			for b.Loop() {
				f, err := os.Open(name)
				require.NoError(b, err)
				drain(b, f, size)
			}
		})
		for _, d := range benchDrivers {
			b.Run(fmt.Sprintf("%s/%dMiB", d.name, size>>20), func(b *testing.B) {
				driver := d.open(b)
				desc := ocispec.Descriptor{Digest: newDigest(), Size: int64(size)}
				require.NoError(b, diststore.New(driver).PutBlob(b.Context(), repo, desc, bytes.NewReader(content)))
				b.SetBytes(int64(size))
				for b.Loop() {
					blob, err := diststore.New(driver).Blob(b.Context(), repo, desc.Digest) // with nothing in memory
					require.NoError(b, err)
					drain(b, blob.Body, size)
				}
			})
		}
	}
}

func drain(b *testing.B, r io.ReadCloser, size int) {
	b.Helper()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, 256<<10))
	require.NoError(b, err)
	require.Equal(b, int64(size), n)
	require.NoError(b, r.Close())
}
