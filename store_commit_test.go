package pullthrough_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// slowStore takes its time to store a blob: to commit what was staged, as a slow disk
// does, or to read it, as a bucket behind a thin line does.
type slowStore struct {
	*memstore.Store
	dir    string
	commit time.Duration // of a Stage
	read   time.Duration // between two reads of PutBlob
}

func (s *slowStore) PutBlob(ctx context.Context, r pullthrough.Repo, d ocispec.Descriptor, body io.ReadSeeker) error {
	var content bytes.Buffer
	for {
		time.Sleep(s.read)
		n, err := io.CopyN(&content, body, max(1, d.Size/4))
		if n == 0 && err == io.EOF {
			return s.Store.PutBlob(ctx, r, d, bytes.NewReader(content.Bytes()))
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
}

// slowStager is a slowStore that lends its place.
type slowStager struct{ *slowStore }

func (s slowStager) StageBlob(_ context.Context, r pullthrough.Repo, d digest.Digest) (pullthrough.Stage, error) {
	f, err := os.Create(filepath.Join(s.dir, d.Encoded()))
	return &slowStage{f, s.slowStore, r}, err
}

type slowStage struct {
	*os.File
	s *slowStore
	r pullthrough.Repo
}

func (s *slowStage) Open() (*os.File, error) { return os.Open(s.Name()) }

func (s *slowStage) Abort() error { return s.Close() }

func (s *slowStage) Commit(ctx context.Context, d ocispec.Descriptor) error {
	defer func() { _ = s.Close() }()
	time.Sleep(s.s.commit) // as fsync, it does not look at the context
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.s.Store.PutBlob(ctx, s.r, d, io.NewSectionReader(s.File, 0, d.Size))
}

// What a slow Store stores is stored, however long that takes, and however many others
// wait for their turn.
func TestASlowStoreStoresAll(t *testing.T) {
	for name, tc := range map[string]struct {
		stages       bool
		blobs        int
		commit, read time.Duration
	}{
		"a commit that takes minutes":                    {true, 1, 5 * time.Minute, 0},
		"as many commits as may run, and one more":       {true, 9, 50 * time.Second, 0},
		"forty puts that read, eight at a time, for ten": {false, 40, 0, 2 * time.Minute / 5},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			testkit.InBubble(t, pullthroughtest.Config{}, func(t *testing.T, w *testkit.World) {
				heard := &testkit.Events{}
				w.OnEvent = heard.On
				store := &slowStore{w.Mem, dir, tc.commit, tc.read}
				w.Store = store
				if tc.stages {
					w.Store = slowStager{store}
				}
				var layers []*pullthroughtest.Blob
				for i := range tc.blobs {
					layers = append(layers, w.Layer(10_000+int64(i)))
				}
				var clients sync.WaitGroup
				start := time.Now()
				for _, layer := range layers {
					clients.Go(func() { assert.NoError(t, w.Whole(t.Context(), layer.Digest)) })
				}
				clients.Wait()
				assert.Zero(t, time.Since(start), "no client waits for the Store")
				w.Settled(t)
				assert.Empty(t, heard.StoreFailures())
				for _, layer := range layers {
					b, err := w.Mem.Blob(t.Context(), testkit.Repo("a"), layer.Digest)
					require.NoError(t, err)
					testkit.AssertBody(t, layer.Digest, b)
				}
				assert.Equal(t, tc.blobs, w.Up.Count(testkit.Blobs))
			})
		})
	}
}
