package otelpullthrough_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A pull and its fetch find each other in either order; what is of another time or another
// object is left alone.
func TestWhatIsTiedTogether(t *testing.T) {
	pull := pullthrough.Event{Kind: pullthrough.EventBlob, Request: pullthrough.Request{Repo: repo("a"), Ref: "sha256:1"}, Source: pullthrough.SourceFill, Duration: 10 * time.Second}
	fetch := pullthrough.Event{Kind: pullthrough.EventFetch, Object: pullthrough.EventBlob, Request: pull.Request, Source: pullthrough.SourceFill, Duration: 10 * time.Second}
	other := fetch
	other.Request.Repo = repo("b")
	hit := pull
	hit.Source = pullthrough.SourceHit
	for name, tc := range map[string]struct {
		first, second pullthrough.Event
		between       time.Duration
		tied          bool
	}{
		"the pull is answered while the fetch goes on": {pull, fetch, time.Second, true},
		"the fetch ends first":                         {fetch, pull, time.Second, true},
		"both end at once":                             {fetch, pull, 0, true},
		"the pull was answered before the fetch began": {pull, fetch, 11 * time.Second, false},
		"the fetch had ended before the pull began":    {fetch, pull, 11 * time.Second, false},
		"a fetch of another repository":                {pull, other, time.Second, false},
		"a hit":                                        {hit, fetch, time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			o := observe(t, pullthroughtest.Config{})
			now := time.Unix(1_000_000_000, 0)
			o.Observer.Now = func() time.Time { return now }
			o.Record(t.Context(), tc.first)
			now = now.Add(tc.between)
			o.Record(t.Context(), tc.second)
			spans := o.spans.GetSpans()
			require.Len(t, spans, 2)
			assert.Equal(t, tc.tied, isTiedTo(spans[0], spans[1]))
			assert.Equal(t, now, spans[1].EndTime)
			assert.Equal(t, now.Add(-10*time.Second), spans[1].StartTime)
		})
	}
}

func TestLinksAreFew(t *testing.T) {
	o := observe(t, pullthroughtest.Config{})
	pull := pullthrough.Event{Kind: pullthrough.EventBlob, Request: pullthrough.Request{Repo: repo("a"), Ref: "sha256:1"}, Source: pullthrough.SourceShared}
	for range 1000 {
		o.Record(t.Context(), pull)
	}
	o.Record(t.Context(), pullthrough.Event{Kind: pullthrough.EventFetch, Object: pullthrough.EventBlob, Request: pull.Request, Duration: time.Hour})
	assert.Len(t, o.one(t, "fetch blob").Links, 64)
}
