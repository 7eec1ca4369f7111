package flight_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
)

// slow is the function of a call that lingers and has its value after d. ended gets
// when it ended, from its beginning, and why.
func slow(d time.Duration, ended func(after time.Duration, cause error)) func(*call) (int, error) {
	return func(c *call) (int, error) {
		c.Linger()
		start := time.Now()
		select {
		case <-time.After(d):
		case <-c.Context().Done():
		}
		if ended != nil {
			ended(time.Since(start), context.Cause(c.Context()))
		}
		return 7, context.Cause(c.Context())
	}
}

// impatient waits for key for d.
func impatient(t *testing.T, g *group, key string, d time.Duration, fn func(*call) (int, error)) error {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	_, _, err := g.Do(ctx, key, fn)
	return err
}

func TestTheNextTryFindsWhatTheLastOneBegan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		var runs atomic.Int32
		fn := func(c *call) (int, error) {
			runs.Add(1)
			return slow(65*time.Second, nil)(c)
		}
		assert.ErrorIs(t, impatient(t, &g, "k", 2*time.Second, fn), context.DeadlineExceeded)
		time.Sleep(29 * time.Second)
		assert.ErrorIs(t, impatient(t, &g, "k", 2*time.Second, fn), context.DeadlineExceeded)
		time.Sleep(29 * time.Second) // it lingers anew for each that leaves
		v, shared, err := g.Do(t.Context(), "k", fn)
		require.NoError(t, err)
		assert.True(t, shared)
		assert.Equal(t, 7, v)
		assert.EqualValues(t, 1, runs.Load())
	})
}

func TestACallThatNobodyComesBackToEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		before func(*call) // what the function does first
		lives  time.Duration
	}{
		"it lingers":           {(*call).Linger, time.Second + flight.Lingering},
		"it does not":          {func(*call) {}, time.Second},
		"it was kept":          {func(c *call) { c.Linger(); c.Keep() }, time.Hour},
		"it was, for a while":  {func(c *call) { c.Linger(); c.Keep(); c.Unkeep() }, time.Second + flight.Lingering},
		"it published":         {func(c *call) { c.Linger(); c.Publish(1) }, time.Hour},
		"it is not in the map": {func(c *call) { c.Linger(); c.Unlink() }, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g group
				var lived atomic.Int64
				_ = impatient(t, &g, "k", time.Second, func(c *call) (int, error) {
					tc.before(c)
					start := time.Now()
					select {
					case <-time.After(time.Hour):
					case <-c.Context().Done():
						assert.ErrorIs(t, context.Cause(c.Context()), flight.ErrDeserted)
						assert.False(t, c.Keep(), "another call may be under way")
					}
					lived.Store(int64(time.Since(start)))
					return 0, nil
				})
				time.Sleep(2 * time.Hour)
				assert.Equal(t, tc.lives, time.Duration(lived.Load()))
				assert.False(t, g.Running("k"))
			})
		})
	}
}

func TestUnkeepingWhatNobodyWaitsForEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		_ = impatient(t, &g, "k", time.Second, func(c *call) (int, error) {
			c.Keep()
			time.Sleep(time.Minute)
			c.Unkeep()
			assert.ErrorIs(t, context.Cause(c.Context()), flight.ErrDeserted)
			return 0, nil
		})
		time.Sleep(time.Hour)
	})
}

// Of the calls of all groups of a Set the oldest ends that nobody waits for.
func TestSoManyCallsLingerAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s flight.Set
		groups := [2]group{}
		for i := range groups {
			groups[i].Join(&s, "g")
		}
		var mu sync.Mutex
		ended := map[string]time.Duration{}
		for i := range flight.MaxLingering + 3 {
			key := fmt.Sprint(i)
			_ = impatient(t, &groups[i%2], key, time.Millisecond, slow(time.Hour, func(after time.Duration, _ error) {
				mu.Lock()
				defer mu.Unlock()
				ended[key] = after
			}))
			if i == 0 { // somebody comes back to it, and it is the youngest when he leaves
				_ = impatient(t, &groups[0], "0", time.Millisecond, nil)
			}
		}
		synctest.Wait()
		assert.Len(t, ended, 3)
		assert.Equal(t, flight.MaxLingering, s.Len())
		for _, key := range []string{"0", "1", "2"} {
			assert.Less(t, ended[key], time.Second, key)
		}
		require.NoError(t, s.Idle(t.Context()))
		assert.Less(t, ended["9"], flight.Lingering+time.Second)
	})
}

func TestAClosedSetEndsWhatLingers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s flight.Set
		var g group
		g.Join(&s, "g")
		_ = impatient(t, &g, "left", time.Second, slow(time.Hour, nil))
		go func() { _ = impatient(t, &g, "leaves later", time.Minute, slow(time.Hour, nil)) }()
		kept := func(c *call) (int, error) { c.Linger(); c.Keep(); time.Sleep(10 * time.Minute); return 1, nil }
		_ = impatient(t, &g, "kept", time.Second, kept)
		start := time.Now()
		s.Close()
		synctest.Wait()
		assert.Equal(t, 2, s.Len(), "what somebody waits for goes on, and what is kept")
		require.NoError(t, s.Shutdown(t.Context()))
		assert.Less(t, time.Since(start), 10*time.Minute)
	})
}

// Between the look whether anybody has the value and the end of the call nobody joins.
func TestADesertedCallIsJoinedByNobody(t *testing.T) {
	for range 300 {
		var held atomic.Int32
		var given atomic.Bool
		g := group{Acquire: func(int) { held.Add(1) }, Release: func(int) { held.Add(-1) }}
		fn := func(c *call) (int, error) {
			c.Keep()
			c.Publish(1)
			for !c.Desert(func() bool { return held.Load() == 0 }) {
				time.Sleep(time.Microsecond)
			}
			given.Store(true)
			return 1, nil
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				_, shared, err := g.Do(t.Context(), "k", fn)
				assert.NoError(t, err)
				assert.False(t, shared && given.Load() && held.Load() == 0)
				held.Add(-1)
			})
		}
		wg.Wait()
	}
}

func TestACallWithWaitersIsNotDeserted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		_ = impatient(t, &g, "k", time.Minute, func(c *call) (int, error) {
			c.Keep()
			assert.False(t, c.Desert(func() bool { return true }), "it has no value yet, and one waits")
			time.Sleep(2 * time.Minute)
			assert.True(t, c.Desert(func() bool { return true }))
			return 1, nil
		})
		time.Sleep(time.Hour)
	})
}

func TestASetNamesTheCallsThatLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s flight.Set
		var g group
		g.Join(&s, "blob")
		assert.Empty(t, s.Lingering())
		fn := slow(20*time.Second, nil)
		assert.ErrorIs(t, impatient(t, &g, "k", time.Second, fn), context.DeadlineExceeded)
		assert.Equal(t, []flight.Lingerer{{Group: "blob", Key: "k"}}, s.Lingering())
		var wg sync.WaitGroup
		wg.Go(func() { _ = impatient(t, &g, "k", time.Minute, fn) })
		synctest.Wait()
		assert.Empty(t, s.Lingering(), "somebody waits for it again")
		wg.Wait()
		assert.ErrorIs(t, impatient(t, &g, "other", time.Second, fn), context.DeadlineExceeded)
		time.Sleep(time.Minute)
		assert.Empty(t, s.Lingering(), "it has ended")
	})
}
