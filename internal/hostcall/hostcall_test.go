package hostcall_test

import (
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
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

	var l hostcall.Lookups
	_, err = hostcall.Do(t.Context(), &l, "Rules", nil, func(context.Context) (int, error) { panic("ah") })
	assert.EqualError(t, err, "Rules panicked: ah")

	var puts hostcall.Puts
	err = puts.Do(t.Context(), "Store.PutBlob", func(context.Context, func()) error { panic("eh") })
	assert.EqualError(t, err, "Store.PutBlob panicked: eh")
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

func TestPutsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p hostcall.Puts
		var running, most atomic.Int32
		var puts sync.WaitGroup
		for range 5 * hostcall.MaxPuts {
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
		assert.EqualValues(t, hostcall.MaxPuts, most.Load())
	})
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

func TestBody(t *testing.T) {
	read := func(content string, size int64) (string, error) {
		b, err := io.ReadAll(hostcall.NewBody(t.Context(), strings.NewReader(content), size, nil))
		return string(b), err
	}
	got, err := read("content and more", 7)
	assert.NoError(t, err)
	assert.Equal(t, "content", got, "it ends at its size")
	got, err = read("cont", 7)
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
	assert.Equal(t, "cont", got)
	got, err = read("", 0)
	assert.NoError(t, err)
	assert.Empty(t, got)
}

func TestBodySeeks(t *testing.T) {
	reads := 0
	b := hostcall.NewBody(t.Context(), strings.NewReader("content and more"), 7, func() { reads++ })
	end, err := b.Seek(0, io.SeekEnd)
	require.NoError(t, err)
	assert.EqualValues(t, 7, end)
	_, err = b.Read(make([]byte, 1))
	assert.Equal(t, io.EOF, err)
	at, err := b.Seek(-3, io.SeekCurrent)
	require.NoError(t, err)
	assert.EqualValues(t, 4, at)
	rest, err := io.ReadAll(b)
	require.NoError(t, err)
	assert.Equal(t, "ent", string(rest))
	_, err = b.Seek(-1, io.SeekStart)
	assert.Error(t, err)
	assert.Positive(t, reads)
}

func TestBodyEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	b := hostcall.NewBody(ctx, strings.NewReader("content"), 7, nil)
	_, err := b.Read(make([]byte, 3))
	require.NoError(t, err)
	cancel()
	_, err = io.ReadAll(b)
	assert.ErrorIs(t, err, context.Canceled, "half of a blob is not read to its end")
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
