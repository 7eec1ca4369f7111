package shelf_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
	"github.com/ecr-pullthrough/pullthrough/internal/shelf"
)

const (
	mib  = 1 << 20
	size = 64 * mib
)

// room is a directory, as a process sees it.
func room(t *testing.T, dir string) *shelf.Shelf {
	t.Helper()
	root, err := os.OpenRoot(dir)
	require.NoError(t, err)
	t.Cleanup(func() { _ = root.Close() })
	return &shelf.Shelf{Root: root, Dir: "kept"}
}

// put begins a download.
func put(t *testing.T, s *shelf.Shelf, key string) (*shelf.Item, error) {
	t.Helper()
	name := "new-" + key
	require.NoError(t, s.Root.Mkdir(name, 0o700))
	f, err := s.Root.OpenFile(name+"/data", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	it, err := s.Put(key, name, f, size)
	if err != nil {
		require.NoError(t, s.Root.RemoveAll(name))
	}
	return it, err
}

// write is a connection's n bytes from off on.
func write(t *testing.T, it *shelf.Item, off, n int64) {
	t.Helper()
	piece := make([]byte, 64<<10)
	for end := off + n; off < end; {
		m, err := it.File.WriteAt(piece[:min(int64(len(piece)), end-off)], off)
		require.NoError(t, err)
		it.Wrote(off, int64(m))
		off += int64(m)
	}
}

func keep(t *testing.T, s *shelf.Shelf, key string, n int64) {
	t.Helper()
	it, err := put(t, s, key)
	require.NoError(t, err)
	write(t, it, 0, n)
	it.Keep()
	require.NoError(t, it.File.Close())
}

func keys(t *testing.T, s *shelf.Shelf) (all []string) {
	t.Helper()
	entries, err := fs.ReadDir(s.Root.FS(), s.Dir)
	if !errors.Is(err, fs.ErrNotExist) {
		require.NoError(t, err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestStretchesInAnyOrder(t *testing.T) {
	dir := t.TempDir()
	s := room(t, dir)
	it, err := put(t, s, "k")
	require.NoError(t, err)
	var wg sync.WaitGroup
	for _, from := range []int64{0, 8 * mib, 40 * mib, 3 * mib} {
		wg.Go(func() { write(t, it, from, 3*mib+5) })
	}
	wg.Wait()
	write(t, it, size-100, 100) // the end
	it.Keep()
	again, err := room(t, dir).Take(t.Context(), "k")
	require.NoError(t, err)
	assert.EqualValues(t, size, again.Size())
	assert.Equal(t, []extent.Span{{From: 0, To: 6*mib + 5}, {From: 8 * mib, To: 11*mib + 5}, {From: 40 * mib, To: 43*mib + 5}}, again.Have())
	again.Drop()
	assert.Empty(t, keys(t, s))
}

// TestProcessesThatDie leave what they have noted, which is each MiB.
func TestProcessesThatDie(t *testing.T) {
	dir := t.TempDir()
	for n := int64(5); n < 12; n++ {
		s := room(t, dir)
		it, err := s.Take(t.Context(), "k")
		from := int64(0)
		if n == 5 {
			it, err = put(t, s, "k")
		} else {
			from = it.Have()[0].To
		}
		require.NoError(t, err)
		write(t, it, from, n*mib+777-from)
		require.NoError(t, it.File.Close()) // its lock goes, and nothing more is noted
		if n > 5 {
			assert.Equal(t, []extent.Span{{From: 0, To: (n - 1) * mib}}, it.Have())
		}
	}
}

func TestTooOldAndTooMuch(t *testing.T) {
	s := room(t, t.TempDir())
	var passed time.Duration
	s.Now = func() time.Time { return time.Now().Add(passed) }
	for i := range 4 {
		keep(t, s, fmt.Sprint(i), 5*mib)
		stamp := time.Now().Add(time.Duration(i-100) * time.Second)
		require.NoError(t, s.Root.Chtimes(fmt.Sprintf("kept/%d/note", i), stamp, stamp))
	}
	assert.EqualValues(t, 20*mib, s.Tidy())
	s.Limit = func() int64 { return 12 * mib }
	assert.EqualValues(t, 10*mib, s.Tidy())
	assert.Equal(t, []string{"2", "3"}, keys(t, s), "the oldest go")

	taken, err := s.Take(t.Context(), "2")
	require.NoError(t, err)
	assert.EqualValues(t, 5*mib, s.Tidy(), "what is taken counts elsewhere")
	assert.True(t, s.DropOldest())
	assert.False(t, s.DropOldest(), "what is taken stays")
	assert.Equal(t, []string{"2"}, keys(t, s))
	taken.Keep()

	passed = 24 * time.Hour
	_, err = s.Take(t.Context(), "2")
	assert.ErrorIs(t, err, fs.ErrNotExist)
	assert.Empty(t, keys(t, s))
	keep(t, s, "4", 5*mib)
	passed += 24 * time.Hour
	assert.Zero(t, s.Tidy())
	assert.Empty(t, keys(t, s))
}

func TestOnlyOneHasIt(t *testing.T) {
	dir := t.TempDir()
	s, other := room(t, dir), room(t, dir)
	keep(t, s, "k", 5*mib)
	it, err := s.Take(t.Context(), "k")
	require.NoError(t, err)
	_, err = other.Take(t.Context(), "k")
	assert.Error(t, err)
	assert.NotErrorIs(t, err, fs.ErrNotExist)
	_, err = put(t, other, "k")
	assert.Error(t, err, "nor may anybody put another one there")
	assert.False(t, other.DropOldest())
	got := make(chan error, 1)
	go func() { // the same process waits a little for one that is about to end
		again, err := s.Take(t.Context(), "k")
		if err == nil {
			again.Drop()
		}
		got <- err
	}()
	it.Keep()
	assert.NoError(t, <-got)
	assert.Empty(t, keys(t, s))
}

func TestHalfOfOneGoes(t *testing.T) {
	s := room(t, t.TempDir())
	for _, name := range []string{"empty", "dataless/note", "noteless/data"} {
		dir, file := filepath.Split(name)
		if dir == "" {
			dir = file
		}
		require.NoError(t, s.Root.MkdirAll("kept/"+dir, 0o700))
		if dir != file {
			require.NoError(t, s.Root.WriteFile("kept/"+name, []byte("x"), 0o600))
		}
	}
	assert.Zero(t, s.Tidy())
	assert.Empty(t, keys(t, s))
}

func TestADirectoryThatCannotBeWritten(t *testing.T) {
	s := room(t, t.TempDir())
	require.NoError(t, s.Root.WriteFile("kept", nil, 0o600)) // not even by root
	_, err := put(t, s, "k")
	assert.Error(t, err)
	_, err = s.Take(t.Context(), "k")
	assert.Error(t, err)
	assert.Zero(t, s.Tidy())
}

func TestLeave(t *testing.T) {
	s := room(t, t.TempDir())
	it, err := put(t, s, "k")
	require.NoError(t, err)
	write(t, it, 0, 5*mib)
	require.NoError(t, it.Leave("elsewhere"))
	assert.Empty(t, keys(t, s))
	entries, err := fs.ReadDir(s.Root.FS(), "elsewhere")
	require.NoError(t, err)
	require.Len(t, entries, 1)
	assert.Equal(t, "data", entries[0].Name())
	_, err = put(t, s, "k")
	assert.NoError(t, err, "the key is free again")
}
