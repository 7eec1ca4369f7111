package flight_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
)

// a shelf gets the values of calls in the order of their turns.
type shelf struct {
	mu     sync.Mutex
	values []int
	busy   bool
}

// stored are the values in the order in which they came.
func (s *shelf) stored() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.values)
}

func (s *shelf) put(t *testing.T, v int, d time.Duration) {
	s.mu.Lock()
	assert.False(t, s.busy, "one at a time")
	s.busy = true
	s.mu.Unlock()
	time.Sleep(d)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = false
	s.values = append(s.values, v)
}

// calling returns the function of a call whose value is out after a second, and that
// takes d for storing it.
func (s *shelf) calling(t *testing.T, v int, d time.Duration) func(*call) (int, error) {
	return func(c *call) (int, error) {
		time.Sleep(time.Second)
		c.Publish(v)
		if !c.Turn() {
			return v, nil
		}
		s.put(t, v, d)
		return v, nil
	}
}

func always(int) bool { return true }

// renewed asks for the value of a new call.
func renewed(t *testing.T, g *group, fn func(*call) (int, error)) int {
	t.Helper()
	start := time.Now()
	v, shared, err := g.Renew(t.Context(), "k", always, fn)
	require.NoError(t, err)
	assert.False(t, shared)
	assert.Equal(t, time.Second, time.Since(start), "nobody waits for the storing")
	return v
}

func TestValuesAreStoredInTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		var s shelf
		for v := 1; v <= 5; v++ {
			assert.Equal(t, v, renewed(t, &g, s.calling(t, v, time.Hour)))
			synctest.Wait()
			assert.LessOrEqual(t, g.Len(), 2, "one stores, and the newest waits")
		}
		v, shared, err := g.Do(t.Context(), "k", nil)
		require.NoError(t, err)
		assert.True(t, shared)
		assert.Equal(t, 5, v, "the newest is what is joined")
		time.Sleep(3 * time.Hour)
		assert.Equal(t, []int{1, 5}, s.stored())
		assert.False(t, g.Running("k"))
		renewed(t, &g, s.calling(t, 6, 0))
		synctest.Wait()
		assert.Equal(t, []int{1, 5, 6}, s.stored(), "nothing is left of the calls before")
	})
}

// Who waits for a call that is passed waits for the one that stores in its place.
func TestWaitOutlastsACallThatIsPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		var s shelf
		renewed(t, &g, s.calling(t, 1, time.Hour))
		renewed(t, &g, s.calling(t, 2, time.Hour))
		seen := make(chan []int, 1)
		go func() {
			assert.NoError(t, g.Wait(t.Context(), "k"))
			seen <- s.stored()
		}()
		synctest.Wait()
		renewed(t, &g, s.calling(t, 3, time.Hour))
		time.Sleep(3 * time.Hour)
		assert.Equal(t, []int{1, 3}, <-seen)
	})
}

func TestAValueThatIsNotTooOldIsJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		var s shelf
		renewed(t, &g, s.calling(t, 1, time.Hour))
		v, shared, err := g.Renew(t.Context(), "k", func(v int) bool { return v != 1 }, nil)
		require.NoError(t, err)
		assert.True(t, shared)
		assert.Equal(t, 1, v)
		time.Sleep(2 * time.Hour)
	})
}

// A call that ends without a value gives its place back.
func TestTheCallBeforeTakesItsPlaceBack(t *testing.T) {
	for name, fail := range map[string]func(*call) (int, error){
		"an error":           func(*call) (int, error) { return 0, errors.New("boom") },
		"a panic":            func(*call) (int, error) { panic("boom") },
		"its waiters leave":  func(c *call) (int, error) { <-c.Context().Done(); return 0, c.Context().Err() },
		"it unlinks itself":  func(c *call) (int, error) { c.Unlink(); return 0, errors.New("boom") },
		"it is shut out now": func(c *call) (int, error) { c.Unlink(); <-c.Context().Done(); return 0, c.Context().Err() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g group
				var s shelf
				renewed(t, &g, s.calling(t, 1, time.Hour))
				renewed(t, &g, s.calling(t, 2, time.Hour))
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, _, err := g.Renew(ctx, "k", always, fail)
				require.Error(t, err)
				synctest.Wait()
				v, shared, err := g.Do(t.Context(), "k", nil)
				require.NoError(t, err)
				assert.True(t, shared)
				assert.Equal(t, 2, v)
				renewed(t, &g, s.calling(t, 3, time.Hour))
				time.Sleep(3 * time.Hour)
				assert.Equal(t, []int{1, 3}, s.stored())
				assert.False(t, g.Running("k"))
			})
		})
	}
}

