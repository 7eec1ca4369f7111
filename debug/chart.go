package debug

import (
	"encoding/json"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
)

const (
	// chartBuckets is how many buckets the chart has, chartSeconds what each is about.
	chartBuckets = 60
	chartSeconds = 5
)

// bucket counts the requests that were answered in chartSeconds, and the fetches that ended.
type bucket struct {
	slot int64 // the time since 1970, in chartSeconds

	Hits    int64 `json:"hits"`   // the Store had it, fresh or stale
	Shared  int64 `json:"shared"` // another request had begun the fetch
	Fills   int64 `json:"fills"`  // fetched for the request
	Failed  int64 `json:"failed"`
	Bytes   int64 `json:"bytes"`   // the length of the content of the answers, whole
	Fetched int64 `json:"fetched"` // the length of the content of the fetches
}

// answered counts an answer.
func (b *bucket) answered(source pullthrough.Source, bytes int64) {
	switch source {
	case pullthrough.SourceFill:
		b.Fills++
	case pullthrough.SourceShared:
		b.Shared++
	default:
		b.Hits++
	}
	b.Bytes += bytes
}

// chart is a ring of the last buckets. The Page's mu guards it.
type chart [chartBuckets]bucket

func (c *chart) slot(n int64) *bucket {
	return &c[(n%chartBuckets+chartBuckets)%chartBuckets]
}

// at returns the bucket of the time.
func (c *chart) at(now time.Time) *bucket {
	n := now.Unix() / chartSeconds
	b := c.slot(n)
	if b.slot != n {
		*b = bucket{slot: n}
	}
	return b
}

// shownChart is the chart as the page shows it, the oldest bucket first. The last one is not
// over yet.
type shownChart struct {
	Seconds int      `json:"seconds"` // of each bucket
	Buckets []bucket `json:"buckets"`
}

// json is the chart for page.js, which draws it.
func (c shownChart) json() (string, error) {
	text, err := json.Marshal(c)
	return string(text), err
}

func (c *chart) latest(now time.Time) shownChart {
	shown := shownChart{chartSeconds, make([]bucket, chartBuckets)}
	last := now.Unix() / chartSeconds
	for i := range shown.Buckets {
		n := last - int64(chartBuckets-1-i)
		if b := c.slot(n); b.slot == n {
			shown.Buckets[i] = *b
		}
	}
	return shown
}
