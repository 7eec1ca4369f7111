package dirstore_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/dirstore"
)

func BenchmarkManifestHit(b *testing.B) {
	s := open(b, b.TempDir())
	img := image(1)
	put(b, s, repo, manifestOf(img, "v1"))
	for name, ref := range map[string]string{"tag": "v1", "digest": img.Digest.String()} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, err := s.Manifest(b.Context(), repo, ref)
				require.NoError(b, err)
			}
		})
	}
}

func BenchmarkBlobHit(b *testing.B) {
	s := open(b, b.TempDir())
	d := putBlob(b, s, repo, noise(1, 1<<20))
	b.ReportAllocs()
	for b.Loop() {
		blob, err := s.Blob(b.Context(), repo, d)
		require.NoError(b, err)
		require.NoError(b, blob.Body.Close())
	}
}

func BenchmarkPutBlob(b *testing.B) {
	s := open(b, b.TempDir())
	b.SetBytes(1 << 20)
	content := noise(1, 1<<20)
	for i := 0; b.Loop(); i++ {
		content[0], content[1], content[2] = byte(i), byte(i>>8), byte(i>>16)
		desc := descriptor(content)
		require.NoError(b, s.PutBlob(b.Context(), repo, desc, bytes.NewReader(content)))
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		s, err := dirstore.Open(dir)
		require.NoError(b, err)
		require.NoError(b, s.Close())
	}
}
