package upstream_test

import (
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
)

// After the wait one request asks, and its answer decides for all.
func TestAHundredThatWaitAskOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent atomic.Int32
		c := upstream.New(upstream.Config{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			if sent.Add(1) <= 2 {
				time.Sleep(10 * time.Millisecond)
				return answer(r, 429, http.Header{"Retry-After": {"5"}}), nil
			}
			return answer(r, 404, nil), nil
		})})
		target := &upstream.Target{Base: mustParse(t, "https://r.example"), Name: "a"}
		pull := func() {
			_, err := c.Manifest(t.Context(), target, "1", upstream.Pull)
			assert.ErrorIs(t, err, upstream.ErrNotFound)
		}
		var wg sync.WaitGroup
		wg.Go(pull)
		time.Sleep(time.Second)
		for range 100 {
			wg.Go(pull)
		}
		start := time.Now()
		time.Sleep(6 * time.Second) // the first wait is over, and the probe was refused
		assert.EqualValues(t, 2, sent.Load())
		wg.Wait()
		assert.EqualValues(t, 2+101, sent.Load(), "one probe of each round, and then all")
		assert.Less(t, time.Since(start), 15*time.Second)
	})
}

func TestACheckDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sent := 0
		c := upstream.New(upstream.Config{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			sent++
			return answer(r, 429, http.Header{"Retry-After": {"60"}}), nil
		})})
		target := &upstream.Target{Base: mustParse(t, "https://r.example"), Name: "a"}
		start := time.Now()
		for range 2 {
			_, err := c.Manifest(t.Context(), target, "1", upstream.Check)
			e, ok := errors.AsType[*upstream.Error](err)
			require.True(t, ok)
			assert.Equal(t, upstream.ErrRateLimited, e.Kind)
			assert.Equal(t, "r.example", e.Host)
			assert.Equal(t, time.Minute, e.RetryAfter)
		}
		assert.Equal(t, 1, sent, "the registry named a time")
		assert.Zero(t, time.Since(start))
	})
}
