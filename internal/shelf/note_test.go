package shelf

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
)

// boot is a system that was started, and says so by id.
func boot(t *testing.T, id string) {
	t.Helper()
	before := bootID
	t.Cleanup(func() { bootID = before })
	bootID = func() string { return id }
}

// asProcess calls f with the download of the key, which is put aside or killed at its end.
func asProcess(t *testing.T, s *Shelf, killed bool, f func(*Item)) {
	t.Helper()
	it, err := s.Take(t.Context(), "k")
	if err != nil {
		it, err = s.Create("k", 64<<20)
	}
	require.NoError(t, err)
	f(it)
	if killed {
		s.unclaim("k")
	} else {
		it.Keep()
	}
	require.NoError(t, it.File.Close())
}

func write(t *testing.T, it *Item, from, to int64) {
	t.Helper()
	for ; from < to; from += 512 << 10 {
		_, err := it.File.WriteAt(make([]byte, 512<<10), from)
		require.NoError(t, err)
		it.Wrote(from, 512<<10)
	}
}

func inMiB(spans []extent.Span) (all [][2]int64) {
	for _, s := range spans {
		all = append(all, [2]int64{s.From >> 20, s.To >> 20})
	}
	return all
}

// What Keep has put aside is said to be so to the first that takes it, also if that one is
// killed before it has added anything.
func TestPutAsideOnce(t *testing.T) {
	for name, ids := range map[string][3]string{
		"one start":    {"1", "1", "1"},
		"started anew": {"1", "2", "2"},
		"twice anew":   {"1", "2", "3"},
		"nobody knows": {"", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Shelf{Path: t.TempDir(), Dir: "kept"}
			boot(t, ids[0])
			asProcess(t, s, false, func(it *Item) { write(t, it, 0, 5<<20) })
			boot(t, ids[1])
			asProcess(t, s, true, func(it *Item) { assert.EqualValues(t, 5<<20, it.Kept()) })
			boot(t, ids[2])
			asProcess(t, s, true, func(it *Item) {
				assert.Zero(t, it.Kept())
				assert.Equal(t, [][2]int64{{0, 5}}, inMiB(it.Have()))
			})
		})
	}
}

// What was not synced before the system was started anew is not trusted later, either: what
// is synced then is what was written then.
func TestWhatIsNotTrustedStaysSo(t *testing.T) {
	for name, ids := range map[string][2]string{"known": {"1", "2"}, "nobody knows": {"", ""}} {
		t.Run(name, func(t *testing.T) {
			s := &Shelf{Path: t.TempDir(), Dir: "kept"}
			boot(t, ids[0])
			asProcess(t, s, false, func(it *Item) { write(t, it, 0, 5<<20) })
			asProcess(t, s, true, func(it *Item) { write(t, it, 8<<20, 10<<20) })
			boot(t, ids[1])
			asProcess(t, s, false, func(it *Item) {
				assert.Equal(t, [][2]int64{{0, 5}}, inMiB(it.Have()))
				write(t, it, 5<<20, 6<<20)
			})
			asProcess(t, s, true, func(it *Item) { assert.Equal(t, [][2]int64{{0, 6}}, inMiB(it.Have())) })
		})
	}
}

// A note does not grow by being read, and one of any length is read in part.
func TestLongNotes(t *testing.T) {
	s := &Shelf{Path: t.TempDir(), Dir: "kept"}
	asProcess(t, s, false, func(it *Item) { write(t, it, 0, 5<<20) })
	note := s.Path + "/kept/k/note"
	before, err := os.ReadFile(note)
	require.NoError(t, err)
	for range 5 {
		asProcess(t, s, false, func(*Item) {})
	}
	after, err := os.ReadFile(note)
	require.NoError(t, err)
	assert.LessOrEqual(t, len(after), len(before))

	long := string(after) + strings.Repeat("8388608 1048576\n", 1<<20)
	require.NoError(t, os.WriteFile(note, []byte(long), 0o600))
	asProcess(t, s, false, func(it *Item) { assert.Equal(t, [][2]int64{{0, 5}}, inMiB(it.Have())) })
	after, err = os.ReadFile(note)
	require.NoError(t, err)
	assert.Less(t, len(after), 300)
}
