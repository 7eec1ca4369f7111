package flight_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
)

type group = flight.Group[string, int]

type call = flight.Call[string, int]

func TestOneRunServesEveryWaiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		var runs, shared atomic.Int32
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				v, joined, err := g.Do(t.Context(), "k", func(*call) (int, error) {
					runs.Add(1)
					time.Sleep(time.Second)
					return 7, nil
				})
				assert.NoError(t, err)
				assert.Equal(t, 7, v)
				if joined {
					shared.Add(1)
				}
			})
		}
		wg.Wait()
		assert.EqualValues(t, 1, runs.Load())
		assert.EqualValues(t, 99, shared.Load())
		assert.False(t, g.Running("k"))
	})
}

func TestEveryWaiterGetsTheSameError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		boom := errors.New("boom")
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				_, _, err := g.Do(t.Context(), "k", func(*call) (int, error) {
					time.Sleep(time.Second)
					return 0, boom
				})
				assert.Same(t, boom, err)
			})
		}
		wg.Wait()
		v, _, err := g.Do(t.Context(), "k", func(*call) (int, error) { return 1, nil })
		require.NoError(t, err, "an error must not outlive its flight")
		assert.Equal(t, 1, v)
	})
}

func TestTheFirstCallersContextGovernsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		type key struct{}
		leader, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "leader's"))
		work := func(c *call) (int, error) {
			assert.Nil(t, c.Context().Value(key{}), "a flight carries no caller's values")
			select {
			case <-time.After(time.Minute):
				return 7, nil
			case <-c.Context().Done():
				return 0, c.Context().Err()
			}
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _, err := g.Do(leader, "k", work)
			assert.ErrorIs(t, err, context.Canceled)
		})
		synctest.Wait()
		wg.Go(func() {
			v, shared, err := g.Do(t.Context(), "k", work)
			assert.NoError(t, err)
			assert.True(t, shared)
			assert.Equal(t, 7, v)
		})
		synctest.Wait()
		cancel()
		wg.Wait()
	})
}

func TestACancelledCallIsUnlinkedBeforeItIsTornDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		ctx, cancel := context.WithCancel(t.Context())
		tornDown := make(chan struct{})
		go func() {
			_, _, _ = g.Do(ctx, "k", func(c *call) (int, error) {
				<-c.Context().Done()
				<-tornDown // a slow tear-down
				return 0, c.Context().Err()
			})
		}()
		synctest.Wait()
		cancel()
		synctest.Wait()
		v, shared, err := g.Do(t.Context(), "k", func(*call) (int, error) { return 2, nil })
		require.NoError(t, err)
		assert.False(t, shared, "a newcomer must not join a dying call")
		assert.Equal(t, 2, v)
		close(tornDown)
	})
}

func TestPublishReleasesWaitersWhileTheCallGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		commit := make(chan struct{})
		fn := func(c *call) (int, error) {
			c.PublishUnder(7, "alias")
			<-commit
			return 8, errors.New("too late to matter")
		}
		for i, key := range []string{"k", "k", "alias"} {
			v, shared, err := g.Do(t.Context(), key, fn)
			require.NoError(t, err)
			assert.Equal(t, 7, v)
			assert.Equal(t, i > 0, shared)
		}
		assert.True(t, g.Running("k"), "it leaves the map when it has committed")
		close(commit)
		synctest.Wait()
		assert.False(t, g.Running("k"))
		assert.False(t, g.Running("alias"))
	})
}

func TestWaitIsForTheEndAndNotForTheValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		require.NoError(t, g.Wait(t.Context(), "k"), "nothing to wait for")
		start := time.Now()
		_, _, err := g.Do(t.Context(), "k", func(c *call) (int, error) {
			c.Publish(1)
			time.Sleep(time.Minute)
			return 0, nil
		})
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		assert.ErrorIs(t, g.Wait(ctx, "k"), context.DeadlineExceeded)
		require.NoError(t, g.Wait(t.Context(), "k"))
		assert.Equal(t, time.Minute, time.Since(start))
	})
}

