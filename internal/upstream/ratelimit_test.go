package upstream_test

import (
	"context"
	"errors"
	"io"
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

// The end of the probe's own client is no answer: the next request is the probe. That
// the connection fails is one: all that wait are to fail at once.
func TestAProbeThatIsGivenUpEndsNoPause(t *testing.T) {
	for name, tc := range map[string]struct {
		leaves      time.Duration // when the client that probes leaves
		least, most int32         // how many requests are sent in the second after that
	}{
		"its client leaves":        {1500 * time.Millisecond, 1, 1},
		"the connection is broken": {time.Hour, 50, 51},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var sent atomic.Int32
				c := upstream.New(upstream.Config{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
					switch sent.Add(1) {
					case 2:
						select {
						case <-r.Context().Done():
							return nil, r.Context().Err()
						case <-time.After(500 * time.Millisecond):
							return nil, io.ErrUnexpectedEOF
						}
					}
					time.Sleep(10 * time.Millisecond)
					return answer(r, 429, http.Header{"Retry-After": {"1"}}), nil
				})})
				target := &upstream.Target{Base: mustParse(t, "https://r.example"), Name: "a"}
				ctx, cancel := context.WithTimeout(t.Context(), tc.leaves)
				defer cancel()
				var wg sync.WaitGroup
				wg.Go(func() { _, _ = c.Manifest(ctx, target, "1", upstream.Pull) })
				time.Sleep(1400 * time.Millisecond)
				for range 50 {
					wg.Go(func() { _, _ = c.Manifest(t.Context(), target, "1", upstream.Pull) })
				}
				time.Sleep(time.Second)
				synctest.Wait()
				assert.GreaterOrEqual(t, sent.Load(), 2+tc.least)
				assert.LessOrEqual(t, sent.Load(), 2+tc.most)
				wg.Wait()
			})
		})
	}
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
