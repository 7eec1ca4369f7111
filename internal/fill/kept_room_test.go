package fill

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/shelf"
)

// TestWhatOthersHoldIsNotGivenBack: a download of another process in the same directory has no
// room here, cannot be dropped, and then goes.
func TestWhatOthersHoldIsNotGivenBack(t *testing.T) {
	dir := t.TempDir()
	other := &shelf.Shelf{Path: dir, Dir: shelfDir}
	item, err := other.Create("key", 16<<20)
	require.NoError(t, err)
	item.Wrote(0, 4<<20)
	item.Wrote(4<<20, 4<<20) // a stretch is noted when it grows
	b := newBudget(Options{Dir: dir, SpoolBytes: 6 << 20})
	item.Drop()
	require.NoError(t, item.File.Close())
	b.countKept()
	assert.True(t, b.space.TryTake(6<<20))
	assert.False(t, b.space.TryTake(1), "more than SpoolBytes")
}
