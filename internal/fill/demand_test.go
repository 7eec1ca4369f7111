package fill_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/fill"
	"github.com/ecr-pullthrough/pullthrough/internal/flight"
)

// inLane is an owner whose fills have so many turns. Its body takes a minute.
func inLane(turns int, part bool) *owner {
	small := content[:4*25_000]
	o := newOwner(small, slowBody(small, len(small)/4, 12*time.Second))
	o.Lane, o.MaxPerLane, o.Part = "lane", turns, part
	return o
}

// importPart joins the fill of key as an import does, and waits until it is stored.
func importPart(w *world, key string, o *owner) error {
	f, _, err := w.Join(context.Background(), key, o.job)
	if err != nil {
		return err
	}
	defer f.Release()
	return f.Wait(context.Background())
}

func TestPartsWaitAsLongAsItTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fill.Options{})
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() { assert.NoError(t, importPart(w, fmt.Sprint(i), inLane(4, true))) })
		}
		start := time.Now()
		all.Wait()
		assert.Equal(t, 50*time.Minute, time.Since(start).Round(time.Minute), "two at a time")
		w.idle(t)
	})
}

func TestAClientFindsATurnBesideParts(t *testing.T) {
	for turns, wait := range map[int]time.Duration{4: 0, 2: 0, 1: 8 * time.Second} {
		t.Run(fmt.Sprint(turns), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fill.Options{})
				var all sync.WaitGroup
				for i := range 10 {
					all.Go(func() { assert.NoError(t, importPart(w, fmt.Sprint(i), inLane(turns, true))) })
				}
				time.Sleep(52 * time.Second)
				start := time.Now()
				a, err := w.Open(t.Context(), "k", inLane(turns, false).job)
				require.NoError(t, err)
				assert.Equal(t, wait+2*time.Second, time.Since(start), "a small blob is shown after two seconds: at once, or as soon as one of them has ended")
				_, err = readAll(a)
				require.NoError(t, err)
				require.NoError(t, a.Body.Close())
				all.Wait()
				w.idle(t)
			})
		})
	}
}

func TestAClientThatJoinsAPartGoesBeforeParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fill.Options{})
		var mu sync.Mutex
		var order []string
		var all sync.WaitGroup
		for _, key := range []string{"a", "b", "c"} {
			all.Go(func() {
				assert.NoError(t, importPart(w, key, inLane(1, true)))
				mu.Lock()
				defer mu.Unlock()
				order = append(order, key)
			})
			synctest.Wait()
		}
		time.Sleep(55 * time.Second)
		a, err := w.Open(t.Context(), "c", func() fill.Job { panic("it joins") })
		require.NoError(t, err)
		assert.True(t, a.Shared)
		_, err = readAll(a)
		require.NoError(t, err)
		require.NoError(t, a.Body.Close())
		all.Wait()
		assert.Equal(t, []string{"a", "c", "b"}, order)
		w.idle(t)
	})
}

// A client waits for a turn no longer than for one of its own, and the import may wait
// on.
func TestAClientThatJoinsAPartIsToldThatThereIsNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fill.Options{})
		first := w.open(t, t.Context(), inLane(1, false))
		var all sync.WaitGroup
		all.Go(func() { assertNoRoom(t, importPart(w, "part", inLane(1, true)), 10*time.Second) })
		synctest.Wait()
		start := time.Now()
		_, err := w.Open(t.Context(), "part", func() fill.Job { panic("it joins") })
		assertNoRoom(t, err, 10*time.Second)
		assert.Equal(t, 10*time.Second, time.Since(start))
		all.Wait()
		require.NoError(t, first.Body.Close())
		w.idle(t)
	})
}

func TestPartsHaveHalfOfSpoolBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fill.Options{SpoolBytes: 8 * mib})
		var all sync.WaitGroup
		part := func() *owner {
			o := newOwner(content, slowBody(content, mib, 2*time.Second))
			o.Part = true
			return o
		}
		all.Go(func() { assert.NoError(t, importPart(w, "one", part())) })
		synctest.Wait()
		all.Go(func() { assertNoRoom(t, importPart(w, "two", part()), 10*time.Second) })
		synctest.Wait()
		start := time.Now()
		a, err := w.Open(t.Context(), "k", newOwner(content, wholeBody(content)).job)
		require.NoError(t, err)
		assert.Zero(t, time.Since(start))
		require.NoError(t, a.Body.Close())
		all.Wait()
		w.idle(t)
	})
}

func TestPartsThatWaitGiveUpAtShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fill.Options{})
		var mu sync.Mutex
		var errs []error
		var all sync.WaitGroup
		for i := range 3 {
			all.Go(func() {
				err := importPart(w, fmt.Sprint(i), inLane(1, true))
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			})
			synctest.Wait()
		}
		start := time.Now()
		require.NoError(t, w.flights.Shutdown(t.Context()))
		all.Wait()
		assert.Equal(t, 60*time.Second, time.Since(start).Round(time.Minute), "what has begun is brought to its end")
		failed := slices.DeleteFunc(errs, func(err error) bool { return err == nil })
		require.Len(t, failed, 2)
		for _, err := range failed {
			assert.ErrorIs(t, err, flight.ErrClosed)
		}
	})
}
