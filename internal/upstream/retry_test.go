package upstream_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// longestWait is Retry-After: 2 and as much as a backoff of our own may be.
const longestWait = 2*time.Second + 5*time.Second

func inTwoSeconds(time.Time) string { return "2" }

func testRateLimitIsWaitedFor(t *testing.T) {
	waitsOut(t, http.StatusTooManyRequests, inTwoSeconds, func(t *testing.T, waits []time.Duration) {
		differ := false
		for _, wait := range waits {
			assert.GreaterOrEqual(t, wait, 2*time.Second)
			differ = differ || wait != waits[0]
		}
		assert.True(t, differ, "all come back at the same instant: %v", waits)
	})
}

func testOverloadIsWaitedFor(t *testing.T) {
	waitsOut(t, http.StatusServiceUnavailable, inTwoSeconds, func(t *testing.T, waits []time.Duration) {
		for _, wait := range waits {
			assert.GreaterOrEqual(t, wait, 2*time.Second)
		}
	})
}

func testRetryAfterAsADate(t *testing.T) {
	date := func(now time.Time) string {
		return now.Truncate(time.Second).Add(2 * time.Second).UTC().Format(http.TimeFormat)
	}
	waitsOut(t, http.StatusTooManyRequests, date, func(t *testing.T, waits []time.Duration) {
		for _, wait := range waits {
			assert.GreaterOrEqual(t, wait, 2*time.Second)
		}
	})
}

// limited are the requests of a pull that upstream can ask to wait.
var limited = map[string]struct {
	match    string
	cut      bool // the layer's first answer breaks off
	requests int  // of the whole pull
}{
	"manifest":       {manifestGets + " 200", false, 6},
	"blob":           {testkit.Blobs + " 200", false, 6},
	"rest of a blob": {testkit.Blobs + " 206", true, 7},
	"token":          {tokenCalls, false, 6},
}

// waitsOut pulls an image through five new proxies. One of the requests of each
// is answered with the status and header at first. check is given how long each
// of them took for its pull.
func waitsOut(t *testing.T, status int, header func(now time.Time) string, check func(*testing.T, []time.Duration)) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 100_000})
	for name, kind := range limited {
		t.Run(name, func(t *testing.T) {
			up, enter := testkit.Piped(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
			up.Push("a", "1", img)
			synctest.Test(t, func(t *testing.T) {
				var waits []time.Duration
				for range 5 {
					time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) // dates are whole seconds
					up.Reset()
					up.Heal()
					w, start := enter(t), time.Now()
					up.Fault(pullthroughtest.Fault{
						Match: kind.match, Times: 1, Status: status, Header: http.Header{"Retry-After": {header(start)}},
					})
					if kind.cut {
						up.Fault(pullthroughtest.Fault{Match: "*" + img.Layers[0].Digest.Encoded() + " 200", CutAfter: new(int64(90_000))})
					}
					w.Pull(t, "a", "1", img)
					waits = append(waits, time.Since(start))
					assert.LessOrEqual(t, waits[len(waits)-1], longestWait)
					assert.Equal(t, 1, unauthorized(w))
					assert.Equal(t, 1, up.Count(tokenCalls+" 200"))
					assert.Equal(t, kind.requests, up.Count(""), "one is sent once more: %q", up.Log())
				}
				check(t, waits)
			})
		})
	}
}
