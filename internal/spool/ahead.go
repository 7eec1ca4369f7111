package spool

import (
	"errors"
	"slices"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
)

// near is how far ahead of the prefix a reader waits that the writer must not rest for.
const near = 1 << 20

// errNoWindow is what a window gets whose bytes are there or soon will be.
var errNoWindow = errors.New("spool: no window is needed here")

// ahead is what a spool has ahead of its prefix. It lies where it belongs, if that takes
// bytes in any order, else in a file of its own until it is its turn: the hash runs over
// what is stored, in order. The spool's lock guards it. It is empty as long as nobody reads
// far ahead, and there is one connection.
type ahead struct {
	scratch segment // where it lies; the zero segment: nowhere yet
	windows map[*Window]struct{}
	readers map[*Reader]struct{} // those that are, or were, ahead of the prefix
	parts   int                  // readers that may see the end
	resting bool                 // the writer rests until somebody waits near the prefix
}

// Part is a stretch that a client has asked for.
type Part struct {
	From, To int64 // To is excluded
	Open     bool  // the client has not said where it ends: it may stop before
}

// seat is where a reader waits, as far as others see it.
type seat struct {
	off     int64
	ahead   bool // it is, or was, ahead of the prefix
	waits   bool
	since   time.Time // it began to wait
	windows int       // how many windows it has begun to wait for in a row
}

// Ask says which parts the client of the reader has asked for, in order, before the first
// is read. If they are closed, and not all of the content, the reader sees the last
// [Withheld] bytes before Finish. What is far ahead of all that is on its way is asked for
// at once. A reader whose client has not said what it wants reads to the end.
func (r *Reader) Ask(parts []Part) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.s
	s.mu.Lock()
	var sum int64
	r.parts, r.tail = parts, s.size >= 0
	for _, p := range parts {
		sum += p.To - p.From
		r.tail = r.tail && !p.Open
	}
	r.tail = r.tail && sum < s.size
	if r.tail {
		s.ahead.parts++
	}
	tell := false
	if len(parts) > 1 && r.next == nil && s.err == nil && !s.finished && s.size > MemoryLimit {
		s.sitAheadLocked(r)
		tell = s.told != nil
	}
	s.mu.Unlock()
	if tell {
		s.told()
	}
}

// aheadLocked is how much there is for a reader ahead of the prefix, and the claim that
// brings it if there is nothing.
func (s *Spool) aheadLocked(r *Reader) (n int64, c *extent.Claim) {
	if r.off < s.got.Prefix() {
		return 0, nil
	}
	n, c = s.got.Ahead(r.off)
	if !r.tail {
		n = min(n, s.size-Withheld-r.off)
	}
	return n, c
}

// lookAheadLocked is look for what is not in the prefix.
func (s *Spool) lookAheadLocked(r *Reader) look {
	n, c := s.aheadLocked(r)
	if n > 0 {
		s.sitLocked(r, false)
		seg := s.ahead.scratch
		return look{n: n, seg: &seg}
	}
	began := s.sitLocked(r, true)
	l := look{wait: s.news.wait()}
	if c != nil {
		l.wait = s.windowOf(c).news.wait()
	}
	nobody := c == nil && s.got.Striped()
	switch distance := r.off - s.got.Prefix(); {
	case s.told == nil || s.size <= MemoryLimit || !r.tail && r.off >= s.size-Withheld:
	case distance <= near && s.ahead.resting:
		s.ahead.resting, l.tell = false, true
	case nobody, distance > extent.Guard && (c == nil || r.off-c.Pos > extent.Guard):
		if !r.seat.ahead {
			s.sitAheadLocked(r)
		}
		if began && c == nil {
			r.seat.windows++
		}
		l.tell = true
	}
	return l
}

func (s *Spool) windowOf(c *extent.Claim) *Window {
	for w := range s.ahead.windows {
		if w.claim == c {
			return w
		}
	}
	panic("spool: a claim without a window")
}

// sitLocked notes where the reader is and whether it waits there. It reports whether it
// has begun to.
func (s *Spool) sitLocked(r *Reader, waits bool) (began bool) {
	seat := &r.seat
	began = waits && (!seat.waits || seat.off != r.off)
	seat.off, seat.waits = r.off, waits
	if began && r.off > s.got.Prefix() {
		seat.since = time.Now()
	}
	return began
}

