package hostcall_test

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
)

func TestAPanicIsAnError(t *testing.T) {
	err := hostcall.Guard("Store.Manifest", func() error { panic("oh") })
	p, ok := errors.AsType[*hostcall.PanicError](err)
	require.True(t, ok)
	assert.Equal(t, "oh", p.Value)
	assert.EqualError(t, err, "Store.Manifest panicked: oh")
	assert.Regexp(t, `^hostcall/hostcall_test\.go:\d+$`, p.Where)

	var l hostcall.Lookups
	_, err = hostcall.Do(t.Context(), &l, "Rules", nil, func(context.Context) (int, error) { panic("ah") })
	assert.EqualError(t, err, "Rules panicked: ah")

	var puts hostcall.Puts
	err = puts.Do(t.Context(), "Store.PutBlob", func(context.Context, func()) error { panic("eh") })
	assert.EqualError(t, err, "Store.PutBlob panicked: eh")
}

func TestAnErrorNamesItsCall(t *testing.T) {
	assert.NoError(t, hostcall.Named("Rules", nil))
	err := hostcall.Named("Rules", io.EOF)
	assert.EqualError(t, err, "Rules: EOF")
	assert.ErrorIs(t, err, io.EOF)
	call, where := hostcall.Failed(err)
	assert.Equal(t, "Rules", call)
	assert.Empty(t, where)

	var nothing *hostcall.Puts
	err = hostcall.Named("Rules", hostcall.Guard("Rules", func() error { nothing.Most = 1; return nil }))
	assert.ErrorContains(t, err, "Rules panicked: runtime error: invalid memory address")
	call, where = hostcall.Failed(err)
	assert.Equal(t, "Rules", call)
	assert.Regexp(t, `^hostcall/hostcall_test\.go:\d+$`, where, "where the pointer was used")

	call, _ = hostcall.Failed(io.EOF)
	assert.Empty(t, call)
}

func TestALookupReturnsWhatItsCallReturns(t *testing.T) {
	var l hostcall.Lookups
	v, err := hostcall.Do(t.Context(), &l, "x", nil, func(context.Context) (int, error) { return 7, io.EOF })
	assert.Equal(t, 7, v)
	assert.ErrorIs(t, err, io.EOF)
}

func TestAWaiterLeavesAndTheCallGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l hostcall.Lookups
		gate, dropped := make(chan struct{}), make(chan int, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := hostcall.Do(ctx, &l, "x", func(v int) { dropped <- v }, func(context.Context) (int, error) {
			<-gate
			return 3, nil
		})
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, time.Second, time.Since(start))
		close(gate)
		assert.Equal(t, 3, <-dropped, "what comes too late is let go")
	})
}

// hang makes n calls whose waiters leave. The calls return when gate is closed.
func hang(t *testing.T, l *hostcall.Lookups, n int, gate chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var waiters sync.WaitGroup
	for range n {
		waiters.Go(func() {
			_, err := hostcall.Do(ctx, l, "x", nil, func(context.Context) (int, error) { <-gate; return 0, nil })
			assert.ErrorIs(t, err, context.Canceled)
		})
	}
	synctest.Wait()
	cancel()
	waiters.Wait()
}

func TestLookupsThatHangAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l hostcall.Lookups
		gate := make(chan struct{})
		hang(t, &l, hostcall.MaxLookups, gate)
		called := false
		_, err := hostcall.Do(t.Context(), &l, "x", nil, func(context.Context) (int, error) { called = true; return 0, nil })
		assert.ErrorIs(t, err, hostcall.ErrStuck)
		assert.ErrorIs(t, err, hostcall.ErrNotCalled)
		assert.False(t, called)
		close(gate)
		synctest.Wait()
		_, err = hostcall.Do(t.Context(), &l, "x", nil, func(context.Context) (int, error) { called = true; return 0, nil })
		assert.NoError(t, err)
		assert.True(t, called)
	})
}

func TestALookupWaitsForOneThatSomebodyWaitsFor(t *testing.T) {
	for name, tc := range map[string]struct {
		takes, waits time.Duration
		err          error
	}{
		"it returns":          {5 * time.Second, 5 * time.Second, nil},
		"it does not, either": {time.Minute, hostcall.LookupPatience, hostcall.ErrStuck},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var l hostcall.Lookups
				hung := make(chan struct{})
				hang(t, &l, hostcall.MaxLookups-1, hung)
				slow := make(chan struct{})
				go func() {
					_, _ = hostcall.Do(t.Context(), &l, "slow", nil, func(context.Context) (int, error) { time.Sleep(tc.takes); return 0, nil })
					close(slow)
				}()
				synctest.Wait()
				start := time.Now()
				_, err := hostcall.Do(t.Context(), &l, "next", nil, func(context.Context) (int, error) { return 0, nil })
				assert.ErrorIs(t, err, tc.err)
				assert.Equal(t, tc.waits, time.Since(start))
				close(hung)
				<-slow
			})
		})
	}
}

// fillPuts begins as many puts as may run, each with run.
func fillPuts(t *testing.T, p *hostcall.Puts, run func(ctx context.Context, progress func()) error) *sync.WaitGroup {
	t.Helper()
	var puts sync.WaitGroup
	for range hostcall.MaxPuts {
		puts.Go(func() { assert.NoError(t, p.Do(t.Context(), "slow", run)) })
	}
	synctest.Wait()
	return &puts
}

// A host's test that calls t.FailNow in its Store ends the goroutine that it is on.
func TestALookupThatEndsItsGoroutineReleasesItsWaiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l hostcall.Lookups
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		for range 2 * hostcall.MaxLookups {
			_, err := hostcall.Do(ctx, &l, "x", nil, func(context.Context) (int, error) { runtime.Goexit(); return 0, nil })
			if !assert.Error(t, err) || !assert.NotErrorIs(t, err, context.DeadlineExceeded) {
				return
			}
		}
	})
}
