package pullthrough

import (
	"context"
	"log/slog"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
)

// Request is one pull.
type Request struct {
	Repo   Repo
	Ref    string // tag or digest; of a blob always a digest
	Head   bool   // an existence check: never counts as a pull
	Caller string // opaque, for example a principal ARN
}

// Event says what happened. Credentials and tokens are in none of its fields.
type Event struct {
	Kind     EventKind
	Request  Request       // the request; of a fetch only Repo and Ref are set
	Object   EventKind     // of a fetch: EventManifest, EventBlob or EventReferrers, what was fetched; else ""
	Part     bool          // of a fetch: nobody asked for it, it is part of an image that is being imported
	Rule     string        // of a fetch: the prefix of the rule it went by; else ""
	Digest   string        // of the content; "" on failure
	Source   Source        // of the answer; SourceFill for a fetch
	Bytes    int64         // length of the content; 0 on failure
	Upstream int           // requests that a fetch made to upstream, tokens included; 0 for a request
	Duration time.Duration // until the answer was there, or the fetch was committed
	Err      error         // nil: it went well. EventStoreFailed: what the Store said

	// What else a fetch has found out.
	Anonymous   bool     // the credentials were refused, and it went without (Policy.AnonymousFallback)
	WrongDigest bool     // upstream named another digest than the manifest's content has
	Warnings    []string // texts of upstream's Warning headers, 4096 bytes at most
}

// EventKind tells events apart.
type EventKind string

const (
	EventManifest    EventKind = "manifest"     // a manifest was asked for
	EventBlob        EventKind = "blob"         // a blob was asked for
	EventReferrers   EventKind = "referrers"    // a list of referrers was asked for
	EventFetch       EventKind = "fetch"        // one of these was fetched from upstream, or could not be
	EventStoreFailed EventKind = "store-failed" // the Store failed; the pull went on without it
)

// Source says how an answer came about.
type Source int

const (
	SourceHit         Source = iota // it was stored
	SourceFill                      // it was fetched from upstream for this request
	SourceShared                    // it was being fetched for another request already
	SourceRevalidated               // it was stored, and upstream has just confirmed the tag
	SourceStale                     // it was stored, and upstream could not be asked
)

// String returns "hit", "fill", "shared", "revalidated" or "stale".
func (s Source) String() string {
	switch s {
	case SourceHit:
		return "hit"
	case SourceFill:
		return "fill"
	case SourceShared:
		return "shared"
	case SourceRevalidated:
		return "revalidated"
	case SourceStale:
		return "stale"
	}
	return "unknown"
}

// observer is how the parts of a Proxy reach the host's clock, log and event
// handler.
type observer struct {
	onEvent func(context.Context, Event) // nil: nobody is told
	log     *slog.Logger
	now     func() time.Time
}

// tell reports e. What the host does with it must not hurt the pull.
func (o *observer) tell(ctx context.Context, e Event) {
	if o.onEvent == nil {
		return
	}
	if err := hostcall.Guard("OnEvent", func() error { o.onEvent(ctx, e); return nil }); err != nil {
		o.log.Error("event handler failed", "err", err)
	}
}

// start is when a request began. It is zero, and costs nothing, if nobody is told.
func (o *observer) start() time.Time {
	if o.onEvent == nil {
		return time.Time{}
	}
	return o.now()
}

// request reports the answer to a request that began at start.
func (o *observer) request(ctx context.Context, kind EventKind, r Request, d ocispec.Descriptor, source Source, start time.Time, err error) {
	if o.onEvent == nil {
		return
	}
	o.tell(ctx, Event{
		Kind: kind, Request: r, Digest: d.Digest.String(), Source: source, Bytes: d.Size,
		Duration: o.now().Sub(start), Err: err,
	})
}

// storeFailed reports that the Store failed, and that the pull goes on without it.
func (o *observer) storeFailed(ctx context.Context, repo Repo, ref string, err error) {
	o.log.Error("store failed", "repository", repo.Name, "ref", ref, "err", err)
	o.tell(ctx, Event{Kind: EventStoreFailed, Request: Request{Repo: repo, Ref: ref}, Err: err})
}
