package quota_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/quota"
)

func TestOneLaneLeavesRoomForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := quota.NewLanes[string](2, 3)
		take := func(key string) (func(), error) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return l.Take(ctx, key)
		}
		first, err := take("a")
		require.NoError(t, err)
		_, err = take("a")
		require.NoError(t, err)
		_, err = take("a")
		require.ErrorIs(t, err, context.DeadlineExceeded, "its lane is full")
		_, err = take("b")
		require.NoError(t, err, "that is another lane's business")
		_, err = take("c")
		require.NoError(t, err, "there are three, and each has one of its own")
		_, err = take("c")
		require.ErrorIs(t, err, context.DeadlineExceeded, "the others have all that is shared")
		_, err = take("c")
		require.ErrorIs(t, err, context.DeadlineExceeded, "what waited in vain has given its place back")
		first()
		last, err := take("c")
		require.NoError(t, err)
		last()
		_, err = take("a")
		require.NoError(t, err)
	})
}
