package otelpullthrough

import (
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
)

const (
	// maxTies is how many objects are remembered whose pulls and fetches may belong
	// together, maxLinks how many pulls of each.
	maxTies  = 1024
	maxLinks = 64
)

// tieKey is what a pull and its fetch have in common.
type tieKey struct {
	object string
	repo   pullthrough.Repo
	ref    string
}

func keyOf(object string, r pullthrough.Request) tieKey { return tieKey{object, r.Repo, r.Ref} }

// ties remember pulls until their fetch ends, and fetches for the pulls that end after them.
// They are safe for concurrent use.
type ties struct{ known *lru.Cache[tieKey, *tie] }

// tie is what has happened to one object lately. Its lock is held while a span is made, so
// that of a pull and its fetch one sees the other.
type tie struct {
	mu    sync.Mutex
	pulls []pulled // whose fetch has not ended
	fetch trace.SpanContext
	ended time.Time // of the fetch
}

// pulled is the span of a pull.
type pulled struct {
	span  trace.SpanContext
	at    time.Time // when it ended
	began bool      // it has begun the fetch, as far as it knows
}

func newTies() *ties { return &ties{lru.New[tieKey, *tie](maxTies)} }

func (s *ties) of(key tieKey) *tie { return s.known.GetOrPut(key, func() *tie { return new(tie) }) }

// pull notes a pull that began then. newSpan makes its span, with a link to the fetch, if
// that has ended during the pull.
func (t *tie) pull(begun time.Time, newSpan func(fetch trace.SpanContext) pulled) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fetch.IsValid() && !t.ended.Before(begun) {
		newSpan(t.fetch)
		return
	}
	if len(t.pulls) == maxLinks {
		t.pulls = slices.Delete(t.pulls, 0, 1)
	}
	t.pulls = append(t.pulls, newSpan(trace.SpanContext{}))
}

// fetched notes a fetch. newSpan makes its span, as a child of the pull that has begun it,
// and with links to the others that have ended since.
func (t *tie) fetched(begun, ended time.Time, newSpan func(parent trace.SpanContext, others []trace.SpanContext) trace.SpanContext) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var parent trace.SpanContext
	var others []trace.SpanContext
	for _, p := range t.pulls {
		switch {
		case p.at.Before(begun): // it is of something before
		case p.began && !parent.IsValid():
			parent = p.span
		default:
			others = append(others, p.span)
		}
	}
	t.pulls = nil
	t.fetch, t.ended = newSpan(parent, others), ended
}
