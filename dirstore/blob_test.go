package dirstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
)

func TestBlobsComeBack(t *testing.T) {
	s := open(t, t.TempDir())
	for name, content := range map[string][]byte{"empty": {}, "small": []byte("layer"), "5 MiB": noise(1, 5<<20)} {
		for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			t.Run(name+" "+algorithm.String(), func(t *testing.T) {
				d := algorithm.FromBytes(content)
				assertNoBlob(t, s, repo, d)
				desc := ocispec.Descriptor{Digest: d, Size: int64(len(content))}
				require.NoError(t, s.PutBlob(t.Context(), repo, desc, bytes.NewReader(content)))
				assert.Equal(t, content, readBlob(t, s, repo, d))
			})
		}
	}
}

// TestABlobIsAnUnwrappedFile keeps sendfile possible.
func TestABlobIsAnUnwrappedFile(t *testing.T) {
	s := open(t, t.TempDir())
	b, err := s.Blob(t.Context(), repo, putBlob(t, s, repo, []byte("layer")))
	require.NoError(t, err)
	defer func() { _ = b.Body.Close() }()
	assert.IsType(t, (*os.File)(nil), b.Body)
}

func TestABlobIsStoredOnceAndSeenWhereItIsLinked(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	content := []byte("shared layer")
	d := putBlob(t, s, repo, content)
	assertNoBlob(t, s, other, d)
	assertNoBlob(t, s, tenant, d)

	first, err := os.Stat(dataFile(dir, d))
	require.NoError(t, err)
	putBlob(t, s, tenant, content)
	assert.Equal(t, content, readBlob(t, s, tenant, d))
	assertNoBlob(t, s, other, d)
	second, err := os.Stat(dataFile(dir, d))
	require.NoError(t, err)
	assert.True(t, os.SameFile(first, second), "the content must not be written again")
}

// testWhatIsThereIsNotWrittenAgain also counts what a hit and such a put cost.
func testWhatIsThereIsNotWrittenAgain(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	content := noise(2, 1000)
	d := putBlob(t, s, repo, content)
	var steps []string
	s.SetProbe(func(op, _ string) error { steps = append(steps, op); return nil })
	require.NoError(t, s.PutBlob(t.Context(), repo, descriptor(content), nil))
	// Under the lock it is said to be in use, so that no sweep takes it away now.
	assert.Equal(t, []string{"open", "stat", "lock", "lock", "open", "stat", "touch"}, steps)
	steps = nil
	readBlob(t, s, repo, d)
	assert.Equal(t, []string{"open", "open"}, steps)
	second := open(t, dir)
	second.SetProbe(func(op, _ string) error { steps = append(steps, op); return nil })
	for _, want := range []int{3 + 5, 2, 2} { // the note of the size is read once, and five directories are kept open
		steps = nil
		readBlob(t, second, repo, d)
		assert.Equal(t, slices.Repeat([]string{"open"}, want), steps)
	}
}

type brokenReader struct{ io.Reader }

func (brokenReader) Seek(int64, int) (int64, error) { return 0, errors.ErrUnsupported }

func testAReaderThatFailsLeavesNothing(t *testing.T) {
	content := noise(3, 600<<10)
	desc := descriptor(content)
	errBroken := errors.New("broken")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		ctx context.Context
		r   io.Reader
		err error // nil: any
	}{
		"an error at the start":    {t.Context(), iotest.ErrReader(errBroken), errBroken},
		"an error in the middle":   {t.Context(), io.MultiReader(bytes.NewReader(content[:300<<10]), iotest.ErrReader(errBroken)), errBroken},
		"an error instead of EOF":  {t.Context(), io.MultiReader(bytes.NewReader(content), iotest.ErrReader(errBroken)), errBroken},
		"a byte too few":           {t.Context(), bytes.NewReader(content[1:]), io.ErrUnexpectedEOF},
		"nothing":                  {t.Context(), bytes.NewReader(nil), io.ErrUnexpectedEOF},
		"a byte too many":          {t.Context(), io.MultiReader(bytes.NewReader(content), bytes.NewReader([]byte{1})), nil},
		"a context that has ended": {canceled, bytes.NewReader(content), context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			err := s.PutBlob(tc.ctx, repo, desc, brokenReader{tc.r})
			require.Error(t, err)
			if tc.err != nil {
				assert.ErrorIs(t, err, tc.err)
			}
			assert.Empty(t, files(t, dir))
			assert.Empty(t, staged(t, dir))
			assertNoBlob(t, s, repo, desc.Digest)
		})
	}
}

func testManyPutsOfOneBlobAtOnce(t *testing.T) {
	dir := t.TempDir()
	stores := []*storeAt{{open(t, dir), repo}, {open(t, dir), repo}, {open(t, dir), tenant}}
	content := noise(4, 300<<10)
	d := digest.FromBytes(content)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			at := stores[i%len(stores)]
			assert.NoError(t, at.PutBlob(t.Context(), at.repo, descriptor(content), bytes.NewReader(content)))
			b, err := at.Blob(t.Context(), at.repo, d)
			if assert.NoError(t, err) {
				got, err := io.ReadAll(b.Body)
				assert.NoError(t, err)
				assert.True(t, bytes.Equal(content, got))
				assert.NoError(t, b.Body.Close())
			}
		})
	}
	wg.Wait()
	assertNoBlob(t, stores[0].Store, other, d)
	assert.Empty(t, staged(t, dir))
	assertSound(t, dir)
	assert.Len(t, files(t, dir), 5, "one content, two links with their sizes")
}

type storeAt struct {
	*dirstore.Store
	repo pullthrough.Repo
}