func (s *Spool) sitAheadLocked(r *Reader) {
	if s.ahead.readers == nil {
		s.ahead.readers = make(map[*Reader]struct{})
	}
	r.seat.ahead, r.seat.off = true, r.off
	if r.seat.since.IsZero() {
		r.seat.since = time.Now()
	}
	s.ahead.readers[r] = struct{}{}
}

// forgetWindows lets a reader that goes elsewhere begin with small windows again.
func (s *Spool) forgetWindows(r *Reader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.seat.windows = 0
}

// standUpLocked forgets a reader that leaves. It reports whether that may matter to a
// window.
func (s *Spool) standUpLocked(r *Reader) bool {
	if r.tail {
		s.ahead.parts--
	}
	delete(s.ahead.readers, r)
	return r.seat.ahead && len(s.ahead.windows) > 0
}

// demandsLocked are the readers ahead of the prefix, and the parts that they come to
// later.
func (s *Spool) demandsLocked() (all []extent.Demand) {
	for r := range s.ahead.readers {
		all = append(all, s.demandsOfLocked(r)...)
	}
	return all
}

func (s *Spool) demandsOfLocked(r *Reader) (all []extent.Demand) {
	now := extent.Demand{Open: true, Steps: max(0, r.seat.windows-1), Waits: r.seat.waits, Since: r.seat.since}
	now.Span = extent.Span{From: r.seat.off, To: s.size}
	for _, p := range r.parts {
		switch {
		case p.From > r.seat.off:
			later := extent.Demand{Open: p.Open, Waits: true, Since: r.seat.since}
			later.Span = extent.Span{From: p.From, To: p.To}
			all = append(all, later)
		case r.seat.off <= p.To:
			now.To, now.Open = p.To, p.Open
		}
	}
	if !r.tail { // it sees no more before the end is verified
		now.To = min(now.To, s.size-Withheld)
	}
	if r.seat.off < now.To {
		all = append(all, now)
	}
	return slices.DeleteFunc(all, func(d extent.Demand) bool { return !r.tail && d.From >= s.size-Withheld })
}

// Next is the stretch that should be asked for by a [Window] now; rate is what the writer
// brings in a second, 0 where nobody knows. ok is false where none should be.
func (s *Spool) Next(rate float64) (span extent.Span, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || s.finished || len(s.ahead.readers) == 0 || s.size <= MemoryLimit {
		return extent.Span{}, false
	}
	return extent.Next(&s.got, s.size, rate, s.demandsLocked())
}

// AnyAhead reports whether there are readers ahead of the prefix.
func (s *Spool) AnyAhead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.ahead.readers) > 0
}

// Unwanted are the windows that nobody waits for any more.
func (s *Spool) Unwanted() (all []*Window) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ahead.windows) == 0 {
		return nil
	}
	for _, c := range extent.Unwanted(&s.got, s.demandsLocked()) {
		all = append(all, s.windowOf(c))
	}
	return all
}

// Window is a stretch ahead of the prefix that a connection of its own fills, in order.
// Readers see its bytes at once. It is for one goroutine.
type Window struct {
	s     *Spool
	claim *extent.Claim
	file  Place
	news  beacon
}

