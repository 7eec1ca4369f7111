package hostcall_test

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
)

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
