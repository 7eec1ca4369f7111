package pullthroughtest

import (
	"bytes"
	"context"
	"math"
	"net/http"
	"time"
)

// faultBody writes an answer's body with its fault applied. It must be used by one goroutine at a time.
type faultBody struct {
	*Fault
	ctx     context.Context // ends when the client has gone or the registry closes
	answer  *answer
	at      int64     // bytes written
	end     int64     // bytes from this offset on are omitted; math.MaxInt64: none
	flip    int64     // offset of the byte to flip; negative: none
	stalled bool      // the stall has begun, and happens only once
	rawDone bool      // Raw has been written
	due     time.Time // when the bytes that were written are due at Rate
}

func newFaultBody(ctx context.Context, a *answer, length int64) *faultBody {
	b := &faultBody{Fault: a.fault, ctx: ctx, answer: a, end: math.MaxInt64, flip: -1}
	if b.Truncate > 0 && length >= 0 {
		b.end = max(0, length-b.Truncate)
	}
	if b.Flip != nil {
		b.flip = *b.Flip
		if b.flip < 0 && length >= 0 {
			b.flip += length
		}
	}
	return b
}

// start applies the parts of the fault that come before the header.
func (b *faultBody) start() {
	if b.RawAfter == nil {
		b.writeRaw()
	}
	if b.StallAfter == nil {
		b.stall()
	}
	if b.CutAfter != nil && *b.CutAfter < 0 {
		b.answer.cut()
	}
}

func (b *faultBody) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		b.applyAtOffset()
		portion := b.portion(p[done:])
		if len(portion) == 0 {
			return len(p), nil // truncated; the handler must not notice
		}
		n, err := b.answer.send(portion)
		b.at += int64(n)
		done += n
		if err != nil {
			return done, err
		}
		b.throttle(n)
	}
	return done, nil
}

// finish writes the body that replaces the handler's, if there is one, and what comes after the body.
func (b *faultBody) finish(other []byte) {
	_, err := b.Write(other)
	b.end = math.MaxInt64
	zeros := make([]byte, min(max(b.Extend, 0), 64<<10))
	for left := b.Extend; left > 0 && err == nil; {
		var n int
		n, err = b.Write(zeros[:min(left, int64(len(zeros)))])
		left -= int64(n)
	}
	b.applyAtOffset()
}

// applyAtOffset writes Raw, stalls or cuts the answer if the answer has reached the offset for it.
func (b *faultBody) applyAtOffset() {
	if b.RawAfter != nil && *b.RawAfter-1 == b.at {
		b.answer.flush() // see portion
	}
	if b.RawAfter != nil && *b.RawAfter == b.at {
		b.answer.flush()
		b.writeRaw()
	}
	if b.StallAfter != nil && *b.StallAfter == b.at {
		b.answer.flush()
		b.stall()
	}
	if b.CutAfter != nil && *b.CutAfter == b.at {
		b.answer.flush()
		b.answer.cut()
	}
}

func (b *faultBody) writeRaw() {
	if len(b.Raw) > 0 && !b.rawDone {
		b.rawDone = true
		b.answer.writeBeneath(b.Raw)
	}
}

func (b *faultBody) stall() {
	if b.Stall == nil || b.stalled {
		return
	}
	b.stalled = true
	select {
	case <-b.Stall:
	case <-b.ctx.Done():
		panic(http.ErrAbortHandler)
	}
}

// portion returns the beginning of p up to the next offset where something must happen. If the portion holds the byte to
// flip, that byte is flipped in a copy.
//
// The byte before Raw is sent by itself. After a flush has returned, an HTTP/2 server may still hold a frame or the end
// of one. It sends that before it takes the next write from the handler. So everything but that one byte has been sent
// when Raw is written, and Raw does not split a frame.
func (b *faultBody) portion(p []byte) []byte {
	n := min(int64(len(p)), b.end-b.at)
	for _, stop := range []*int64{b.StallAfter, b.CutAfter, b.RawAfter} {
		if stop != nil && *stop > b.at {
			n = min(n, *stop-b.at)
		}
	}
	if b.RawAfter != nil && *b.RawAfter-1 > b.at {
		n = min(n, *b.RawAfter-1-b.at)
	}
	if b.Rate > 0 {
		n = min(n, max(1, b.Rate/10))
	}
	p = p[:n]
	if i := b.flip - b.at; b.flip >= 0 && 0 <= i && i < n {
		p = bytes.Clone(p) // other answers share the content
		p[i] ^= 1
	}
	return p
}

// throttle waits for as long as n bytes take at the fault's rate. Waits of less than a millisecond are put together.
func (b *faultBody) throttle(n int) {
	if b.Rate <= 0 {
		return
	}
	now := time.Now()
	if b.due.Before(now.Add(-100 * time.Millisecond)) { // what was lost for another reason is not made up for
		b.due = now
	}
	b.due = b.due.Add(takes(n, b.Rate))
	if left := b.due.Sub(now); left >= time.Millisecond {
		b.answer.flush()
		sleep(b.ctx, left)
	}
}

// takes is how long n bytes take at rate bytes per second.
func takes(n int, rate int64) time.Duration {
	return time.Duration(float64(n) / float64(rate) * float64(time.Second))
}

// sleep waits. It aborts the answer when ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		panic(http.ErrAbortHandler)
	}
}
