package dirstore_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

// BenchmarkCopy puts and gets a blob, in a new Store each time, by turns with the
// plain copy of a file. The figures are medians: s is the time of one, x-copy how
// many times as long it takes as the copy, and x-sync as the copy that is synced, as
// a put here is. A get is read to its end. TMPDIR says where.
func BenchmarkCopy(b *testing.B) {
	for _, size := range []int64{1 << 20, testkit.Most(int64(256 << 20))} {
		b.Run(fmt.Sprintf("%dMiB", size>>20), func(b *testing.B) {
			c := newCopying(b, size)
			rounds := 31
			if size > 1<<20 {
				rounds = 7
			}
			for name, run := range map[string]func() (put, get time.Duration){
				"dirstore": func() (put, get time.Duration) { return c.dirstore(b) },
				"memstore": func() (put, get time.Duration) { return c.store(b, memstore.New()) },
			} {
				b.Run(name, func(b *testing.B) { c.compare(b, rounds, run) })
			}
		})
	}
}

// copying is a file that is copied in several ways.
type copying struct {
	dir, source string
	desc        ocispec.Descriptor
}

func newCopying(b *testing.B, size int64) *copying {
	dir := b.TempDir()
	c := &copying{dir: dir, source: filepath.Join(dir, "source"), desc: ocispec.Descriptor{Size: size}}
	content := noise(1, int(size))
	c.desc.Digest = digest.FromBytes(content)
	require.NoError(b, os.WriteFile(c.source, content, 0o644))
	return c
}

// compare runs ours and the plain copies by turns.
func (c *copying) compare(b *testing.B, rounds int, ours func() (put, get time.Duration)) {
	figures := make(map[string][]float64)
	note := func(name string, v float64) { figures[name] = append(figures[name], v) }
	for range rounds {
		put, get := ours()
		plain, read := c.plain(b, false)
		synced, _ := c.plain(b, true)
		note("s/put", put.Seconds())
		note("put-x-copy", put.Seconds()/plain.Seconds())
		note("put-x-sync", put.Seconds()/synced.Seconds())
		note("s/get", get.Seconds())
		note("get-x-copy", get.Seconds()/read.Seconds())
	}
	for b.Loop() { // what is measured has been measured
	}
	for name, all := range figures {
		slices.Sort(all)
		b.ReportMetric(all[len(all)/2], name)
	}
	b.ReportMetric(0, "ns/op")
}

func (c *copying) dirstore(b *testing.B) (put, get time.Duration) {
	dir := filepath.Join(c.dir, "store")
	s, err := dirstore.Open(dir)
	require.NoError(b, err)
	put, get = c.store(b, s)
	require.NoError(b, s.Close())
	require.NoError(b, os.RemoveAll(dir))
	return put, get
}

func (c *copying) store(b *testing.B, s pullthrough.Store) (put, get time.Duration) {
	source, err := os.Open(c.source)
	require.NoError(b, err)
	start := time.Now()
	require.NoError(b, s.PutBlob(b.Context(), repo, c.desc, source))
	put = time.Since(start)
	require.NoError(b, source.Close())
	start = time.Now()
	blob, err := s.Blob(b.Context(), repo, c.desc.Digest)
	require.NoError(b, err)
	c.read(b, blob.Body)
	return put, time.Since(start)
}

// plain copies the source, and reads the copy.
func (c *copying) plain(b *testing.B, sync bool) (put, get time.Duration) {
	name := filepath.Join(c.dir, "copy")
	source, err := os.Open(c.source)
	require.NoError(b, err)
	start := time.Now()
	to, err := os.Create(name)
	require.NoError(b, err)
	_, err = io.Copy(to, source)
	if sync {
		err = errors.Join(err, to.Sync())
	}
	require.NoError(b, errors.Join(err, to.Close()))
	put = time.Since(start)
	require.NoError(b, source.Close())
	start = time.Now()
	from, err := os.Open(name)
	require.NoError(b, err)
	c.read(b, from)
	get = time.Since(start)
	require.NoError(b, os.Remove(name))
	return put, get
}

// read reads with one buffer, whatever else the reader can do.
func (c *copying) read(b *testing.B, r io.ReadCloser) {
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, 256<<10))
	require.NoError(b, errors.Join(err, r.Close()))
	require.Equal(b, c.desc.Size, n)
}
