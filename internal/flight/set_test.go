package flight_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
)

func TestShutdownDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var set flight.Set
		var g group
		g.Join(&set, "call")
		go func() {
			_, _, _ = g.Do(t.Context(), "quick", func(*call) (int, error) { time.Sleep(time.Second); return 1, nil })
		}()
		synctest.Wait()
		require.NoError(t, set.Shutdown(t.Context()))
		_, _, err := g.Do(t.Context(), "k", func(*call) (int, error) { return 1, nil })
		assert.ErrorIs(t, err, flight.ErrClosed)
	})
}

func TestShutdownCancelsWhatOutlastsItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var set flight.Set
		var g group
		g.Join(&set, "call")
		_, _, err := g.Do(t.Context(), "slow", func(c *call) (int, error) {
			c.Publish(1)
			<-c.Context().Done()
			return 0, nil
		})
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		assert.ErrorIs(t, set.Shutdown(ctx), context.DeadlineExceeded)
		assert.False(t, g.Running("slow"))
	})
}

func TestIdleWaitsForCallsThatCallsStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var set flight.Set
		var first, second group
		first.Join(&set, "first")
		second.Join(&set, "second")
		require.NoError(t, set.Idle(t.Context()), "nothing runs")
		_, _, err := first.Do(t.Context(), "a", func(c *call) (int, error) {
			c.Publish(1)
			time.Sleep(time.Second)
			_, _, err := second.Do(t.Context(), "b", func(c *call) (int, error) {
				c.Publish(2)
				time.Sleep(time.Second)
				return 0, nil
			})
			return 0, err
		})
		require.NoError(t, err)
		assert.Equal(t, []string{"first a"}, set.Running())
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		assert.ErrorIs(t, set.Idle(ctx), context.DeadlineExceeded)
		assert.Equal(t, []string{"second b"}, set.Running())
		start := time.Now()
		require.NoError(t, set.Idle(t.Context()))
		assert.Equal(t, 500*time.Millisecond, time.Since(start))
		assert.Zero(t, set.Len())
	})
}

func TestWhatWaitsEndsWhenTheSetIsClosed(t *testing.T) {
	s := new(flight.Set)
	ctx, stop := s.UntilClosed(t.Context())
	defer stop()
	stopped, stop := s.UntilClosed(t.Context())
	stop()
	assert.ErrorIs(t, context.Cause(stopped), context.Canceled)
	assert.NoError(t, ctx.Err())
	s.Close()
	<-ctx.Done()
	assert.ErrorIs(t, context.Cause(ctx), flight.ErrClosed)
	late, stop := s.UntilClosed(t.Context())
	defer stop()
	<-late.Done()
	assert.ErrorIs(t, context.Cause(late), flight.ErrClosed)
}
