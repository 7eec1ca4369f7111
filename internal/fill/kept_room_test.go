package fill

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/shelf"
)

// besideAnother is the budget of a process that begins, with SpoolBytes of 6 MiB, while another
// one has 4 MiB and more in the same directory, which are gone when it returns.
func besideAnother(t *testing.T, more int64) *budget {
	t.Helper()
	dir := t.TempDir()
	other := &shelf.Shelf{Path: dir, Dir: shelfDir}
	item, err := other.Create("key", 16<<20)
	require.NoError(t, err)
	item.Wrote(0, 4<<20)
	item.Wrote(4<<20, more) // a stretch is noted when it grows
	b := newBudget(Options{Dir: dir, SpoolBytes: 6 << 20})
	item.Drop()
	require.NoError(t, item.File.Close())
	return b
}

// TestWhatOthersHoldIsNotGivenBack: a download of another process in the same directory has no
// room here, cannot be dropped, and then goes.
func TestWhatOthersHoldIsNotGivenBack(t *testing.T) {
	b := besideAnother(t, 4<<20)
	b.countKept()
	assert.True(t, b.space.TryTake(6<<20))
	assert.False(t, b.space.TryTake(1), "more than SpoolBytes")
}

// TestWhatOthersHeldIsFreeAgain: what another process had in the same directory, and has no
// more, is not counted for ever.
func TestWhatOthersHeldIsFreeAgain(t *testing.T) {
	b := besideAnother(t, 1)
	soon, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := b.take(soon, nil, b.space, 6<<20)
	assert.NoError(t, err)
}

// TestWhatIsKeptMakesRoomForImports, as it does for clients.
func TestWhatIsKeptMakesRoomForImports(t *testing.T) {
	dir := t.TempDir()
	b := newBudget(Options{Dir: dir, SpoolBytes: 6 << 20})
	item := b.shelve("key", 16<<20)
	item.Wrote(0, 4<<20)
	item.Wrote(4<<20, 1)
	item.Keep()
	item.Close()
	b.countKept()
	unwanted, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	behind, err := b.take(t.Context(), unwanted, b.space, 3<<20)
	assert.NoError(t, err)
	assert.True(t, behind)
}
