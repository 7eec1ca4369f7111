package extent_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
)

// download is a Map beside what it says, byte by byte. A connection takes a while for
// each write: it is decided, other things happen, and then it is done.
type download struct {
	*testing.T
	extent.Map
	rand    *rand.Rand
	stored  []byte // what was written, by anybody
	writes  []byte // how often each byte was
	hashed  []byte // what went through the hash, in order
	main    int64  // a write of the main stream that is under way
	windows map[*extent.Claim]int64
	readers []extent.Demand
}

const size = 3 << 20

func newDownload(t *testing.T, seed uint64) *download {
	return &download{
		T: t, rand: rand.New(rand.NewPCG(seed, 1)),
		stored: make([]byte, size), writes: make([]byte, size), windows: make(map[*extent.Claim]int64),
	}
}

// write stores n bytes at off that a connection has brought. Upstream may lie: any
// bytes may come.
func (d *download) write(off, n int64) {
	lie := byte(d.rand.Uint32())
	for i := off; i < off+n; i++ {
		d.stored[i] = lie + byte(i)
		d.writes[i]++
	}
}

// some is a number from 1 to max.
func (d *download) some(max int64) int64 { return 1 + d.rand.Int64N(max) }

// mainReads begins a write of the main stream, or ends the one that is under way.
func (d *download) mainReads() {
	if d.Striped() { // it is one of those that fill claims
		if c := d.Claim(d.Stretch(size)); c != nil {
			d.windows[c] = 0
		}
		return
	}
	if d.main > 0 {
		from := d.Prefix()
		d.write(from, d.main)
		d.hashed = append(d.hashed, d.stored[from:from+d.main]...)
		d.Advance(d.main)
		d.main = 0
		return
	}
	if room := min(d.Gap(), size-d.Prefix(), extent.Guard); room > 0 {
		d.main = d.some(room)
	}
}

// catchUp brings the prefix over what is there.
func (d *download) catchUp() {
	if d.main > 0 || d.Prefix() == size {
		return
	}
	if n, _ := d.Ahead(d.Prefix()); n > 0 {
		n, from := d.some(n), d.Prefix()
		d.hashed = append(d.hashed, d.stored[from:from+n]...)
		d.Advance(n)
	}
}

func (d *download) open() {
	s, ok := extent.Next(&d.Map, size, 0, d.readers)
	if !ok || d.rand.IntN(3) == 0 {
		from := d.rand.Int64N(size)
		s = extent.Span{From: from, To: min(size, from+d.some(1<<20))}
	}
	if c := d.Claim(s); c != nil {
		require.Equal(d, s.From, c.From)
		d.windows[c] = 0
	}
}

// windowReads does that with each window, or ends it.
func (d *download) windowReads() {
	for c, n := range d.windows {
		switch {
		case n > 0:
			require.LessOrEqual(d, c.Pos+n, c.End)
			d.write(c.Pos, n)
			d.Fill(c, n)
			d.windows[c] = 0
		case c.Pos == c.End || d.rand.IntN(20) == 0:
			d.Drop(c)
			delete(d.windows, c)
		default:
			d.windows[c] = d.some(min(c.End-c.Pos, extent.Guard))
		}
	}
}

func (d *download) read() {
	if len(d.readers) > 5 {
		d.readers = d.readers[1:]
	}
	from := d.rand.Int64N(size)
	d.readers = append(d.readers, extent.Demand{
		Span: extent.Span{From: from, To: from + d.some(size-from)}, Open: d.rand.IntN(2) == 0, Waits: true, Since: time.Unix(d.rand.Int64N(9), 0),
	})
}

// check looks at each byte, in steps.
func (d *download) check() {
	claimed := map[int64]bool{}
	for _, c := range d.Claims() {
		for at := c.Pos + (4096-c.Pos%4096)%4096; at < c.End; at += 4096 {
			require.False(d, claimed[at], "claimed twice")
			claimed[at] = true
		}
	}
	var there int64
	for at := int64(0); at < size; at++ {
		if d.writes[at] > 1 {
			require.Fail(d, "written twice", "byte %d", at)
		}
		there += int64(d.writes[at])
		if at%4096 == 0 && at >= d.Prefix() {
			n, c := d.Ahead(at)
			require.Equal(d, d.writes[at] == 1, n > 0, "%d", at)
			require.Equal(d, claimed[at], c != nil)
		}
	}
	require.Equal(d, there, d.Bytes())
	require.True(d, bytes.Equal(d.stored[:d.Prefix()], d.hashed), "the hash is of what is stored")
}

// covered makes sure that nobody waits for what nobody fetches.
func (d *download) covered() {
	for {
		s, ok := extent.Next(&d.Map, size, 0, d.readers)
		if !ok {
			break
		}
		c := d.Claim(s)
		require.NotNil(d, c, "a window that cannot be opened: %v", s)
		d.windows[c] = 0
	}
	for _, r := range d.readers {
		if !d.Striped() && r.From < d.Prefix()+extent.Guard || r.From < d.Prefix() {
			continue // the main stream is there soon
		}
		n, c := d.Ahead(r.From)
		front := d.Prefix()
		if n, _ := d.Ahead(front); n > 0 {
			front += n
		}
		near := r.From-front <= extent.GuessedRate/10
		assert.True(d, n > 0 || c != nil || near, "nobody fetches byte %d", r.From)
	}
}

func TestAnyOrderOfWindows(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			d := newDownload(t, seed)
			if seed%3 == 0 {
				d.Stripe(4)
			}
			ways := []func(){d.mainReads, d.mainReads, d.catchUp, d.catchUp, d.open, d.windowReads, d.windowReads, d.read}
			for i := 0; d.Prefix() < size; i++ {
				ways[d.rand.IntN(len(ways))]()
				if i%100 == 0 {
					d.check()
				}
				if i%10 == 0 {
					d.covered()
				}
			}
			d.check()
			assert.Len(t, d.hashed, size)
			assert.EqualValues(t, math.MaxInt64, d.Gap())
			assert.False(t, len(d.Claims()) > len(d.windows))
		})
	}
}
