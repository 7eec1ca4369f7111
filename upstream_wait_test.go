package pullthrough_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// limiting is an upstream that answers the first requests of a kind with status
// and a Retry-After of the moment.
func limiting(line string, times, status int, retryAfter func(now time.Time) string) func(http.ResponseWriter, *http.Request) bool {
	var met atomic.Int64
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method+" "+r.URL.Path != line || met.Add(1) > int64(times) {
			return false
		}
		w.Header().Set("Retry-After", retryAfter(time.Now()))
		w.WriteHeader(status)
		return true
	}
}

const oneManifest = "GET /v2/a/manifests/1"

// retryAfters are values of Retry-After, and what a pull does.
var retryAfters = map[string]struct {
	value    func(now time.Time) string
	min, max time.Duration // to the next request; max 0: the pull fails at once
	told     time.Duration // in the error, at least
}{
	"seconds":              {inText("2"), 2 * time.Second, 4 * time.Second, 0},
	"10 seconds":           {inText("10"), 10 * time.Second, 12 * time.Second, 0},
	"a date":               {inDate(2 * time.Second), 2 * time.Second, 5 * time.Second, 0},
	"a minute":             {inText("60"), 0, 0, time.Minute},
	"a day":                {inText("86400"), 0, 0, 24 * time.Hour},
	"a date in an hour":    {inDate(time.Hour), 0, 0, time.Hour},
	"years":                {inText("99999999"), 0, 0, time.Hour},
	"the year 9999":        {inText("Fri, 31 Dec 9999 23:59:59 GMT"), 0, 0, time.Hour},
	"more than 64 bits":    {inText("99999999999999999999"), 0, 0, 24 * time.Hour},
	"zero":                 {inText("0"), 0, 200 * time.Millisecond, 0},
	"negative":             {inText("-5"), 0, 200 * time.Millisecond, 0},
	"a fraction":           {inText("1.5"), 0, 200 * time.Millisecond, 0},
	"garbage":              {inText("soon"), 0, 200 * time.Millisecond, 0},
	"nothing":              {inText(""), 0, 200 * time.Millisecond, 0},
	"a date in the past":   {inDate(-time.Hour), 0, 200 * time.Millisecond, 0},
	"the date of a moment": {inText("Sat, 01 Jan 2000 00:00:00 GMT"), 0, 200 * time.Millisecond, 0},
}

func inDate(d time.Duration) func(time.Time) string {
	return func(now time.Time) string { return now.Add(d + time.Second - 1).UTC().Format(http.TimeFormat) }
}

func inText(s string) func(time.Time) string { return func(time.Time) string { return s } }

func testRetryAfterIsHeeded(t *testing.T) {
	for name, c := range retryAfters {
		for status, kind := range map[int]error{429: pullthrough.ErrRateLimited, 503: pullthrough.ErrUnavailable} {
			t.Run(fmt.Sprint(status, ", ", name), func(t *testing.T) {
				config := pullthroughtest.Config{Handler: limiting(oneManifest, 1, status, c.value)}
				inTime(t, config, nil, func(t *testing.T, p *pipeworks) {
					err := pullsManifest(t.Context(), t, p)
					if c.max == 0 {
						assertRetryAfter(t, err, kind, status, c.told)
						assert.Zero(t, time.Since(p.arrivals(oneManifest)[0].at), "nobody was kept waiting")
						assert.Equal(t, 1, p.Up.Count("*"))
						return
					}
					require.NoError(t, err)
					require.Len(t, p.gaps(oneManifest), 1)
					assert.GreaterOrEqual(t, p.gaps(oneManifest)[0], c.min)
					assert.LessOrEqual(t, p.gaps(oneManifest)[0], c.max)
				})
			})
		}
	}
	t.Run("tokens and blobs", testRetryAfterInEveryAnswer)
	t.Run("four times", func(t *testing.T) {
		inTime(t, pullthroughtest.Config{Handler: limiting(oneManifest, 9, 429, inText("10"))}, nil, func(t *testing.T, p *pipeworks) {
			start := time.Now()
			err := pullsManifest(t.Context(), t, p)
			assertRetryAfter(t, err, pullthrough.ErrRateLimited, 429, 10*time.Second)
			assert.LessOrEqual(t, time.Since(start), 36*time.Second)
			assert.Equal(t, 4, p.Up.Count("*"))
		})
	})
	t.Run("jitter", testWaitsDiffer)
}

