package debug

import (
	"time"

	"github.com/ecr-pullthrough/pullthrough"
)

// maxWarnings is how many of upstream's warnings an entry keeps.
const maxWarnings = 3

// entry is an event as the page shows it. Its size is bounded, its texts are clean, and
// it keeps nothing of the event in memory.
type entry struct {
	Number      int64     `json:"number"` // counts from 1
	At          time.Time `json:"at"`
	Kind        string    `json:"kind"`             // manifest, blob, referrers, fetch, store-failed
	Object      string    `json:"object,omitempty"` // of a fetch
	Part        bool      `json:"part,omitempty"`
	Head        bool      `json:"head,omitempty"`
	Rule        string    `json:"rule,omitempty"`
	Account     string    `json:"account,omitempty"`
	Region      string    `json:"region,omitempty"`
	Repo        string    `json:"repo"`
	Ref         string    `json:"ref,omitempty"`
	Digest      string    `json:"digest,omitempty"`
	Source      string    `json:"source,omitempty"` // "" on failure
	Bytes       int64     `json:"bytes"`
	Upstream    int64     `json:"upstream"`
	Micros      int64     `json:"micros"`
	ErrorKind   string    `json:"errorKind,omitempty"`
	Error       string    `json:"error,omitempty"`
	Anonymous   bool      `json:"anonymous,omitempty"`
	WrongDigest bool      `json:"wrongDigest,omitempty"`
	Warnings    []string  `json:"warnings,omitempty"`
}

func newEntry(e pullthrough.Event, now time.Time) entry {
	repo := e.Request.Repo
	n := entry{
		At: now.UTC(), Kind: clean(e.Kind, maxName), Object: clean(e.Object, maxName), Part: e.Part, Head: e.Request.Head,
		Rule: clean(e.Rule, maxName), Account: clean(repo.Account, maxName), Region: clean(repo.Region, maxName), Repo: clean(repo.Name, maxName),
		Ref: clean(e.Request.Ref, maxRef), Digest: clean(e.Digest, maxRef),
		Bytes: max(e.Bytes, 0), Upstream: int64(max(e.Upstream, 0)), Micros: max(e.Duration, 0).Microseconds(),
		Anonymous: e.Anonymous, WrongDigest: e.WrongDigest,
	}
	switch {
	case e.Err != nil:
		n.ErrorKind, n.Error = failures[classify(e.Err)].name, cleanText(e.Err.Error(), maxText)
	case e.Kind != pullthrough.EventStoreFailed:
		n.Source = e.Source.String()
	}
	for _, text := range e.Warnings[:min(len(e.Warnings), maxWarnings)] {
		n.Warnings = append(n.Warnings, cleanText(text, maxText/maxWarnings))
	}
	return n
}

// ring keeps the last entries. The Page's mu guards it.
type ring struct {
	max     int // negative: nothing is kept
	entries []entry
	n       int64 // how many there have been
}

func (r *ring) add(e entry) {
	r.n++
	e.Number = r.n
	switch {
	case r.max < 0:
	case len(r.entries) < r.max:
		r.entries = append(r.entries, e)
	default:
		r.entries[int((r.n-1)%int64(r.max))] = e
	}
}

// latest returns a copy of the entries, the newest first.
func (r *ring) latest() []entry {
	latest := make([]entry, 0, len(r.entries))
	for i := range r.entries {
		latest = append(latest, r.entries[int((r.n-1-int64(i))%int64(r.max))])
	}
	return latest
}
