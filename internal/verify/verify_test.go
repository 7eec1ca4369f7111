package verify_test

import (
	"context"
	"errors"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/verify"
)

func key(i int) digest.Digest { return digest.FromString(strconv.Itoa(i)) }

func nothing(context.Context) error { return nil }

func TestAReadIsSharedAndOutlastsWhoAskedForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads, gate, broken := verify.New(), make(chan struct{}), errors.New("broken")
		calls := 0
		read := func(context.Context) error { calls++; <-gate; return broken }
		ctx, cancel := context.WithCancelCause(t.Context())
		results := make(chan error, 3)
		go func() { results <- reads.Do(ctx, key(1), read) }()
		for range 2 {
			go func() { results <- reads.Do(t.Context(), key(1), read) }()
		}
		synctest.Wait()
		left := errors.New("left")
		cancel(left)
		assert.ErrorIs(t, <-results, left)
		close(gate)
		for range 2 {
			assert.ErrorIs(t, <-results, broken)
		}
		assert.Equal(t, 1, calls)
		assert.ErrorIs(t, reads.Do(t.Context(), key(1), read), broken, "the next one reads again")
		assert.Equal(t, 2, calls)
	})
}

// TestFewRunAtATime, and what somebody waits for comes before what nobody does.
func TestFewRunAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads, gate := verify.New(), make(chan struct{})
		var running, most, done atomic.Int64
		var turns sync.Map // by key, how many were done before
		read := func(i int) func(context.Context) error {
			return func(context.Context) error {
				most.Store(max(most.Load(), running.Add(1)))
				<-gate
				running.Add(-1)
				turns.Store(i, done.Add(1))
				return nil
			}
		}
		for i := range 10_000 {
			reads.Start(key(i), read(i))
		}
		synctest.Wait()
		assert.EqualValues(t, 4, running.Load())
		for _, i := range []int{4000, 9999} { // one that is queued, and one that found no room
			go func() { assert.NoError(t, reads.Do(t.Context(), key(i), read(i))) }()
		}
		synctest.Wait()
		close(gate)
		synctest.Wait()
		for _, i := range []int{4000, 9999} {
			turn, _ := turns.Load(i)
			assert.Less(t, turn, int64(100))
		}
		assert.EqualValues(t, 4, most.Load())
		assert.Less(t, done.Load(), int64(5000), "no more are remembered")
	})
}

// TestWhoLeavesTakesNoTurn: a read that has not begun waits behind those that are waited
// for again.
func TestWhoLeavesTakesNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads, gate := verify.New(), make(chan struct{})
		var order []int
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 4 {
			reads.Start(key(i), func(context.Context) error { <-gate; return nil })
		}
		synctest.Wait()
		note := func(i int) func(context.Context) error {
			return func(context.Context) error { order = append(order, i); return nil }
		}
		go func() { _ = reads.Do(ctx, key(10), note(10)) }()
		synctest.Wait()
		go func() { assert.NoError(t, reads.Do(t.Context(), key(11), note(11))) }()
		synctest.Wait()
		cancel()
		synctest.Wait()
		gate <- struct{}{} // one place is free
		synctest.Wait()
		assert.Equal(t, []int{11, 10}, order)
		close(gate)
	})
}

func TestStopEndsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := verify.New()
		failed := make(chan error, 6)
		for i := range 6 { // four run
			go func() {
				failed <- reads.Do(t.Context(), key(i), func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
			}()
		}
		synctest.Wait()
		reads.Stop()
		for range 6 {
			assert.ErrorIs(t, <-failed, os.ErrClosed)
		}
		assert.ErrorIs(t, reads.Do(t.Context(), key(1), nothing), os.ErrClosed)
		reads.Start(key(1), func(context.Context) error { t.Error("it is stopped"); return nil })
		reads.Stop()
	})
}

func TestAPanicIsAnError(t *testing.T) {
	reads := verify.New()
	assert.ErrorContains(t, reads.Do(t.Context(), key(1), func(context.Context) error { panic("a driver's") }), "a driver's")
	assert.NoError(t, reads.Do(t.Context(), key(1), nothing))
	reads.Wait()
}
