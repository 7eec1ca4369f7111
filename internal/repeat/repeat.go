// Package repeat keeps a log short while one thing fails again and again: each cause has
// a line once a minute, with the number of those in between.
package repeat

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

const (
	// Pause is how long nothing more is said of a cause.
	Pause = time.Minute
	// maxCauses is of how many causes it is known when they were logged last.
	maxCauses = 1024
)

// Handler is a slog.Handler that hands on one record of each cause in a [Pause]. The first
// one after that says how many there were since, in the attribute "repeats". It starts
// nothing: where a cause does not come back, those of its last minute are not counted.
type Handler struct {
	slog.Handler
	log *causes
}

// causes are what was logged.
type causes struct {
	names []string
	now   func() time.Time

	mu   sync.Mutex // from the look at an entry to its change
	last *lru.Cache[string, said]
}

// said is when a cause was logged last, and how often it has come since.
type said struct {
	at     time.Time
	missed int
}

// New returns a Handler before next. Two records have one cause if their level, their
// message, and their attributes of these names are alike; other attributes make no
// difference.
func New(next slog.Handler, now func() time.Time, names ...string) *Handler {
	return &Handler{next, &causes{names: names, now: now, last: lru.New[string, said](maxCauses)}}
}

// Handle hands on r, unless its cause was logged a short while ago.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	missed, due := h.log.note(h.log.causeOf(r))
	if !due {
		return nil
	}
	if missed > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("repeats", missed))
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler]. These attributes make no other cause.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{h.Handler.WithAttrs(attrs), h.log}
}

// WithGroup implements [slog.Handler].
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{h.Handler.WithGroup(name), h.log}
}

// causeOf is what the records of one cause have in common.
func (c *causes) causeOf(r slog.Record) string {
	var b strings.Builder
	b.WriteString(r.Level.String() + " " + r.Message)
	r.Attrs(func(a slog.Attr) bool {
		if slices.Contains(c.names, a.Key) {
			b.WriteString("\x00" + a.Key + "\x00" + a.Value.String())
		}
		return true
	})
	return b.String()
}

// note reports whether a line is due, and how many had none since the last one. A clock
// that was set back does not silence the log.
func (c *causes) note(cause string) (missed int, due bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	last, known := c.last.Get(cause)
	if age := now.Sub(last.at); known && age >= 0 && age < Pause {
		last.missed++
		c.last.Put(cause, last)
		return 0, false
	}
	c.last.Put(cause, said{at: now})
	return last.missed, true
}
