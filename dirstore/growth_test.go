package dirstore_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
)

// growth is how many blobs the largest directory has; DIRSTORE_BENCH_BLOBS says
// another number, such as 1000000.
func growth(b *testing.B) int {
	b.Helper()
	given := os.Getenv("DIRSTORE_BENCH_BLOBS")
	if given == "" {
		return 100_000
	}
	n, err := strconv.Atoi(given)
	require.NoError(b, err)
	return n
}

// plant puts a file where the store would, without its care.
func plant(b *testing.B, content []byte, name string) {
	b.Helper()
	if os.WriteFile(name, content, 0o644) == nil {
		return
	}
	require.NoError(b, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(b, os.WriteFile(name, content, 0o644))
}

// BenchmarkBlobs is the same work in directories of more and more blobs. A put is
// one blob, with its syncs.
func BenchmarkBlobs(b *testing.B) {
	dir, planted, most := scratch(b), 0, growth(b)
	for n := 10; n <= most; n *= 10 {
		for ; planted < n; planted++ {
			content := []byte(strconv.Itoa(planted))
			d := digest.FromBytes(content)
			plant(b, content, dataFile(dir, d))
			plant(b, []byte(d), layerLink(dir, fmt.Sprint("hub/r", planted/1000), d))
		}
		b.Run(fmt.Sprintf("blobs=%d", n), func(b *testing.B) { atSize(b, dir, n) })
	}
}

func atSize(b *testing.B, dir string, n int) {
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			s, err := dirstore.Open(dir)
			require.NoError(b, err)
			require.NoError(b, s.Close())
		}
	})
	s := open(b, dir)
	b.Run("hit", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			at := i * 7919 % n
			blob, err := s.Blob(b.Context(), pullthrough.Repo{Name: fmt.Sprint("hub/r", at/1000)}, digest.FromString(strconv.Itoa(at)))
			require.NoError(b, err)
			require.NoError(b, blob.Body.Close())
		}
	})
	b.Run("put", func(b *testing.B) {
		for b.Loop() {
			putsDone++
			content := []byte(fmt.Sprint("put ", putsDone))
			require.NoError(b, s.PutBlob(b.Context(), repo, descriptor(content), bytes.NewReader(content)))
		}
	})
	b.Run("count", func(b *testing.B) { // of all there is: once is enough
		start := time.Now()
		require.NoError(b, s.Sweep(b.Context()))
		b.ReportMetric(time.Since(start).Seconds(), "s/sweep")
	})
}

// putsDone makes each put another blob.
var putsDone int

// BenchmarkTags is the same work in a repository of more and more tags.
func BenchmarkTags(b *testing.B) {
	dir, planted := scratch(b), 0
	s := open(b, dir)
	put(b, s, repo, manifestOf(image(1), "v"))
	put(b, s, repo, manifestOf(image(2), ""))
	for n := 1; n <= 100_000; n *= 10 {
		for ; planted < n; planted++ {
			plant(b, []byte(image(1).Digest), tagLink(dir, repo.Name, fmt.Sprint("v", planted)))
		}
		b.Run(fmt.Sprintf("tags=%d/hit", n), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				_, err := s.Manifest(b.Context(), repo, fmt.Sprint("v", i*7919%n))
				require.NoError(b, err)
			}
		})
		b.Run(fmt.Sprintf("tags=%d/move", n), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				put(b, s, repo, manifestOf(image(int64(1+i%2)), "v"))
			}
		})
	}
}
