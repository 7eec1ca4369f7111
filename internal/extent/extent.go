// Package extent knows which bytes of a download are there, which are on their way on
// a connection of their own, and what should be asked for next. It does no I/O and has
// no clock and no lock: its owner has all three.
//
// A download has a prefix, which the main stream makes longer, byte by byte: what is
// in the prefix has been hashed. Ahead of it lie the bytes that windows have brought.
// A window is a connection that fills one claim. Claims never overlap, neither each
// other nor bytes that are there, so each byte is written once.
//
// A download over several connections has no main stream: see [Map.Stripe]. Then all of
// them fill claims, and the prefix is how far the hash has come.
package extent

import (
	"cmp"
	"math"
	"slices"
)

// Guard is how far ahead of a connection another one must begin, at least. One write
// is never longer. So a write never reaches what has been given to another connection
// while it was under way.
const Guard = 256 << 10

// Span is the bytes from From to To, To excluded.
type Span struct{ From, To int64 }

// Len is how many bytes these are.
func (s Span) Len() int64 { return s.To - s.From }

// Claim is a stretch that one connection fills, in order. The bytes from From to Pos
// have come, those up to End are to come. Its fields are the [Map]'s to change, but for
// Rate.
type Claim struct {
	From, Pos, End int64
	Rate           float64 // bytes a second; 0: not measured yet
	InOrder        bool    // it is the next free stretch: all want it, and not only a reader that is there
}

// Map is what is there of a download, and what is on its way. The zero value is a
// download without a byte.
type Map struct {
	prefix  int64
	stripes int      // over how many connections the download comes; 0: there is a main stream
	have    []Span   // ahead of the prefix: sorted, disjoint, none ends where the next begins
	claims  []*Claim // sorted; what is to come of them is disjoint
}

// Prefix is how many bytes there are from the start on without a gap, all of them hashed.
func (m *Map) Prefix() int64 { return m.prefix }

// Stripe says that the download comes over n connections: from here on nobody brings a
// byte without a claim.
func (m *Map) Stripe(n int) { m.stripes = n }

// Striped reports whether the download comes over several connections.
func (m *Map) Striped() bool { return m.stripes > 0 }

// Advance makes the prefix n bytes longer.
func (m *Map) Advance(n int64) {
	m.prefix += n
	for len(m.have) > 0 && m.have[0].From < m.prefix {
		if m.have[0].To > m.prefix {
			m.have[0].From = m.prefix
			return
		}
		m.have = m.have[1:]
	}
}

// Gap is how many bytes the main stream has to bring before it meets what is there, or
// what a window brings. It is [math.MaxInt64] where it meets nothing.
func (m *Map) Gap() int64 {
	next := m.next(m.prefix)
	if next == math.MaxInt64 {
		return next
	}
	return next - m.prefix
}

// next is where, at off or behind it, the first byte lies that is there or claimed.
func (m *Map) next(off int64) int64 {
	next := int64(math.MaxInt64)
	for _, s := range m.have {
		if s.To > off {
			next = max(s.From, off)
			break
		}
	}
	for _, c := range m.claims {
		if c.End > off && c.Pos < c.End {
			next = min(next, max(c.Pos, off))
		}
	}
	return next
}

// Ahead is how many bytes there are at off, which is not in the prefix, without a gap.
// If there are none, c is the claim that brings them; nil: none does.
func (m *Map) Ahead(off int64) (n int64, c *Claim) {
	for _, s := range m.have {
		if s.From <= off && off < s.To {
			return s.To - off, nil
		}
	}
	return 0, m.claimAt(off)
}

func (m *Map) claimAt(off int64) *Claim {
	for _, c := range m.claims {
		if c.Pos <= off && off < c.End {
			return c
		}
	}
	return nil
}

// HasAhead reports whether anything is there, or claimed, ahead of the prefix.
func (m *Map) HasAhead() bool { return len(m.have) > 0 || len(m.claims) > 0 }

// Bytes is how many bytes there are in all.
func (m *Map) Bytes() int64 {
	n := m.prefix
	for _, s := range m.have {
		n += s.Len()
	}
	return n
}

// Claims are the claims that are open, in order.
func (m *Map) Claims() []*Claim { return m.claims }

// Claim gives a stretch of s to a new connection: from its first byte on, and up to the
// next byte that is there or claimed. Where another claim is to bring that first byte
// much later, that one ends there. nil: the first byte is there, or soon will be.
func (m *Map) Claim(s Span) *Claim {
	first := m.prefix + Guard
	if m.Striped() {
		first = m.prefix
	}
	if n, _ := m.Ahead(s.From); n > 0 || s.Len() <= 0 || s.From < first {
		return nil
	}
	if within := m.claimAt(s.From); within != nil {
		if s.From < within.Pos+Guard {
			return nil
		}
		s.To = min(s.To, within.End)
		within.End = s.From
	}
	s.To = min(s.To, m.next(s.From))
	c := &Claim{From: s.From, Pos: s.From, End: s.To}
	m.claims = append(m.claims, c)
	slices.SortFunc(m.claims, func(a, b *Claim) int { return int(min(1, max(-1, a.Pos-b.Pos))) })
	return c
}

// Fill notes that the next n bytes of the claim are there. They lie within it.
func (m *Map) Fill(c *Claim, n int64) {
	s := Span{max(c.Pos, m.prefix), c.Pos + n}
	c.Pos += n
	if s.Len() <= 0 {
		return
	}
	i, _ := slices.BinarySearchFunc(m.have, s.From, func(have Span, from int64) int {
		return int(min(1, max(-1, have.From-from)))
	})
	m.have = slices.Insert(m.have, i, s)
	m.join(i)
	m.join(i - 1)
}

// join makes one of the spans i and i+1 if nothing lies between them.
func (m *Map) join(i int) {
	if i >= 0 && i+1 < len(m.have) && m.have[i].To == m.have[i+1].From {
		m.have[i].To = m.have[i+1].To
		m.have = slices.Delete(m.have, i+1, i+2)
	}
}

// Have says that these bytes are there, ahead of the prefix, before anything else came.
func (m *Map) Have(spans []Span) { m.have = Union(spans) }

// Union is the same bytes as sorted spans, none of which overlaps or touches another.
func Union(spans []Span) []Span {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b Span) int { return cmp.Compare(a.From, b.From) })
	all := spans[:0]
	for _, s := range spans {
		if last := len(all) - 1; last >= 0 && s.From <= all[last].To {
			all[last].To = max(all[last].To, s.To)
		} else {
			all = append(all, s)
		}
	}
	return all
}

// Clip is what lies before the offset end, of spans that are sorted.
func Clip(spans []Span, end int64) (all []Span) {
	for _, s := range spans {
		if s.To = min(s.To, end); s.Len() > 0 {
			all = append(all, s)
		}
	}
	return all
}

// Missing is what comes first of size bytes and is not among spans, which are sorted: up to
// the next of them.
func Missing(size int64, spans []Span) Span {
	missing := Span{To: size}
	if len(spans) > 0 && spans[0].From == 0 {
		missing.From, spans = spans[0].To, spans[1:]
	}
	if len(spans) > 0 {
		missing.To = spans[0].From
	}
	return missing
}

// Drop ends the claim: what it has not brought may be given to another connection.
func (m *Map) Drop(c *Claim) {
	m.claims = slices.DeleteFunc(m.claims, func(other *Claim) bool { return other == c })
}
