package extent_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
)

// at is a demand that waits.
func at(from, to int64) extent.Demand {
	return extent.Demand{Span: extent.Span{From: from, To: to}, Waits: true}
}

func open(from int64, steps int) extent.Demand {
	d := at(from, 1024*mib)
	d.Open, d.Steps = true, steps
	return d
}

func since(d extent.Demand, seconds int64) extent.Demand {
	d.Since = time.Unix(seconds, 0)
	return d
}

// with is a download of which there are these many bytes at the start, and of which
// windows have brought, and are to bring, the spans.
func with(prefix int64, have []extent.Span, claims ...extent.Span) *extent.Map {
	m := new(extent.Map)
	for _, s := range have {
		c := m.Claim(s)
		m.Fill(c, s.Len())
		m.Drop(c)
	}
	for _, s := range claims {
		m.Claim(s)
	}
	m.Advance(prefix)
	return m
}

func TestNextWindow(t *testing.T) {
	none := extent.Span{}
	for name, c := range map[string]struct {
		m       *extent.Map
		rate    float64
		demands []extent.Demand
		want    extent.Span
	}{
		"nobody waits":                          {m: with(0, nil)},
		"one that reads":                        {m: with(0, nil), demands: []extent.Demand{{Span: extent.Span{From: 900 * mib, To: 901 * mib}}}},
		"at the prefix":                         {m: with(mib, nil), demands: []extent.Demand{at(mib, 2*mib)}},
		"near":                                  {m: with(mib, nil), demands: []extent.Demand{at(2*mib, 3*mib)}},
		"far":                                   {m: with(mib, nil), demands: []extent.Demand{at(3*mib, 4*mib)}, want: extent.Span{From: 3 * mib, To: 4 * mib}},
		"near on a slow line":                   {m: with(mib, nil), rate: 1e6, demands: []extent.Demand{at(2*mib, 3*mib)}, want: extent.Span{From: 2 * mib, To: 3 * mib}},
		"very near on a line that stands still": {m: with(mib, nil), rate: 1, demands: []extent.Demand{at(mib+256*kib, 3*mib)}},
		"far on a fast line":                    {m: with(mib, nil), rate: 1e9, demands: []extent.Demand{at(90*mib, 91*mib)}},
		"a few bytes":                           {m: with(0, nil), demands: []extent.Demand{at(100*mib, 100*mib+5)}, want: extent.Span{From: 100 * mib, To: 100*mib + 256*kib}},
		"at the end":                            {m: with(0, nil), demands: []extent.Demand{at(1024*mib-5, 1024*mib)}, want: extent.Span{From: 1024*mib - 5, To: 1024 * mib}},
		"almost to the end":                     {m: with(0, nil), demands: []extent.Demand{at(1024*mib-300*kib, 1024*mib-299*kib)}, want: extent.Span{From: 1024*mib - 300*kib, To: 1024 * mib}},
		"more than one window brings":           {m: with(0, nil), demands: []extent.Demand{at(100*mib, 900*mib)}, want: extent.Span{From: 100 * mib, To: 164 * mib}},
		"open":                                  {m: with(0, nil), demands: []extent.Demand{open(100*mib, 0)}, want: extent.Span{From: 100 * mib, To: 101 * mib}},
		"open, for the third time":              {m: with(0, nil), demands: []extent.Demand{open(100*mib, 2)}, want: extent.Span{From: 100 * mib, To: 104 * mib}},
		"open, for a long time":                 {m: with(0, nil), demands: []extent.Demand{open(100*mib, 90)}, want: extent.Span{From: 100 * mib, To: 164 * mib}},
		"up to what is there":                   {m: with(0, []extent.Span{{From: 101 * mib, To: 102 * mib}}), demands: []extent.Demand{at(100*mib, 103*mib)}, want: extent.Span{From: 100 * mib, To: 101 * mib}},
		"with the gap before what is there":     {m: with(0, []extent.Span{{From: 101 * mib, To: 102 * mib}}), demands: []extent.Demand{at(100*mib, 101*mib-60*kib)}, want: extent.Span{From: 100 * mib, To: 101 * mib}},
		"what is there":                         {m: with(0, []extent.Span{{From: 100 * mib, To: 102 * mib}}), demands: []extent.Demand{at(101*mib, 103*mib)}},
		"soon to come":                          {m: with(0, nil, extent.Span{From: 100 * mib, To: 164 * mib}), demands: []extent.Demand{at(100*mib+300*kib, 103*mib)}},
		"late in another's window":              {m: with(0, nil, extent.Span{From: 100 * mib, To: 164 * mib}), demands: []extent.Demand{at(150*mib, 151*mib)}, want: extent.Span{From: 150 * mib, To: 151 * mib}},
		"behind another's window, and near":     {m: with(100*mib-300*kib, nil, extent.Span{From: 100 * mib, To: 101 * mib}), demands: []extent.Demand{at(101*mib, 102*mib)}, want: extent.Span{From: 101 * mib, To: 102 * mib}},
		"behind what is there":                  {m: with(100*mib, []extent.Span{{From: 100 * mib, To: 120 * mib}}), demands: []extent.Demand{at(120*mib, 122*mib)}},
		"far behind what is there":              {m: with(100*mib, []extent.Span{{From: 100 * mib, To: 120 * mib}}), demands: []extent.Demand{at(122*mib, 123*mib)}, want: extent.Span{From: 122 * mib, To: 123 * mib}},
		"the one that has waited longest":       {m: with(0, nil), demands: []extent.Demand{since(at(100*mib, 101*mib), 9), since(at(200*mib, 201*mib), 7), since(at(300*mib, 301*mib), 8)}, want: extent.Span{From: 200 * mib, To: 201 * mib}},
		"behind the end":                        {m: with(0, nil), demands: []extent.Demand{at(1024*mib, 1025*mib)}},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := extent.Next(c.m, 1024*mib, c.rate, c.demands)
			assert.Equal(t, c.want, got)
			assert.Equal(t, c.want != none, ok)
		})
	}
}

