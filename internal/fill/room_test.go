package fill_test

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/fill"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

func assertNoRoom(t *testing.T, err error, retryAfter time.Duration) {
	t.Helper()
	e, ok := errors.AsType[*fill.Error](err)
	require.True(t, ok, "%v", err)
	assert.ErrorIs(t, e, fill.ErrBusy)
	assert.Equal(t, retryAfter, e.RetryAfter)
}

func TestMoreThanSpoolBytesIsRefusedAtOnce(t *testing.T) {
	for total, text := range map[int]string{4 * mib: "4194304 bytes are more than SpoolBytes, 3145728", -1: " bytes are more than SpoolBytes, 3145728"} {
		synctest.Test(t, func(t *testing.T) {
			b := wholeBody(content)
			b.total = int64(total)
			w, o := newWorld(t, fill.Options{SpoolBytes: 3 * mib}), newOwner(content, b)
			start := time.Now()
			_, err := w.Open(t.Context(), "k", o.job)
			assertNoRoom(t, err, 0)
			assert.ErrorContains(t, err, text)
			assert.Zero(t, time.Since(start))
			w.idle(t)
		})
	}
}

// A second fill waits for what the first one has.
func TestAFillWaitsForRoom(t *testing.T) {
	for name, limit := range map[string]func(o *owner, w *fill.Options){
		"in SpoolBytes": func(_ *owner, w *fill.Options) { w.SpoolBytes = 5 * mib },
		"in its lane":   func(o *owner, _ *fill.Options) { o.Lane, o.MaxPerLane = "lane", 1 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				first, second := newOwner(content, newBody(len(content))), newOwner(content, wholeBody(content), wholeBody(content))
				var options fill.Options
				limit(first, &options)
				limit(second, &options)
				w := newWorld(t, options)
				a := w.open(t, t.Context(), first)
				start := time.Now()
				_, err := w.Open(t.Context(), "other", second.job)
				assertNoRoom(t, err, 10*time.Second)
				assert.Equal(t, 10*time.Second, time.Since(start))

				go func() {
					time.Sleep(5 * time.Second)
					first.bodies[0].end(content)
					_, _ = io.Copy(io.Discard, a.Body)
					_ = a.Body.Close()
				}()
				b, err := w.Open(t.Context(), "other", second.job)
				require.NoError(t, err)
				require.NoError(t, b.Body.Close())
				w.idle(t)
			})
		})
	}
}

// A fill of unknown length reserves what it needs, and an eighth of all at a time.
func TestAFillOfUnknownLengthLeavesRoomForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fill.Options{SpoolBytes: 8 * mib})
		first, second := newOwner(content, newBody(-1)), newOwner(content, wholeBody(content))
		var reader sync.WaitGroup
		reader.Go(func() {
			_, err := w.read(t.Context(), first)
			assert.NoError(t, err)
		})
		synctest.Wait()
		first.bodies[0].send(content[:mib+1])
		synctest.Wait()
		start := time.Now()
		a, err := w.Open(t.Context(), "other", second.job)
		require.NoError(t, err)
		assert.Zero(t, time.Since(start))
		_, err = readAll(a)
		require.NoError(t, err)
		require.NoError(t, a.Body.Close())
		first.bodies[0].end(content[mib+1:])
		synctest.Wait() // the first reader has closed
		w.idle(t)
		reader.Wait()
	})
}

func TestLanesDoNotWaitForEachOther(t *testing.T) { beginsAtOnce(t, 2, 1) }

// A Policy may change: what begins from then on has the new number of turns.
func TestALaneThatIsMadeWider(t *testing.T) { beginsAtOnce(t, 1, 2) }

// beginsAtOnce has a fill begin in the lane, of so many turns, while another one has the only
// turn of lane 1.
func beginsAtOnce(t *testing.T, lane, turns int) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fill.Options{})
		first, second := newOwner(content, newBody(len(content))), newOwner(content, wholeBody(content))
		first.Lane, first.MaxPerLane = 1, 1
		second.Lane, second.MaxPerLane = lane, turns
		a := w.open(t, t.Context(), first)
		start := time.Now()
		b, err := w.Open(t.Context(), "other", second.job)
		require.NoError(t, err)
		assert.Zero(t, time.Since(start))
		require.NoError(t, a.Body.Close())
		require.NoError(t, b.Body.Close())
		w.idle(t)
	})
}

// While a Store takes its time, the lane is free.
func TestAPutKeepsNoLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fill.Options{})
		first, second := newOwner(content, wholeBody(content)), newOwner(content, wholeBody(content))
		for _, o := range []*owner{first, second} {
			o.Lane, o.MaxPerLane = 1, 1
		}
		first.Put = func(context.Context, *fill.Fill) error { time.Sleep(time.Hour); return nil }
		_, err := w.read(t.Context(), first)
		require.NoError(t, err)
		start := time.Now()
		b, err := w.Open(t.Context(), "other", second.job)
		require.NoError(t, err)
		assert.Zero(t, time.Since(start))
		require.NoError(t, b.Body.Close())
		w.idle(t)
	})
}

func TestAReaderThatHoldsRoomAndHardlyReadsIsCut(t *testing.T) {
	for idle, cut := range map[time.Duration]bool{9 * time.Minute: false, 11 * time.Minute: true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, fill.Options{SpoolBytes: 5 * mib})
			first, second := newOwner(content, wholeBody(content)), newOwner(content, wholeBody(content))
			a := w.open(t, t.Context(), first)
			time.Sleep(idle)
			go func() {
				time.Sleep(time.Second) // after the other has asked for room
				_, err := a.Body.Read(make([]byte, 1))
				assert.Equal(t, cut, errors.Is(err, spool.ErrSlow), "%v", err)
				if cut {
					assert.NoError(t, a.Body.Close())
				}
			}()
			b, err := w.Open(t.Context(), "other", second.job)
			if cut {
				require.NoError(t, err)
				require.NoError(t, b.Body.Close())
			} else {
				assertNoRoom(t, err, 10*time.Second)
				require.NoError(t, a.Body.Close())
			}
			w.idle(t)
		})
	}
}
