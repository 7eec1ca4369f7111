package quota_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/quota"
)

func TestWhoAsksFirstIsServedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := quota.New(10)
		require.NoError(t, q.Take(t.Context(), 8))
		var mu sync.Mutex
		var order []int64
		for _, n := range []int64{5, 1} {
			go func() {
				assert.NoError(t, q.Take(t.Context(), n))
				mu.Lock()
				defer mu.Unlock()
				order = append(order, n)
			}()
			synctest.Wait()
		}
		assert.Empty(t, order, "a small claim does not overtake a large one")
		q.Give(8)
		synctest.Wait()
		assert.ElementsMatch(t, []int64{5, 1}, order)
		q.Give(6)
		require.NoError(t, q.Take(t.Context(), 10), "nothing was lost")
	})
}

func TestWhoGivesUpLetsOthersPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := quota.New(10)
		require.NoError(t, q.Take(t.Context(), 8))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		served := false
		go func() {
			assert.NoError(t, q.Take(t.Context(), 1))
			served = true
		}()
		go func() { assert.ErrorIs(t, q.Take(ctx, 5), context.DeadlineExceeded) }()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		assert.True(t, served)
		q.Give(9)
		require.NoError(t, q.Take(t.Context(), 10))
	})
}

func TestMoreThanThereIs(t *testing.T) {
	assert.ErrorIs(t, quota.New(10).Take(t.Context(), 11), quota.ErrTooMuch)
	var endless *quota.Quota
	assert.NoError(t, endless.Take(t.Context(), 1<<60))
	endless.Give(1 << 60)
	assert.Nil(t, quota.New(0))
}

func TestClaimsBehindAreMetLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := quota.New(4)
		require.NoError(t, q.Take(t.Context(), 4))
		var mu sync.Mutex
		var order []string
		wait := func(name string, take func(context.Context, int64) error) {
			go func() {
				assert.NoError(t, take(t.Context(), 1))
				mu.Lock()
				defer mu.Unlock()
				order = append(order, name)
			}()
			synctest.Wait()
		}
		wait("behind", q.TakeBehind)
		wait("first", q.Take)
		wait("second", q.Take)
		for range 3 {
			q.Give(1)
			synctest.Wait()
		}
		assert.Equal(t, []string{"first", "second", "behind"}, order)
	})
}

func TestClaimsBehindHaveHalf(t *testing.T) {
	q := quota.New(5)
	assert.True(t, q.TryTakeBehind(1))
	assert.True(t, q.TryTakeBehind(1))
	assert.False(t, q.TryTakeBehind(1), "of five they have two")
	assert.True(t, q.TryTake(3))
	q.GiveBehind(1)
	assert.True(t, q.TryTakeBehind(1))
	q.GiveBehind(2)
	q.Give(3)
	assert.True(t, q.TryTakeBehind(5), "one of them may have all, or it would never be met")
	q.GiveBehind(5)
	assert.True(t, q.TryTake(5), "nothing was lost")

	one := quota.New(1)
	assert.True(t, one.TryTakeBehind(1))
	assert.False(t, one.TryTake(1))
}

func TestClaimsBehindGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := quota.New(2)
		require.NoError(t, q.TakeBehind(t.Context(), 1))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		assert.ErrorIs(t, q.TakeBehind(ctx, 1), context.DeadlineExceeded)
		assert.ErrorIs(t, q.TakeBehind(t.Context(), 3), quota.ErrTooMuch)
		q.GiveBehind(1)
		assert.NoError(t, q.TakeBehind(t.Context(), 2))
	})
}
