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
	// leastStripe is the shortest stretch that one of several connections brings at a
	// time, where more is to come.
	leastStripe = 8 << 20
)

// Stripes is how many connections a blob of that size comes over, of at most n.
func Stripes(size int64, n int) int {
	if size < leastStripe*int64(n) {
		return 1
	}
	return n
}

// FirstStripe is the span that the first of n connections asks for, of a blob of that
// size; -1: nobody knows it. It is empty where the blob comes over one connection.
func FirstStripe(size int64, n int) Span {
	if n < 2 || size >= 0 && Stripes(size, n) < 2 {
		return Span{}
	}
	return Span{0, leastStripe}
}

// Free is where the first byte lies behind the prefix that is neither there nor claimed,
// up to the next that is. It is empty where there is none.
func (m *Map) Free(size int64) Span {
	off := m.prefix
	for off < size {
		n, c := m.Ahead(off)
		switch {
		case n > 0:
			off += n
		case c != nil:
			off = c.End
		default:
			return Span{off, min(size, m.next(off))}
		}
	}
	return Span{size, size}
}

// Stretch is what the next connection of a download over several brings: 8 MiB of the
// first free stretch, then more and more, so that the hash and readers follow closely. At
// the end it is less again, so that all connections end together.
func (m *Map) Stretch(size int64) Span {
	free, n := m.Free(size), int64(m.stripes)
	length := int64(leastStripe)
	for length < maxWindow && free.From >= n*(2*length-leastStripe) {
		length *= 2
	}
	length = max(leastStripe, min(length, (size-free.From)/(2*n)>>20<<20))
	if free.Len() >= length+leastStripe/2 {
		free.To = free.From + length
	}
	return free
}

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
	if m.Striped() {
		if next := m.Stretch(size); next.From == d.From {
			return next
		}
	}
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
	if m.Striped() && off >= m.prefix && n <= 0 && c == nil {
		return true // nobody is on the way to it
	}
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
		wanted := c.InOrder || c.From <= m.prefix || c.End-c.Pos <= minWindow+minGap || slices.ContainsFunc(demands, func(d Demand) bool {
			return d.From < c.End && d.From >= c.From && d.To > c.Pos
		})
		if !wanted {
			all = append(all, c)
		}
	}
	return all
}