func TestWhoAsksAfterAnAnswerGetsANewOne(t *testing.T) {
	var g group
	for i := range 10_000 {
		v, shared, err := g.Do(t.Context(), "k", func(*call) (int, error) { return i, nil })
		require.NoError(t, err)
		require.False(t, shared)
		require.Equal(t, i, v)
	}
}

func TestAPublishedCallOutlivesItsWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		var cancelled atomic.Bool
		_, _, err := g.Do(t.Context(), "k", func(c *call) (int, error) {
			c.Publish(1)
			time.Sleep(time.Hour)
			cancelled.Store(c.Context().Err() != nil)
			return 0, nil
		})
		require.NoError(t, err)
		time.Sleep(2 * time.Hour)
		assert.False(t, cancelled.Load())
	})
}

func TestAPanicReleasesEveryWaiter(t *testing.T) {
	for name, fn := range map[string]func(*call) (int, error){
		"panic":  func(*call) (int, error) { time.Sleep(time.Second); panic("at the disco") },
		"goexit": func(*call) (int, error) { time.Sleep(time.Second); runtime.Goexit(); return 0, nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g group
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() {
						_, _, err := g.Do(t.Context(), "k", fn)
						assert.Error(t, err)
						if p, ok := errors.AsType[*flight.PanicError](err); ok {
							assert.Equal(t, "at the disco", p.Value)
							assert.NotEmpty(t, p.Stack)
						} else {
							assert.Equal(t, "goexit", name)
						}
					})
				}
				wg.Wait()
				assert.False(t, g.Running("k"))
			})
		})
	}
}

func TestASecondKeyIsForTheValueOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		hold := make(chan struct{})
		v, _, err := g.Do(t.Context(), "k", func(c *call) (int, error) {
			c.Publish(1)
			c.PublishUnder(2, "alias")
			<-hold
			return 3, nil
		})
		require.NoError(t, err)
		assert.Equal(t, 1, v)
		synctest.Wait()
		assert.False(t, g.Running("alias"), "it would give 1")
		close(hold)
	})
}

func TestASecondKeyNeverTakesOneInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		hold := make(chan struct{})
		start := func(key string, v int, link string) {
			_, _, err := g.Do(t.Context(), key, func(c *call) (int, error) {
				if link == "" {
					c.Publish(v)
				} else {
					c.PublishUnder(v, link)
				}
				<-hold
				return 0, nil
			})
			require.NoError(t, err)
		}
		start("a", 1, "")
		start("b", 2, "a")
		v, _, err := g.Do(t.Context(), "a", nil)
		require.NoError(t, err)
		assert.Equal(t, 1, v)
		close(hold)
	})
}

func TestEveryWaiterHoldsTheValueItGets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var held atomic.Int32
		g := group{Acquire: func(int) { held.Add(1) }, Release: func(int) { held.Add(-1) }}
		publish := make(chan struct{})
		fn := func(c *call) (int, error) {
			<-publish
			c.Publish(7)
			time.Sleep(time.Second)
			return 0, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var got atomic.Int32
		for _, ctx := range []context.Context{ctx, t.Context(), t.Context()} {
			wg.Go(func() {
				if _, _, err := g.Do(ctx, "k", fn); err == nil {
					got.Add(1)
				}
			})
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(publish)
		wg.Wait()
		_, shared, err := g.Do(t.Context(), "k", fn)
		require.NoError(t, err)
		assert.True(t, shared)
		assert.EqualValues(t, 2, got.Load())
		assert.EqualValues(t, 3, held.Load(), "two that waited and one that came later")
		time.Sleep(2 * time.Second) // let the call end
	})
}

func TestAKeptCallGoesOnWhenEveryoneLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _, err := g.Do(ctx, "k", func(c *call) (int, error) {
			assert.True(t, c.Keep())
			time.Sleep(time.Minute)
			assert.NoError(t, c.Context().Err())
			return 7, nil
		})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		v, shared, err := g.Do(t.Context(), "k", nil)
		require.NoError(t, err)
		assert.True(t, shared)
		assert.Equal(t, 7, v)
	})
}

func TestACallThatEveryoneLeftCannotBeKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _, err := g.Do(ctx, "k", func(c *call) (int, error) {
			<-c.Context().Done()
			assert.False(t, c.Keep())
			return 0, nil
		})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		synctest.Wait()
	})
}
