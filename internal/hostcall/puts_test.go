package hostcall_test

import (
	"context"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
)

func TestPutsTakeTurns(t *testing.T) {
	for given, turns := range map[int]int{0: hostcall.MaxPuts, 64: 64} {
		synctest.Test(t, func(t *testing.T) {
			p := hostcall.Puts{Most: given}
			var running, most atomic.Int32
			var puts sync.WaitGroup
			for range 5 * turns {
				puts.Go(func() {
					assert.NoError(t, p.Do(t.Context(), "x", func(context.Context, func()) error {
						n := running.Add(1)
						for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
						}
						time.Sleep(time.Second)
						running.Add(-1)
						return nil
					}))
				})
			}
			start := time.Now()
			puts.Wait()
			assert.Equal(t, 5*time.Second, time.Since(start))
			assert.EqualValues(t, turns, most.Load())
		})
	}
}

func TestAPutWaitsAsLongAsOthersRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p hostcall.Puts
		slow := fillPuts(t, &p, func(_ context.Context, progress func()) error {
			for range 10 { // ten minutes, with a read now and then
				time.Sleep(59 * time.Second)
				progress()
			}
			return nil
		})
		assert.NoError(t, p.Do(t.Context(), "next", func(context.Context, func()) error { return nil }))
		slow.Wait()
	})
}

func TestAPutIsNotMadeWhereNoOtherGetsAnywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p hostcall.Puts
		gate := make(chan struct{})
		stuck := fillPuts(t, &p, func(context.Context, func()) error { <-gate; return nil })
		start := time.Now()
		err := p.Do(t.Context(), "next", func(context.Context, func()) error { return nil })
		assert.ErrorIs(t, err, hostcall.ErrNotCalled)
		assert.ErrorIs(t, err, hostcall.ErrStuck)
		assert.Equal(t, hostcall.PutPatience, time.Since(start))
		close(gate)
		stuck.Wait() // what was under way ends well, however long it took
		assert.NoError(t, p.Do(t.Context(), "after", func(context.Context, func()) error { return nil }))
	})
}

func TestTheQueueOfPutsIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p hostcall.Puts
		gate := make(chan struct{})
		stuck := fillPuts(t, &p, func(context.Context, func()) error { <-gate; return nil })
		var waiting sync.WaitGroup
		for range hostcall.MaxWaiting {
			waiting.Go(func() { assert.NoError(t, p.Do(t.Context(), "w", func(context.Context, func()) error { return nil })) })
		}
		synctest.Wait()
		assert.ErrorIs(t, p.Do(t.Context(), "one more", func(context.Context, func()) error { return nil }), hostcall.ErrStuck)
		close(gate)
		stuck.Wait()
		waiting.Wait()
	})
}

func TestAPutThatWaitsLeavesWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p hostcall.Puts
		gate := make(chan struct{})
		stuck := fillPuts(t, &p, func(context.Context, func()) error { <-gate; return nil })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := p.Do(ctx, "next", func(context.Context, func()) error { return nil })
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.ErrorIs(t, err, hostcall.ErrNotCalled)
		close(gate)
		stuck.Wait()
	})
}

func TestAPutUnderWayHasASecondToNoticeTheEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		notices time.Duration
		takes   time.Duration
		err     error
	}{
		"it notices":         {100 * time.Millisecond, 100 * time.Millisecond, io.ErrClosedPipe},
		"it does not notice": {time.Hour, time.Second, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var p hostcall.Puts
				ctx, cancel := context.WithCancel(t.Context())
				begun := make(chan struct{})
				go func() { <-begun; cancel() }()
				start := time.Now()
				err := p.Do(ctx, "x", func(ctx context.Context, _ func()) error {
					close(begun)
					<-ctx.Done()
					time.Sleep(tc.notices)
					return io.ErrClosedPipe
				})
				assert.ErrorIs(t, err, tc.err)
				assert.Equal(t, tc.takes, time.Since(start))
				time.Sleep(tc.notices) // it returns in the end
			})
		})
	}
}

func TestAPutThatEndsItsGoroutineReleasesItsWaiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p hostcall.Puts
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		for range 2 * hostcall.MaxPuts {
			err := p.Do(ctx, "x", func(context.Context, func()) error { runtime.Goexit(); return nil })
			if !assert.Error(t, err) || !assert.NotErrorIs(t, err, context.DeadlineExceeded) {
				return
			}
		}
	})
}
