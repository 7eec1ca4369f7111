package debug

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
)

// objects are the kinds of object that are counted separately. Events of other kinds are
// not counted.
var objects = [...]string{pullthrough.EventManifest, pullthrough.EventBlob, pullthrough.EventReferrers}

// sources are the sources of answers, in the order of [pullthrough.Source].
var sources = [...]pullthrough.Source{
	pullthrough.SourceHit, pullthrough.SourceFill, pullthrough.SourceShared, pullthrough.SourceRevalidated, pullthrough.SourceStale,
}

// failures are the kinds of failure. The last is for all others.
var failures = [...]struct {
	name string
	err  error
}{
	{"no-rule", pullthrough.ErrNoRule},
	{"not-found", pullthrough.ErrNotFound},
	{"denied", pullthrough.ErrDenied},
	{"unauthorized", pullthrough.ErrUnauthorized},
	{"rate-limited", pullthrough.ErrRateLimited},
	{"unavailable", pullthrough.ErrUnavailable},
	{"digest", pullthrough.ErrDigest},
	{"too-large", pullthrough.ErrTooLarge},
	{"invalid", pullthrough.ErrInvalid},
	{"immutable", pullthrough.ErrImmutable},
	{"closed", pullthrough.ErrClosed},
	{"canceled", context.Canceled},
	{"timeout", context.DeadlineExceeded},
	{"internal", nil},
}

// classify returns the index in failures for err, which is not nil. For an
// [pullthrough.Error] its Kind decides, not its cause.
func classify(err error) int {
	if e, ok := errors.AsType[*pullthrough.Error](err); ok {
		err = e.Kind
	}
	last := len(failures) - 1
	for i, f := range failures[:last] {
		if errors.Is(err, f.err) {
			return i
		}
	}
	return last
}

const (
	// maxRules is how many prefixes are counted separately. The rest are counted under
	// otherRules, which is not a valid prefix.
	maxRules   = 100
	otherRules = "(other)"
)

// counters count events since the page was first used. The Page's mu guards them.
type counters struct {
	answers  [len(objects)][len(sources)]int64
	bytes    [len(objects)][len(sources)]int64
	failed   [len(objects)][len(failures)]int64
	heads    [len(objects)]int64
	rules    map[string]*ruleCounters
	store    int64 // failures of the Store
	warnings int64 // of upstream registries
	anon     int64 // fetches made without credentials after upstream had refused them
	wrong    int64 // fetches for which upstream named another digest
}

// ruleCounters count the fetches of one rule.
type ruleCounters struct {
	fetched  [len(objects)]int64
	failed   [len(objects)][len(failures)]int64
	bytes    [len(objects)]int64
	requests int64
	took     time.Duration
}

// count adds e, also to its bucket of the chart. kind is the name of its kind of failure;
// "": it succeeded.
func (c *counters) count(e pullthrough.Event, kind string, b *bucket) {
	switch e.Kind {
	case pullthrough.EventStoreFailed:
		c.store++
		return
	case pullthrough.EventFetch:
		c.countFetch(e, kind, b)
		return
	}
	object := slices.Index(objects[:], e.Kind)
	if object < 0 {
		return
	}
	if e.Request.Head {
		c.heads[object]++
	}
	source := slices.Index(sources[:], e.Source)
	switch {
	case kind != "":
		c.failed[object][failureIndex(kind)]++
		b.Failed++
	case source >= 0:
		var bytes int64
		if !e.Request.Head {
			bytes = max(e.Bytes, 0)
		}
		c.answers[object][source]++
		c.bytes[object][source] += bytes
		b.answered(e.Source, bytes)
	}
}

func (c *counters) countFetch(e pullthrough.Event, kind string, b *bucket) {
	object := slices.Index(objects[:], e.Object)
	if object < 0 {
		return
	}
	r := c.ruleOf(e.Rule)
	r.requests += int64(max(e.Upstream, 0))
	r.took += max(e.Duration, 0)
	c.warnings += int64(len(e.Warnings))
	if e.Anonymous {
		c.anon++
	}
	if e.WrongDigest {
		c.wrong++
	}
	if kind != "" {
		r.failed[object][failureIndex(kind)]++
		return
	}
	r.fetched[object]++
	r.bytes[object] += max(e.Bytes, 0)
	b.Fetched += max(e.Bytes, 0)
}

func failureIndex(kind string) int {
	for i, f := range failures {
		if f.name == kind {
			return i
		}
	}
	return len(failures) - 1
}

func (c *counters) ruleOf(prefix string) *ruleCounters {
	name := clean(prefix, maxName)
	if r := c.rules[name]; r != nil {
		return r
	}
	if len(c.rules) >= maxRules {
		name = otherRules
	}
	if c.rules[name] == nil {
		c.rules[name] = &ruleCounters{}
	}
	return c.rules[name]
}

// copy returns a snapshot that later events do not change.
func (c *counters) copy() counters {
	snapshot := *c
	snapshot.rules = make(map[string]*ruleCounters, len(c.rules))
	for name, r := range c.rules {
		one := *r
		snapshot.rules[name] = &one
	}
	return snapshot
}

// prefixes returns the rules' prefixes in order.
func (c *counters) prefixes() []string { return slices.Sorted(maps.Keys(c.rules)) }

func sum(n []int64) (total int64) {
	for _, v := range n {
		total += v
	}
	return total
}