func testRetryAfterInEveryAnswer(t *testing.T) {
	layer := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1000, LayerSize: 1000}).Layers[0]
	for name, line := range map[string]string{"a token": "GET /token", "a blob": "GET /v2/a/blobs/" + layer.Digest.String()} {
		t.Run(name, func(t *testing.T) {
			config := pullthroughtest.Config{Auth: pullthroughtest.Bearer, Handler: limiting(line, 1, 503, inText("2"))}
			inTime(t, config, nil, func(t *testing.T, p *pipeworks) {
				require.NoError(t, p.Whole(t.Context(), p.Layer(1000).Digest))
				require.NotEmpty(t, p.gaps(line))
				assert.GreaterOrEqual(t, p.gaps(line)[0], 2*time.Second)
			})
		})
	}
}

func assertRetryAfter(t *testing.T, err, kind error, status int, atLeast time.Duration) {
	t.Helper()
	assert.ErrorIs(t, err, kind)
	e, ok := errors.AsType[*pullthrough.Error](err)
	if assert.True(t, ok) {
		assert.Equal(t, status, e.Status)
		assert.GreaterOrEqual(t, e.RetryAfter, atLeast)
	}
}

// testWaitsDiffer: those who failed together must not come back together.
func testWaitsDiffer(t *testing.T) {
	firsts := map[time.Duration]bool{}
	for range 8 {
		policy := testkit.WithPolicy(pullthrough.Policy{Retries: 9})
		inTime(t, pullthroughtest.Config{}, policy, func(t *testing.T, p *pipeworks) {
			p.Up.Fault(pullthroughtest.Fault{Status: 500})
			assert.ErrorIs(t, pullsManifest(t.Context(), t, p), pullthrough.ErrUnavailable)
			gaps := p.gaps("GET ")
			require.Len(t, gaps, 9)
			limit := 200 * time.Millisecond
			for i, gap := range gaps {
				assert.LessOrEqual(t, gap, limit, i)
				limit = min(2*limit, 5*time.Second)
			}
			firsts[gaps[0]] = true
		})
	}
	assert.Greater(t, len(firsts), 4)
}

// thoughtful takes its time for manifests, so that others could ask meanwhile.
var thoughtful = pullthroughtest.Config{Handler: func(_ http.ResponseWriter, r *http.Request) bool {
	if strings.Contains(r.URL.Path, "/manifests/") {
		time.Sleep(thinking)
	}
	return false
}}

const thinking = 100 * time.Millisecond

func testHundredPullsWaitTogether(t *testing.T) {
	for name, value := range map[string]string{"with Retry-After": "5", "without": ""} {
		limit := pullthroughtest.Fault{Match: "GET /v2/a/manifests/*", Status: 429, Header: http.Header{"Retry-After": {value}}}
		t.Run("for ever, "+name, func(t *testing.T) {
			inTime(t, thoughtful, nil, func(t *testing.T, p *pipeworks) { testHundredPullsOfALimitWithoutEnd(t, p, limit) })
		})
		t.Run("for a while, "+name, func(t *testing.T) {
			limit.Times = 2
			inTime(t, thoughtful, nil, func(t *testing.T, p *pipeworks) { testHundredPullsOfALimitThatEnds(t, p, limit) })
		})
	}
}

func testHundredPullsOfALimitWithoutEnd(t *testing.T, p *pipeworks, limit pullthroughtest.Fault) {
	images := p.hundred()
	_, err := p.Resolve(t.Context(), images[0].Digest.String()) // it is known how upstream answers
	require.NoError(t, err)
	p.Up.Reset()
	p.Up.Fault(limit)
	var wg sync.WaitGroup
	pull := func(ref string) {
		wg.Go(func() {
			_, err := p.Resolve(t.Context(), ref)
			assert.ErrorIs(t, err, pullthrough.ErrRateLimited)
		})
	}
	pull("0")
	time.Sleep(thinking)
	synctest.Wait()
	for i := range 99 {
		pull(fmt.Sprint(i + 1))
	}
	start := time.Now()
	assert.NoError(t, p.Whole(t.Context(), images[0].Layers[0].Digest), "blobs are not limited")
	assertTook(t, 0, start)
	wg.Wait()
	assert.LessOrEqual(t, p.Up.Count("GET /v2/a/manifests/*"), 4)
}

func testHundredPullsOfALimitThatEnds(t *testing.T, p *pipeworks, limit pullthroughtest.Fault) {
	p.hundred()
	p.Up.Fault(limit)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			_, err := p.Resolve(t.Context(), fmt.Sprint(i))
			assert.NoError(t, err)
		})
		if i == 0 {
			time.Sleep(thinking)
			synctest.Wait()
		}
	}
	wg.Wait()
	assert.Equal(t, 2, p.Up.Count("* 429"))
	assert.Equal(t, 100, p.Up.Count("GET /v2/a/manifests/* 200"))
}

// hundred pushes the tags 0 to 99 to the repository a.
func (p *pipeworks) hundred() (images []*pullthroughtest.Image) {
	for i := range 100 {
		images = append(images, pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i)}))
		p.Up.Push("a", fmt.Sprint(i), images[i])
	}
	return images
}