func TestWindowOfAFirstRequest(t *testing.T) {
	for name, c := range map[string]struct {
		d    extent.Demand
		want extent.Span
	}{
		"near":   {d: at(mib, 2*mib)},
		"far":    {d: at(20*mib, 21*mib), want: extent.Span{From: 20 * mib, To: 21 * mib}},
		"little": {d: at(20*mib, 20*mib+1), want: extent.Span{From: 20 * mib, To: 20*mib + 256*kib}},
		"open":   {d: open(20*mib, 0), want: extent.Span{From: 20 * mib, To: 21 * mib}},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := extent.Early(c.d, 0)
			assert.Equal(t, c.want, got)
			assert.Equal(t, c.want.To > 0, ok)
		})
	}
}

func TestUnwantedWindows(t *testing.T) {
	claim := extent.Span{From: 100 * mib, To: 164 * mib}
	for name, c := range map[string]struct {
		prefix   int64
		fill     int64
		demands  []extent.Demand
		unwanted bool
	}{
		"nobody there":                {unwanted: true},
		"one waits":                   {demands: []extent.Demand{at(100*mib, 101*mib)}},
		"one reads what has come":     {fill: 5 * mib, demands: []extent.Demand{{Span: extent.Span{From: 101 * mib, To: 900 * mib}}}},
		"one has all that it wanted":  {fill: 5 * mib, demands: []extent.Demand{{Span: extent.Span{From: 101 * mib, To: 102 * mib}}}, unwanted: true},
		"one is before it":            {demands: []extent.Demand{at(99*mib, 900*mib)}, unwanted: true},
		"one is behind it":            {demands: []extent.Demand{at(164*mib, 900*mib)}, unwanted: true},
		"all but done":                {fill: 64*mib - 200*kib},
		"the main stream is there":    {prefix: 100 * mib},
		"the main stream comes close": {prefix: 99 * mib, unwanted: true},
	} {
		t.Run(name, func(t *testing.T) {
			m := with(0, nil, claim)
			m.Fill(m.Claims()[0], c.fill)
			m.Advance(c.prefix)
			if c.unwanted {
				assert.Equal(t, m.Claims(), extent.Unwanted(m, c.demands))
			} else {
				assert.Empty(t, extent.Unwanted(m, c.demands))
			}
		})
	}
}

// stretches are what so many connections bring of a blob, in order.
func stretches(m *extent.Map, size int64) (all []extent.Span) {
	for s := m.Stretch(size); s.Len() > 0; s = m.Stretch(size) {
		all = append(all, s)
		m.Claim(s)
	}
	return all
}

func TestStretches(t *testing.T) {
	for name, c := range map[string]struct {
		n       int
		size    int64
		lengths []int64 // MiB
	}{
		"two":                  {2, 16 * mib, []int64{8, 8}},
		"a little more":        {2, 20*mib - 1, []int64{8, 12}},
		"much more":            {2, 20 * mib, []int64{8, 8, 4}},
		"four":                 {4, 256 * mib, []int64{8, 8, 8, 8, 16, 16, 16, 16, 20, 17, 15, 13, 11, 10, 9, 8, 8, 8, 8, 8, 8, 8, 9}},
		"sixteen, a little":    {16, 128 * mib, []int64{8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8}},
		"four, of a large one": {4, 4096 * mib, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m := new(extent.Map)
			m.Stripe(c.n)
			var lengths []int64
			var at int64
			for _, s := range stretches(m, c.size) {
				assert.Equal(t, at, s.From)
				at = s.To
				assert.LessOrEqual(t, s.Len(), 64*mib)
				lengths = append(lengths, (s.Len()+mib/2)/mib)
			}
			assert.Equal(t, c.size, at)
			if c.lengths != nil {
				assert.Equal(t, c.lengths, lengths)
			} else {
				assert.Contains(t, lengths, int64(64))
				assert.Less(t, len(lengths), 100)
			}
		})
	}
}

func TestFirstStripe(t *testing.T) {
	for _, c := range []struct {
		size int64
		n    int
		want int64
	}{{-1, 0, 0}, {-1, 1, 0}, {1024 * mib, 1, 0}, {-1, 2, 8 * mib}, {16*mib - 1, 2, 0}, {16 * mib, 2, 8 * mib}, {0, 2, 0}} {
		assert.Equal(t, extent.Span{To: c.want}, extent.FirstStripe(c.size, c.n))
	}
}

// A stretch that nobody brings is asked for at once, and as long as the next one.
func TestNextWindowOfSeveralConnections(t *testing.T) {
	m := new(extent.Map)
	m.Stripe(4)
	m.Claim(extent.Span{To: 8 * mib})
	got, ok := extent.Next(m, 1024*mib, 0, []extent.Demand{at(8*mib, 9*mib)})
	assert.True(t, ok)
	assert.Equal(t, extent.Span{From: 8 * mib, To: 16 * mib}, got)
	m.Claim(extent.Span{From: 8 * mib, To: 16 * mib}).InOrder = true
	assert.Equal(t, []*extent.Claim(nil), extent.Unwanted(m, nil))
}
