package pullthrough_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// longestWait is Retry-After: 2 and as much as a backoff of our own may be.
const longestWait = 2*time.Second + 5*time.Second

func inTwoSeconds(time.Time) string { return "2" }

func testS11(t *testing.T) {
	waitsOut(t, http.StatusTooManyRequests, inTwoSeconds, func(t *testing.T, waits []time.Duration) {
		differ := false
		for _, wait := range waits {
			assert.GreaterOrEqual(t, wait, 2*time.Second)
			differ = differ || wait != waits[0]
		}
		assert.True(t, differ, "all come back at the same instant: %v", waits)
	})
}

func testS12(t *testing.T) {
	waitsOut(t, http.StatusServiceUnavailable, inTwoSeconds, func(t *testing.T, waits []time.Duration) {
		for _, wait := range waits {
			assert.GreaterOrEqual(t, wait, 2*time.Second)
		}
	})
}

func testS13(t *testing.T) {
	date := func(now time.Time) string {
		return now.Truncate(time.Second).Add(2 * time.Second).UTC().Format(http.TimeFormat)
	}
	waitsOut(t, http.StatusTooManyRequests, date, func(t *testing.T, waits []time.Duration) {
		for _, wait := range waits {
			assert.GreaterOrEqual(t, wait, 2*time.Second)
		}
	})
}

// waitsOut pulls an image through five new proxies. One of the requests of each
// is answered with the status and header at first. check is given how long each
// of them took for its pull.
func waitsOut(t *testing.T, status int, header func(now time.Time) string, check func(*testing.T, []time.Duration)) {
	for name, match := range map[string]string{"manifest": manifestGets + " 200", "blob": blobs + " 200", "token": tokenCalls} {
		t.Run(name, func(t *testing.T) {
			up, enter := piped(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: -1})
			up.Push("a", "1", img)
			synctest.Test(t, func(t *testing.T) {
				var waits []time.Duration
				for range 5 {
					time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) // dates are whole seconds
					up.Reset()
					w, start := enter(t), time.Now()
					heal := up.Fault(pullthroughtest.Fault{
						Match: match, Times: 1, Status: status, Header: http.Header{"Retry-After": {header(start)}},
					})
					w.pull(t, "a", "1", img)
					waits = append(waits, time.Since(start))
					heal()
					assert.LessOrEqual(t, waits[len(waits)-1], longestWait)
					assert.Equal(t, 1, w.unauthorized())
					assert.Equal(t, 1, up.Count(tokenCalls+" 200"))
					assert.Equal(t, 5, up.Count(""), "each object once, and one once more: %q", up.Log())
				}
				check(t, waits)
			})
		})
	}
}
