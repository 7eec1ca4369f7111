// Package pullthrough is an Amazon ECR pull through cache that a Go program
// embeds: a fake AWS, a registry test harness, a small registry.
//
// The host gives a [Proxy] a [Store] and the rules of its private registry. A
// pull of docker-hub/library/nginx:1.27 that the Store does not have is then
// fetched from the upstream registry that the rule names, verified, streamed
// to the client while it is written into the Store, and answered from there
// the next time:
//
//	proxy := &pullthrough.Proxy{
//		Store: memstore.New(),
//		Rules: pullthrough.StaticRules{{Prefix: "docker-hub", UpstreamURL: "registry-1.docker.io"}},
//	}
//	http.Handle("/v2/", proxy)
//
// A Proxy stands instead of the host's own /v2/ handlers ([Proxy.ServeHTTP]),
// around them ([Proxy.Handler]) or behind them ([Proxy.Manifest] in place of the
// look-up, [Proxy.Blob] in the branch that would answer 404).
//
// # A tour
//
// A [Store] is four methods over what the host has. Package memstore keeps images in
// memory, package dirstore in a directory, package handlerstore in a registry that is
// only an HTTP handler. pullthroughtest.TestStore checks a Store of your own.
//
// A [Rule] is a pull through cache rule of Amazon ECR. A [RuleSource] is asked for
// them on each miss, [Match] picks the one that covers a name, [Rule.Validate] says
// which ones ECR would create. Package ecrapi is ECR's JSON API for them.
//
// [Proxy.Identify] and [Proxy.Authorize] say who asks and what he may do,
// [Proxy.Credentials] and [Proxy.Endpoint] how a rule's upstream registry is reached.
// [Policy] has what may differ from ECR, rule by rule: how long tags are fresh, what
// may be retried, whether upstream is asked at all. [Proxy.OnEvent] is told of each
// request and each fetch, [Proxy.Downloads] shows what is on its way.
//
// [Proxy.Import] brings a whole image in, [FillMode] says what a pull brings in beside
// what was asked for, [Proxy.Shutdown] ends it all.
//
// Errors are an [*Error] of a kind that errors.Is finds, such as [ErrNoRule]. [OCI] is
// what a registry client reads of one, [AWS] what a caller of ECR's JSON API does.
//
// Package pullthroughtest is an upstream registry for tests, with logins, faults and
// a log of its requests.
//
// # What can be relied on
//
// Nothing wrong is ever stored: content reaches the Store after its digest was
// right, and an answer whose content turns out wrong is cut short of its
// Content-Length. A partial answer (206) from a running download may carry
// bytes that are not verified yet, never the last 64 KiB.
package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Proxy turns misses of a Store into pulls from upstream registries. It is a
// struct to fill in: only Store and Rules are required, and the zero value of
// every other field is documented. Fields must not change after first use. A
// Proxy is safe for concurrent use and must not be copied after first use. It
// starts nothing before the first miss.
type Proxy struct {
	// Store is where images live. Required.
	Store Store
	// Rules are asked on each miss. Required.
	Rules RuleSource

	// Credentials returns what the rule's upstream registry is to be told. It is
	// called for each token, not for each request, with a context that is not the
	// request's; an error refuses the pull as Amazon ECR does when it cannot read
	// the rule's secret. The answer must depend on the rule and on account and
	// Region alone: for Basic it serves the rule's other repositories too. nil:
	// anonymous.
	Credentials func(ctx context.Context, repo Repo, rule Rule) (Credential, error)
	// Rotated is told of the identity token that a token server gave in exchange for
	// [Credential.IdentityToken], which is worth nothing from then on; Credentials
	// should return the new one. It must not block for long. nil: the proxy keeps the
	// new one in memory.
	Rotated func(ctx context.Context, repo Repo, rule Rule, identityToken string)
	// Endpoint returns where the rule's upstream registry really is: /v2/ stands
	// below that URL. A nil URL, or a nil Endpoint, means [Rule.UpstreamURL].
	Endpoint func(ctx context.Context, repo Repo, rule Rule) (*url.URL, error)
	// Policy returns what the rule's upstream registry may do and how long its
	// tags count as fresh. nil: the zero [Policy], which is Amazon ECR's.
	Policy func(ctx context.Context, repo Repo, rule Rule) Policy
	// Authorize decides whether the caller may do a: [ActionPull] on every
	// request, hit or miss, [ActionImport] before a request may cause or join a
	// fetch, [ActionCreate] before it may do so in a repository that is not there.
	// An error refuses: for a pull it is what the client is told, with 403; for an
	// import the stored copy is served, or "not found" as Amazon ECR says; for a
	// repository "name unknown". nil: everybody may.
	Authorize func(ctx context.Context, a Action, r Request) error
	// Identify says who sends a /v2/ request, to which account and Region. An
	// error that Is [ErrUnauthorized] is answered 401. nil: the zero [Identity];
	// see also [HostIdentity].
	Identify func(*http.Request) (Identity, error)

	// Transport carries the requests to upstream registries. Redirects,
	// credentials and header timeouts are the proxy's own in any case. It must
	// not decompress. nil: a pooled transport with limits of its own, and the
	// proxies that the environment names (http.ProxyFromEnvironment).
	Transport http.RoundTripper
	// Fill says how much of an image a pull brings into the Store. 0: [FillLazy].
	Fill FillMode
	// SpoolDir is where downloads over 1 MiB are kept while they run. "": os.TempDir.
	SpoolDir string
	// SpoolBytes limits what the downloads in SpoolDir may take together. One that
	// finds no room within 10 seconds is refused with 503. Where the Store is a
	// [BlobStager], downloads are in its places and do not count. 0: no limit.
	SpoolBytes int64

	// OnEvent is called once per request and once per fetch, after the fact. It
	// must not block for long. nil: nobody is told.
	OnEvent func(context.Context, Event)
	// Logger gets what a person would want to know. nil: nothing is logged.
	Logger *slog.Logger
	// Now is the clock that stamps and ages tags and tokens. nil: time.Now.
	Now func() time.Time

	once sync.Once
	run  *running
}