// Open returns a window on the span, or on as much of it as nobody else brings. It fails
// where that is nothing, and where there is no place for it.
func (s *Spool) Open(span extent.Span) (*Window, error) {
	if err := s.openAhead(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.openLocked(span)
}

// OpenNext is Open of the next free stretch, for a connection that brings a part of all;
// alone: there is no other one for the time being, and it is a long stretch.
func (s *Spool) OpenNext(alone bool) (*Window, error) {
	if err := s.openAhead(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	span := s.got.Free(s.size)
	if !alone {
		span = s.got.Stretch(s.size)
	}
	w, err := s.openLocked(span)
	if err == nil {
		w.claim.InOrder = true
	}
	return w, err
}

func (s *Spool) openLocked(span extent.Span) (*Window, error) {
	if s.size <= MemoryLimit {
		return nil, errNoWindow
	}
	span.To = min(span.To, s.size)
	c := s.got.Claim(span)
	if c == nil {
		return nil, errNoWindow
	}
	w := &Window{s: s, claim: c, file: s.ahead.scratch.Place}
	if s.ahead.windows == nil {
		s.ahead.windows = make(map[*Window]struct{})
	}
	s.ahead.windows[w] = struct{}{}
	s.news.ring(s.readableLocked(s.ahead.parts > 0)) // who waits for these bytes waits for the window now
	for other := range s.ahead.windows {
		other.news.ring(other.news.told)
	}
	return w, nil
}

// openAhead makes sure that there is a place for what comes ahead.
func (s *Spool) openAhead() error {
	s.making.Lock()
	defer s.making.Unlock()
	s.mu.Lock()
	there := s.ahead.scratch.Place != nil
	s.mu.Unlock()
	if there {
		return nil
	}
	if s.sparse {
		home, err := s.home()
		if err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ahead.scratch = segment{Place: home.Place}
		return nil
	}
	f, err := createFile(s.dir)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead.scratch = segment{Place: f, own: f}
	return nil
}

// Sparse reports whether what comes ahead lies where it belongs at once, and so takes no
// room beside the content.
func (s *Spool) Sparse() bool { return s.sparse }

// Stripe says that the content comes over n connections: [Spool.Write] is not called until
// Stripe(0), and everything comes by a [Window]. n is 0 or at least 2.
func (s *Spool) Stripe(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got.Stripe(n)
}

// Span is what is to come of the window.
func (w *Window) Span() extent.Span {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	return extent.Span{From: w.claim.Pos, To: w.claim.End}
}

// SetRate says how many bytes a second the window brings.
func (w *Window) SetRate(rate float64) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.claim.Rate = rate
}

// Write adds p, which has at most [extent.Guard] bytes. What lies behind the end of the
// window is left out: n says how much is not. The end may have come closer meanwhile.
func (w *Window) Write(p []byte) (n int, err error) {
	span := w.Span()
	p = p[:min(int64(len(p)), span.Len())]
	if len(p) == 0 {
		return 0, nil
	}
	if err := writeAt(&segment{Place: w.file}, p, span.From); err != nil {
		return 0, err
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.got.Fill(w.claim, int64(len(p)))
	w.news.announce(&w.s.mu, w.claim.Pos-w.claim.From)
	return len(p), nil
}

// Close gives up what has not come.
func (w *Window) Close() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.got.Drop(w.claim)
	delete(w.s.ahead.windows, w)
	w.news.ring(0)
}

// Gap is how many bytes the writer has to bring before it meets what is there, or what a
// window brings: then [Spool.Ahead] says more.
func (s *Spool) Gap() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.Gap()
}

// Bytes returns how many bytes there are, ahead of the prefix and in it.
func (s *Spool) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.Bytes()
}

// Uncovered reports whether nobody brings the first byte that is not there.
func (s *Spool) Uncovered() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, _ := s.got.Ahead(s.got.Prefix())
	front := s.got.Prefix() + n
	return front < s.size && s.got.Free(s.size).From == front
}

// Ahead is how many bytes there are right behind the prefix already. If there are none and
// a window is to bring them, wait is closed when there is news. Where nobody but windows
// brings anything, it is in any case.
func (s *Spool) Ahead() (n int64, wait <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, c := s.got.Ahead(s.got.Prefix())
	switch {
	case c != nil:
		wait = s.windowOf(c).news.wait()
	case n <= 0 && s.got.Striped():
		wait = s.news.wait()
	}
	return n, wait
}

// ReadAhead fills p with the bytes behind the prefix, which are there. The writer hashes
// them, and then they are in the prefix by [Spool.TakeAhead].
func (s *Spool) ReadAhead(p []byte) error {
	s.mu.Lock()
	seg, off := s.ahead.scratch, s.got.Prefix()
	s.mu.Unlock()
	_, err := (&look{seg: &seg}).readAt(p, off)
	return err
}

// TakeAhead is Write of the bytes that ReadAhead has read. They are written only where they
// are not yet where they belong.
func (s *Spool) TakeAhead(p []byte) (int, error) {
	s.mu.Lock()
	if len(s.segments) == 0 || s.segments[len(s.segments)-1].Place != s.ahead.scratch.Place {
		s.mu.Unlock()
		return s.Write(p)
	}
	defer s.mu.Unlock()
	s.advanceLocked(p)
	return len(p), nil
}

// Rest reports whether nobody waits for what the writer brings next. Then Changed is called
// when somebody does.
func (s *Spool) Rest() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.readers {
		if r.seat.waits && r.seat.off-s.got.Prefix() <= near {
			return false
		}
	}
	s.ahead.resting = true
	return true
}
