package extent

import (
	"slices"
	"time"
)

const (
	// A reader that would wait for longer than Patience, at a place more than [Guard]
	// ahead of the connection that comes there, gets a window.
	Patience = 100 * time.Millisecond
	// GuessedRate is what a connection brings before anything was measured.
	GuessedRate = 10 << 20

	minWindow = 256 << 10
	maxWindow = 64 << 20
	// minGap is the longest stretch that is not left between a window and the next bytes
	// that are there: it is fetched with the window.
	minGap = 64 << 10
	// firstStep is what is asked for a reader that does not say where it ends. Each
	// further window of its is twice as long.
	firstStep = 1 << 20
)

// Demand is a reader ahead of the prefix: where it is, and up to where it reads.
type Demand struct {
	Span
	Open  bool      // the end is only the end of the blob: the reader may leave before
	Steps int       // how many windows an open demand has had in a row
	Waits bool      // it waits at From
	Since time.Time // for so long
}

// want is the window that a demand wants of a blob of that size.
func (d Demand) want(m *Map, size int64) Span {
	n := d.Len()
	if d.Open {
		n = min(n, firstStep<<min(d.Steps, 6))
	}
	to := d.From + min(max(n, minWindow), maxWindow)
	next := size
	if c := m.claimAt(d.From); c != nil {
		next = min(next, c.End)
	} else {
		next = min(next, m.next(d.From))
	}
	if next-to <= minGap {
		to = next
	}
	return Span{d.From, to}
}

// Next is the window that should be opened next: for the one that has waited longest
// of those that wait for long. rate is what the main stream brings in a second. ok is
// false where none should be.
func Next(m *Map, size int64, rate float64, demands []Demand) (s Span, ok bool) {
	demands = slices.Clone(demands)
	slices.SortStableFunc(demands, func(a, b Demand) int { return a.Since.Compare(b.Since) })
	for _, d := range demands {
		if d.Waits && d.From < size && m.isFar(d.From, rate) {
			return d.want(m, size), true
		}
	}
	return Span{}, false
}

// isFar reports whether it takes long until the byte at off comes.
func (m *Map) isFar(off int64, rate float64) bool {
	n, c := m.Ahead(off)
	if n > 0 || off < m.prefix+Guard {
		return false
	}
	from := m.prefix
	if n, _ := m.Ahead(from); n > 0 { // that is soon hashed
		from += n
	}
	switch {
	case c != nil:
		from = c.Pos
		if c.Rate > 0 {
			rate = c.Rate
		}
	case off >= m.next(from):
		return off-from > Guard // nobody is on the way to it
	}
	return IsFar(off-from, rate)
}

// IsFar reports whether a byte that is so far away from a connection that brings rate
// bytes a second is worth another connection. A rate of 0 is not measured yet.
func IsFar(distance int64, rate float64) bool {
	if rate <= 0 {
		rate = GuessedRate
	}
	return distance > Guard && float64(distance) > rate*Patience.Seconds()
}

// Early is the window for a demand for which nothing has been asked yet, of a blob
// whose size need not be known: To may lie behind its end.
func Early(d Demand, rate float64) (s Span, ok bool) {
	if !IsFar(d.From, rate) {
		return Span{}, false
	}
	return d.want(new(Map), max(d.To, d.From+minWindow)), true
}

// Unwanted are the claims that no demand is for and that the main stream has not
// reached, but for those that are all but done.
func Unwanted(m *Map, demands []Demand) (all []*Claim) {
	for _, c := range m.claims {
		wanted := c.From <= m.prefix || c.End-c.Pos <= minWindow+minGap || slices.ContainsFunc(demands, func(d Demand) bool {
			return d.From < c.End && d.From >= c.From && d.To > c.Pos
		})
		if !wanted {
			all = append(all, c)
		}
	}
	return all
}