// Action is what a caller asks [Proxy.Authorize] for, spelled as the IAM
// action without its "ecr:".
type Action string

// The actions of a pull through a rule; see "Permissions required to use a
// pull through cache rule" in the Amazon ECR user guide.
const (
	ActionPull   Action = "BatchGetImage"
	ActionImport Action = "BatchImportUpstreamImage"
	ActionCreate Action = "CreateRepository" // where the Store is a RepoCreator and has no such repository
)

// Identity is who asks, and which private registry.
type Identity struct {
	Account string
	Region  string
	Caller  string // opaque, for example a principal ARN; handed on in Request.Caller
}

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

// Manifest returns the manifest r.Ref of r.Repo: from the Store, or from the
// upstream registry of the rule that covers the repository. An error is an
// [*Error]; where nothing is stored and no rule covers the name it Is
// [ErrNoRule]. HEAD and GET of a manifest are both this call.
func (p *Proxy) Manifest(ctx context.Context, r Request) (*Manifest, error) {
	start := p.startOf()
	m, err := p.manifest(ctx, r)
	err = at(ctx, err, r.Repo, r.Ref)
	switch {
	case p.OnEvent == nil:
	case m == nil:
		p.tellRequest(ctx, EventManifest, r, ocispec.Descriptor{}, 0, start, err)
	default:
		p.tellRequest(ctx, EventManifest, r, m.Descriptor, m.Source, start, err)
	}
	return m, err
}

// Blob returns the blob r.Ref of r.Repo: from the Store, or from the upstream
// registry of the rule that covers the repository. It returns as soon as the
// size is known; ctx also bounds reads of a download that still runs. Errors are as
// for Manifest. With r.Head set nothing is downloaded, and the Body is empty if
// the blob is not stored.
func (p *Proxy) Blob(ctx context.Context, r Request) (*Blob, error) {
	start := p.startOf()
	b, err := p.blob(ctx, r)
	err = asBlobError(at(ctx, err, r.Repo, r.Ref))
	switch {
	case p.OnEvent == nil:
	case b == nil:
		p.tellRequest(ctx, EventBlob, r, ocispec.Descriptor{}, 0, start, err)
	default:
		p.tellRequest(ctx, EventBlob, r, b.Descriptor, b.Source, start, err)
	}
	return b, err
}

// startOf is when a request began, if anybody wants to know.
func (p *Proxy) startOf() time.Time {
	if p.OnEvent == nil {
		return time.Time{}
	}
	return p.now()
}

func (p *Proxy) tellRequest(ctx context.Context, kind EventKind, r Request, d ocispec.Descriptor, source Source, start time.Time, err error) {
	p.tell(ctx, Event{
		Kind: kind, Request: r, Digest: d.Digest.String(), Source: source, Bytes: d.Size,
		Duration: p.now().Sub(start), Err: err,
	})
}

// asBlobError gives "not found" a blob's code and sentence.
func asBlobError(err error) error {
	e, ok := errors.AsType[*Error](err)
	if ok && (e.Kind == ErrNotFound && e.Code == "" || e.Code == codeManifestUnknown) {
		e.Code, e.Message = "BLOB_UNKNOWN", "The blob '"+e.Ref+"' was not found in the repository with name '"+e.Repo.Name+"'"
	}
	return err
}

// Shutdown ends the proxy: from now on what is stored is served, and a miss is
// an [ErrClosed]. It waits for running downloads; when ctx ends first it
// cancels them, waits for their end, and returns ctx's error. Shut the
// http.Server down first.
func (p *Proxy) Shutdown(ctx context.Context) error {
	run := p.state()
	defer run.upstream.lanes.close()
	return run.flights.Shutdown(ctx)
}

// Idle waits until nothing is being fetched from an upstream registry and nothing
// is being put into the Store: what was answered before is stored then, or an event
// said why not. It is for tests, and for hosts that read the Store themselves after
// a pull. New pulls may begin while it waits, and are waited for too. When ctx ends
// first, the error says what still goes on, and Is the cause of ctx's end.
func (p *Proxy) Idle(ctx context.Context) error {
	flights := &p.state().flights
	if err := flights.Idle(ctx); err != nil {
		return fmt.Errorf("pullthrough: not idle: %s: %w", strings.Join(flights.Running(), ", "), err)
	}
	return nil
}

func (p *Proxy) now() time.Time {
	if p.Now != nil {
		return p.Now()
	}
	return time.Now()
}

func (p *Proxy) log() *slog.Logger {
	if p.Logger != nil {
		return p.Logger
	}
	return slog.New(slog.DiscardHandler)
}

// tell reports e; what the host does with it must not hurt the pull.
func (p *Proxy) tell(ctx context.Context, e Event) {
	if p.OnEvent == nil {
		return
	}
	if err := guarded("OnEvent", func() error { p.OnEvent(ctx, e); return nil }); err != nil {
		p.log().Error("event handler failed", "err", err)
	}
}
