package dirstore_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

// growth is how many blobs the largest directory has; DIRSTORE_BENCH_BLOBS says
// another number, such as 1000000.
func growth(b *testing.B) int {
	b.Helper()
	given := os.Getenv("DIRSTORE_BENCH_BLOBS")
	if given == "" {
		return testkit.Most(100_000)
	}
	n, err := strconv.Atoi(given)
	require.NoError(b, err)
	return n
}

// plant puts a file where the store would, without its care.
func plant(t testing.TB, content []byte, name string) {
	t.Helper()
	if os.WriteFile(name, content, 0o644) == nil {
		return
	}
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(t, os.WriteFile(name, content, 0o644))
}

// BenchmarkBlobs is the same work in directories of more and more blobs. A put is
// one blob, with its syncs.
func BenchmarkBlobs(b *testing.B) {
	dir, planted, most := scratch(b), 0, growth(b)
	for n := 10; n <= most; n *= 10 {
		for ; planted < n; planted++ {
			content := []byte(strconv.Itoa(planted))
			d := digest.FromBytes(content)
			repo := fmt.Sprint("hub/r", planted/1000)
			plant(b, content, dataFile(dir, d))
			plant(b, []byte(d), layerLink(dir, repo, d))
			plant(b, []byte(strconv.Itoa(len(content))), sizeNote(dir, repo, d))
		}
		_ = exec.Command("sync").Run() // the puts must not wait for what was planted
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
	hit := func(i int) {
		at := i % 1000 * 7919 % n
		blob, err := s.Blob(b.Context(), pullthrough.Repo{Name: fmt.Sprint("hub/r", at/1000)}, digest.FromString(strconv.Itoa(at)))
		require.NoError(b, err)
		require.NoError(b, blob.Body.Close())
	}
	for i := range 1000 { // what the file system does the first time is not ours
		hit(i)
	}
	b.Run("hit", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			hit(i)
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
	for n := 1; n <= testkit.Most(100_000); n *= 10 {
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

// TestTheStepsOfTheDiskDoNotGrow with the blobs of the directory and the tags of the
// repository.
func TestTheStepsOfTheDiskDoNotGrow(t *testing.T) {
	few, many := stepsBeside(t, 10), stepsBeside(t, 3000)
	for name, steps := range few {
		assert.Equal(t, steps, many[name], name)
	}
}

// stepsBeside counts the steps that each kind of work takes beside n blobs and n tags.
func stepsBeside(t *testing.T, n int) map[string]map[string]int {
	t.Helper()
	dir := scratch(t)
	s := open(t, dir)
	d := putBlob(t, s, repo, []byte("there"))
	put(t, s, repo, manifestOf(image(1), "v"))
	put(t, s, repo, manifestOf(image(2), ""))
	require.NoError(t, s.Close())
	for i := range 256 { // few blobs have not all of these yet, and a put makes what is missing
		require.NoError(t, os.MkdirAll(filepath.Join(dir, blobs, "sha256", fmt.Sprintf("%02x", i)), 0o755))
	}
	for i := range n {
		content := []byte(strconv.Itoa(i))
		plant(t, content, dataFile(dir, digest.FromBytes(content)))
		plant(t, []byte(digest.FromBytes(content)), layerLink(dir, repo.Name, digest.FromBytes(content)))
		plant(t, []byte(image(1).Digest), tagLink(dir, repo.Name, fmt.Sprint("v", i)))
	}

	count := make(map[string]int)
	all := make(map[string]map[string]int)
	note := func(name string) {
		all[name], count = count, make(map[string]int)
	}
	s, err := dirstore.OpenProbed(dir, func(op, _ string) error { count[op]++; return nil })
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	note("open")
	for _, one := range []struct {
		name string
		work func()
	}{
		{"hit of a blob", func() {
			blob, err := s.Blob(t.Context(), repo, d)
			require.NoError(t, err)
			require.NoError(t, blob.Body.Close())
		}},
		{"put of a blob", func() { putBlob(t, s, repo, []byte("new")) }},
		{"hit by tag", func() { get(t, s, repo, "v") }},
		{"hit by tag, again", func() { get(t, s, repo, "v") }},
		{"put of a tag that moves", func() { put(t, s, repo, manifestOf(image(2), "v")) }},
		{"put of a manifest with a tag", func() { put(t, s, repo, manifestOf(image(3), "new")) }},
	} {
		one.work()
		note(one.name)
	}
	return all
}
