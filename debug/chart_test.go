package debug_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/debug"
)

func TestTheChartShowsTheLastFiveMinutes(t *testing.T) {
	now := time.Unix(1_000_000_000, 0)
	page := &debug.Page{Now: func() time.Time { return now }}
	tell := func(n int, e pullthrough.Event) {
		for range n {
			page.Record(t.Context(), e)
		}
	}
	buckets := func() []shownBucket {
		chart := getJSON(t, page).Chart
		assert.Equal(t, 5, chart.Seconds)
		require.Len(t, chart.Buckets, 60)
		return chart.Buckets
	}
	fetch := pullthrough.Event{Kind: pullthrough.EventFetch, Object: pullthrough.EventBlob, Bytes: 100}
	tell(3, pullthrough.Event{Kind: pullthrough.EventManifest, Source: pullthrough.SourceHit, Bytes: 10})
	tell(1, pullthrough.Event{Kind: pullthrough.EventManifest, Source: pullthrough.SourceStale, Bytes: 10, Request: pullthrough.Request{Head: true}})
	tell(2, pullthrough.Event{Kind: pullthrough.EventBlob, Source: pullthrough.SourceShared, Bytes: 100})
	tell(1, pullthrough.Event{Kind: pullthrough.EventBlob, Source: pullthrough.SourceFill, Bytes: 100})
	tell(1, pullthrough.Event{Kind: pullthrough.EventBlob, Err: errors.New("broken")})
	tell(2, fetch)
	tell(1, pullthrough.Event{Kind: pullthrough.EventStoreFailed})
	first := shownBucket{Hits: 4, Shared: 2, Fills: 1, Failed: 1, Bytes: 330, Fetched: 200}
	assert.Equal(t, first, buckets()[59])

	now = now.Add(10 * time.Second)
	fetch.Err = errors.New("cut")
	tell(1, fetch)
	tell(1, pullthrough.Event{Kind: pullthrough.EventBlob, Source: pullthrough.SourceRevalidated, Bytes: 1})
	b := buckets()
	assert.Equal(t, []shownBucket{first, {}, {Hits: 1, Bytes: 1}}, b[57:])
	assert.Equal(t, make([]shownBucket, 57), b[:57])

	now = now.Add(285 * time.Second)
	assert.Equal(t, []shownBucket{first, {}, {Hits: 1, Bytes: 1}}, buckets()[:3])
	now = now.Add(5 * time.Second)
	assert.Equal(t, shownBucket{}, buckets()[0], "it is over")
	tell(1, pullthrough.Event{Kind: pullthrough.EventBlob, Source: pullthrough.SourceHit}) // in the place of the first
	assert.Equal(t, shownBucket{Hits: 1}, buckets()[59])

	now = time.Time{} // a clock may say anything
	tell(1, pullthrough.Event{Kind: pullthrough.EventBlob, Source: pullthrough.SourceHit})
	assert.Equal(t, shownBucket{Hits: 1}, buckets()[59])
}