func TestTwoWhoFindTheValueTooOldStartOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		var s shelf
		renewed(t, &g, s.calling(t, 1, time.Hour))
		go renewed(t, &g, s.calling(t, 2, time.Hour))
		synctest.Wait()
		v, shared, err := g.Renew(t.Context(), "k", always, s.calling(t, 3, time.Hour))
		require.NoError(t, err)
		assert.True(t, shared)
		assert.Equal(t, 2, v)
		time.Sleep(3 * time.Hour)
		assert.Equal(t, []int{1, 2}, s.stored())
	})
}

// Many take each other's place before any of them waits for its turn.
func TestACallPassesAllThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		var s shelf
		go renewed(t, &g, s.calling(t, 0, time.Hour))
		time.Sleep(2 * time.Second)
		hold := make(chan struct{})
		for v := range 5 {
			_, _, err := g.Renew(t.Context(), "k", always, func(c *call) (int, error) {
				c.Publish(v)
				<-hold
				if c.Turn() {
					s.put(t, v+1, time.Minute)
				}
				return v, nil
			})
			require.NoError(t, err)
		}
		close(hold)
		time.Sleep(3 * time.Hour)
		stored := s.stored()
		assert.Equal(t, 0, stored[0])
		assert.Equal(t, 5, stored[len(stored)-1])
		assert.True(t, slices.IsSorted(stored))
		assert.False(t, g.Running("k"))
	})
}

// A Shutdown ends those that wait for their turn.
func TestATurnEndsWithTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var set flight.Set
		var g group
		g.Join(&set, "call")
		var s shelf
		renewed(t, &g, func(c *call) (int, error) {
			time.Sleep(time.Second)
			c.Publish(1)
			<-c.Context().Done()
			return 1, nil
		})
		renewed(t, &g, s.calling(t, 2, 0))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		assert.ErrorIs(t, set.Shutdown(ctx), context.DeadlineExceeded)
		assert.Empty(t, s.stored())
		assert.Zero(t, g.Len())
		assert.False(t, g.Running("k"))
	})
}

// A call that is unlinked goes on for those who wait, and nobody joins it or a call whose
// place it has taken.
func TestUnlinkedCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		gate := make(chan struct{})
		first := func(c *flight.Call[string, int]) (int, error) {
			c.Publish(1)
			<-gate
			return 0, nil
		}
		second := func(c *flight.Call[string, int]) (int, error) {
			c.Publish(2)
			<-gate
			return 0, nil
		}
		v, _, err := g.Do(t.Context(), "a", first)
		require.NoError(t, err)
		require.Equal(t, 1, v)
		v, _, err = g.Renew(t.Context(), "a", func(int) bool { return true }, second)
		require.NoError(t, err)
		require.Equal(t, 2, v)
		_, _, err = g.Do(t.Context(), "b", first)
		require.NoError(t, err)
		g.Unlink(func(key string) bool { return key == "a" })
		assert.False(t, g.Running("a"))
		assert.True(t, g.Running("b"))
		v, shared, err := g.Do(t.Context(), "a", func(*flight.Call[string, int]) (int, error) { return 3, nil })
		assert.Equal(t, []any{3, false, nil}, []any{v, shared, err})
		assert.False(t, g.Running("a"), "neither comes back")

		soon, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		assert.NoError(t, g.Settle(t.Context(), func(string, int) bool { return false }))
		assert.ErrorIs(t, g.Settle(soon, func(key string, v int) bool { return key == "b" && v == 1 }), context.DeadlineExceeded)
		time.AfterFunc(time.Second, func() { close(gate) })
		assert.NoError(t, g.Settle(t.Context(), func(key string, _ int) bool { return key == "b" }))
		synctest.Wait()
		assert.Zero(t, g.Len())
	})
}
