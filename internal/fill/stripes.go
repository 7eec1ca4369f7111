package fill

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

// leadPatience is how long the main stream may take for what it has begun, while nobody
// brings what comes first.
const leadPatience = 2 * time.Second

// errNotInOrder is why a blob goes on over one connection, in order.
var errNotInOrder = errors.New("the place of the content does not take it in any order")

// stripeLocked makes the blob one that comes over several connections, if it is large
// enough and there is room. The main stream brings the bytes of first to begin with.
func (w *windows) stripeLocked(first extent.Span) {
	s, n := w.fill.spool, w.fill.job.Connections
	if w.off || extent.Stripes(w.size, n) < 2 || w.size <= spool.MemoryLimit {
		return
	}
	if !s.Sparse() && !w.fill.room.holdAhead(w.size) { // all of it lies elsewhere for a while
		return
	}
	s.Stripe(n)
	place, err := s.Open(first)
	if err != nil {
		s.Stripe(0)
		if !s.Sparse() {
			w.fill.room.giveAhead(w.size)
		}
		return
	}
	w.lead, w.striped = place, true
	w.used.Store(true)
}

// stripes brings in a blob over several connections. The main stream and the windows take
// the next free stretch each, again and again, and this goroutine follows with the hash.
// done is false where what has come has to go elsewhere: then the rest comes over one
// connection.
func (c *copier) stripes(ctx context.Context) (done bool, err error) {
	w := c.windows
	w.plan()
	following, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	ended := make(chan struct{})
	var leadErr error
	go func() {
		defer close(ended)
		leadErr = w.runLead(ctx, c.source)
		if leadErr != nil {
			stop(leadErr)
		}
	}()
	err = c.follow(following)
	if err != nil && context.Cause(following) == nil {
		c.fill.cancel(err) // the main stream is of no use any more
	}
	<-ended
	switch {
	case err == nil:
		return true, nil
	case errors.Is(leadErr, errNotInOrder):
		w.abandonStripes()
		c.at, c.until = c.size, 0 // the source is somewhere
		return false, nil
	case leadErr != nil && ctx.Err() == nil:
		return false, leadErr
	}
	return false, err
}

// follow moves what comes into the prefix, until all of it is there.
func (c *copier) follow(ctx context.Context) error {
	s := c.fill.spool
	for s.Written() < c.size {
		n, wait := s.Ahead()
		if n > 0 {
			if err := c.takeAhead(ctx, n); err != nil {
				return err
			}
		} else {
			select {
			case <-wait:
			case <-ctx.Done():
			}
		}
		if cause := context.Cause(ctx); cause != nil {
			return c.fill.explainBreak(ctx, cause)
		}
	}
	return nil
}

// runLead is the main stream of a striped blob. It takes the next free stretch, again and
// again, until all is there.
func (w *windows) runLead(ctx context.Context, source Source) error {
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	for {
		lead := w.lead
		err := w.fillLead(ctx, source, lead, buf[:])
		lead.Close()
		if err != nil {
			return err
		}
		next, err := w.nextLead(ctx)
		if next == nil || err != nil {
			return err
		}
		span := next.Span()
		if err := source.Jump(span.From, span.To); err != nil {
			next.Close()
			return err
		}
	}
}

// fillLead brings what is to come of the main stream's stretch.
func (w *windows) fillLead(ctx context.Context, source Source, lead *spool.Window, buf []byte) error {
	for {
		left := lead.Span().Len()
		if left == 0 {
			return nil
		}
		n, err := source.Read(buf[:min(left, int64(len(buf)))])
		if cause := context.Cause(ctx); cause != nil {
			return w.fill.explainBreak(ctx, cause)
		}
		if _, writeErr := lead.Write(buf[:n]); writeErr != nil || w.broken.Load() {
			return errNotInOrder
		}
		switch {
		case err == io.EOF:
			return nil // what is missing is free again
		case err != nil:
			return err
		case w.turn.Swap(false):
			return nil
		}
	}
}

// nextLead is the next free stretch, for which it waits. It is nil when all is there.
func (w *windows) nextLead(ctx context.Context) (*spool.Window, error) {
	s := w.fill.spool
	w.resting.Store(true)
	defer w.resting.Store(false)
	for {
		switch {
		case context.Cause(ctx) != nil:
			return nil, w.fill.explainBreak(ctx, context.Cause(ctx))
		case w.broken.Load():
			return nil, errNotInOrder
		case s.Bytes() == w.size:
			return nil, nil
		}
		if w.openLead() {
			return w.lead, nil
		}
		select {
		case <-w.changed:
		case <-ctx.Done():
		}
	}
}

// openLead takes the next free stretch for the main stream, if there is one. Only the main
// stream's goroutine changes w.lead.
func (w *windows) openLead() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	next, err := w.fill.spool.OpenNext(w.aloneLocked())
	if err == nil {
		w.lead = next
	}
	return err == nil
}

// turnLead sends the main stream to what comes first, which nobody brings, if what it is
// at takes long.
func (w *windows) turnLead() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lead != nil && float64(w.lead.Span().Len()) > w.rate*leadPatience.Seconds() {
		w.turn.Store(true)
	}
}

// abandonStripes ends the windows for good. What has come is kept.
func (w *windows) abandonStripes() {
	w.close()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.off, w.striped, w.lead = true, false, nil
	w.fill.spool.Stripe(0)
}
