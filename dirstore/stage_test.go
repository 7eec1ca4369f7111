package dirstore_test

import (
	"bytes"
	"io"
	"os"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
)

func stageOf(t *testing.T, s *dirstore.Store, repo pullthrough.Repo, content []byte) pullthrough.Stage {
	t.Helper()
	stage, err := s.StageBlob(t.Context(), repo, digest.FromBytes(content))
	require.NoError(t, err)
	return stage
}

func fill(t *testing.T, stage pullthrough.Stage, content []byte, from, to int) {
	t.Helper()
	n, err := stage.WriteAt(content[from:to], int64(from))
	require.NoError(t, err)
	require.Equal(t, to-from, n)
}

func TestAStageBecomesABlob(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	content := noise(5, 1<<20)
	d := digest.FromBytes(content)
	stage := stageOf(t, s, repo, content)
	fill(t, stage, content, 0, 1000)

	early, err := stage.Open()
	require.NoError(t, err)
	defer func() { _ = early.Close() }()
	head := make([]byte, 1000)
	_, err = io.ReadFull(early, head)
	require.NoError(t, err)
	assert.Equal(t, content[:1000], head)

	fill(t, stage, content, 1000, len(content))
	assertNoBlob(t, s, repo, d)
	require.NoError(t, stage.Commit(t.Context(), descriptor(content)))
	assert.Equal(t, content, readBlob(t, s, repo, d))
	assertNoBlob(t, s, other, d)

	rest, err := io.ReadAll(early)
	require.NoError(t, err)
	assert.Equal(t, content[1000:], rest, "a file opened before goes on")
	late, err := stage.Open()
	require.NoError(t, err)
	defer func() { _ = late.Close() }()
	all, err := io.ReadAll(late)
	require.NoError(t, err)
	assert.Equal(t, content, all)
	tail := make([]byte, 100)
	_, err = stage.ReadAt(tail, int64(len(content)-100))
	require.NoError(t, err)
	assert.Equal(t, content[len(content)-100:], tail)
	assert.Empty(t, staged(t, dir))
	assertSound(t, dir)
}

func testAnAbortedStageLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	content := noise(6, 1000)
	stage := stageOf(t, s, repo, content)
	fill(t, stage, content, 0, 500)
	early, err := stage.Open()
	require.NoError(t, err)
	defer func() { _ = early.Close() }()
	require.NoError(t, stage.Abort())
	got, err := io.ReadAll(early)
	require.NoError(t, err)
	assert.Equal(t, content[:500], got)
	_, err = stage.Open()
	assert.Error(t, err)
	assert.Empty(t, staged(t, dir))
	assert.Empty(t, files(t, dir))
}

// testACommitThatFailsLeavesNothing: nobody calls Abort after it.
func testACommitThatFailsLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	content := noise(7, 1000)
	t.Run("too short", func(t *testing.T) {
		stage := stageOf(t, s, repo, content)
		fill(t, stage, content, 0, 999)
		assert.ErrorIs(t, stage.Commit(t.Context(), descriptor(content)), io.ErrUnexpectedEOF)
	})
	t.Run("another digest", func(t *testing.T) {
		stage := stageOf(t, s, repo, content)
		fill(t, stage, content, 0, 999)
		assert.Error(t, stage.Commit(t.Context(), descriptor(content[:999])))
	})
	assert.Empty(t, staged(t, dir))
	assert.Empty(t, files(t, dir))
}

func testStagesOfOneDigestAtOnce(t *testing.T) {
	dir := t.TempDir()
	s, content := open(t, dir), noise(8, 200<<10)
	repos := []pullthrough.Repo{repo, other, tenant}
	var wg sync.WaitGroup
	for i := range 12 {
		stage := stageOf(t, s, repos[i%len(repos)], content)
		fill(t, stage, content, 0, len(content))
		wg.Go(func() { // readers come and go all the time
			for range 20 {
				f, err := stage.Open()
				if assert.NoError(t, err) {
					got, err := io.ReadAll(f)
					assert.NoError(t, err)
					assert.True(t, bytes.Equal(content, got))
					assert.NoError(t, f.Close())
				}
				part := make([]byte, 100)
				_, err = stage.ReadAt(part, 1000)
				assert.NoError(t, err)
				assert.Equal(t, content[1000:1100], part)
			}
		})
		wg.Go(func() { assert.NoError(t, stage.Commit(t.Context(), descriptor(content))) })
	}
	wg.Wait()
	for _, at := range repos {
		assert.Equal(t, content, readBlob(t, s, at, digest.FromBytes(content)))
	}
	assert.Empty(t, staged(t, dir))
	assert.Len(t, files(t, dir), 7, "one content, three links with their sizes")
}

// testOthersDownloadsAreNotSwept: who opens the directory removes what dead
// processes have left, and nothing of the living.
func testOthersDownloadsAreNotSwept(t *testing.T) {
	dir := t.TempDir()
	write(t, "half", dir, "pullthrough/staging/DEAD/half")
	write(t, "half", dir, "pullthrough/staging/loose")
	s := open(t, dir)
	assert.Empty(t, staged(t, dir))
	assert.NoFileExists(t, dir+"/pullthrough/staging/loose")

	content := noise(9, 1000)
	stage := stageOf(t, s, repo, content)
	fill(t, stage, content, 0, 500)
	second := open(t, dir)
	require.NoError(t, second.Close())
	assert.Len(t, staged(t, dir), 1)
	fill(t, stage, content, 500, 1000)
	require.NoError(t, stage.Commit(t.Context(), descriptor(content)))

	left := stageOf(t, s, repo, noise(10, 1000))
	require.NoError(t, s.Close())
	open(t, dir)
	assert.Empty(t, staged(t, dir))
	_ = left.Abort() // else its file is open until it is collected
}

func TestAStoreSurvivesATidyAdministrator(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, repo, manifestOf(image(1), "v1"))
	d := putBlob(t, s, repo, []byte("layer"))
	for _, name := range []string{"docker", "pullthrough"} {
		require.NoError(t, os.RemoveAll(dir+"/"+name))
	}
	assertNoManifest(t, s, repo, "v1")
	assertNoBlob(t, s, repo, d)
	put(t, s, repo, manifestOf(image(1), "v1"))
	putBlob(t, s, repo, []byte("layer"))
	assertStored(t, manifestOf(image(1), "v1"), get(t, s, repo, "v1"))
	readBlob(t, s, repo, d)
}
