// Package pullthrough is an Amazon ECR pull through cache that a Go program
// embeds: a fake AWS, a registry test harness, a small registry. These comments call
// that program the host, and the registry that a rule names the upstream registry.
//
// The host gives a [Proxy] a [Store], which keeps images, and the rules of its private
// registry. A pull of docker-hub/library/nginx:1.27 that the Store does not have is
// fetched from the upstream registry, verified, streamed to the client while it is
// written into the Store, and answered from there the next time:
//
//	proxy := &pullthrough.Proxy{
//		Store: memstore.New(),
//		Rules: pullthrough.StaticRules{{Prefix: "docker-hub", UpstreamURL: "registry-1.docker.io"}},
//	}
//	http.Handle("/v2", proxy)
//	http.Handle("/v2/", proxy)
//
// There are three ways to use a Proxy. A host without a registry mounts it
// ([Proxy.ServeHTTP]). A host with its own /v2/ handlers calls [Proxy.Manifest] in place
// of its look-up, and [Proxy.Blob] where it would answer 404. A host with somebody
// else's registry wraps that ([Proxy.Handler]).
//
// # A tour
//
// A [Store] has four methods. Package memstore keeps images in memory, package dirstore
// in a directory, package handlerstore in a registry that is an [http.Handler], and the
// module diststore in a bucket. pullthroughtest.TestStore checks a Store of your own.
//
// A [Rule] is a pull through cache rule of Amazon ECR. A [RuleSource] is asked for
// them on each miss, [Match] picks the one that covers a name, [Rule.Validate] says
// which ones ECR would create. Package ecrapi is ECR's JSON API for them.
//
// [Proxy.Identify] and [Proxy.Authorize] say who the caller is and what it may do,
// [Proxy.Credentials] and [Proxy.Endpoint] how a rule's upstream registry is reached.
// [Policy] has what may differ from ECR, rule by rule: how long tags are fresh, what
// may be retried, whether upstream is asked at all. [Proxy.OnEvent] is told of each
// request and each fetch, [Proxy.Downloads] shows what is on its way, [Proxy.Pending]
// what waits for its next try, and [Proxy.Logger] says what is wrong. Package debug shows it
// as a page and as metrics.
//
// [Proxy.Import] brings a whole image in, [FillMode] says what a pull brings in besides
// what the client asks for, [Proxy.Idle] waits until all is stored, and [Proxy.Shutdown]
// ends the Proxy.
//
// Errors are an [*Error] of a kind that errors.Is finds, such as [ErrNoRule]. [OCI] is
// what a registry client reads of one, [AWS] what a caller of ECR's JSON API does.
//
// Package fakeecr puts all of this together: a whole ECR as one [http.Handler], also as
// a command. Package pullthroughtest is for tests: NewECR starts such an ECR, and New an
// upstream registry with logins, faults and a log of its requests.
//
// # What can be relied on
//
// Nothing wrong is ever stored: content reaches the Store after its digest was
// right, and an answer whose content turns out wrong is cut short of its
// Content-Length. A partial answer (206) from a running download may carry
// bytes that are not verified yet: the last 64 KiB only where its ranges name
// their ends and do not cover the whole blob.
package pullthrough

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/fill"
	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
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

	// Credentials returns the credential for the rule's upstream registry. It is
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
	// repository "name unknown". The catalog asks for "DescribeRepositories", with a
	// Repo that has no name, and then names the repositories from which the caller may
	// pull. Package ecrapi asks for its own operations, too. docs/security.md has all
	// that is asked, entrance by entrance. nil: everybody may.
	Authorize func(ctx context.Context, a Action, r Request) error
	// Identify says which caller sends a /v2/ request, and to which account and Region. An
	// error that Is [ErrUnauthorized] is answered 401. nil: the zero [Identity];
	// see also [HostIdentity].
	Identify func(*http.Request) (Identity, error)
	// PassUnidentified lets [Proxy.Handler] pass the pulls of callers whom Identify does
	// not know to the next handler, for registries that are open to everybody. Only what
	// a rule of the empty account covers is still refused. false: every pull of a caller who
	// is not known is answered 401.
	PassUnidentified bool
	// AskNext is for a [Proxy.Handler] before a registry that wants a login: the next
	// handler is asked, in the same process, whether it lets this caller have the object.
	// It gets a HEAD of the object with the client's headers, but for Range and conditions,
	// for a list of referrers that of the subject's manifest. If it answers with any status below 400, or with 404,
	// the pull goes on; every other answer is passed on to the client unchanged, such as
	// 401 with its challenge, and 403. So is a 401 or 403 for the list itself. Nothing of it is remembered. A registry that hides
	// by 404 what a caller may not see needs Authorize as well. false: next is not asked.
	AskNext bool
	// LoginSuffices makes AskNext ask for /v2/ in place of the object: for registries
	// in which everybody who has logged in may pull everything. Only a 2xx lets the pull go
	// on then. false: for the object.
	LoginSuffices bool

	// Mirror lets clients take this registry for a mirror of the rules' upstream registries. A
	// client that does so names the registry that it wants an image of, as in
	// /v2/library/alpine/manifests/3.20?ns=docker.io. This is the request for PREFIX/library/alpine of
	// the rule for docker.io, and only that: it is looked up, authorized, stored and
	// listed under this name. An upstream prefix is taken off the name; the longest one counts. The
	// ports 443 of https and 80 of http may be left out, and docker.io, index.docker.io and
	// registry-1.docker.io are one host. Where no rule has the registry the answer is 404, so that
	// no registry answers for another. [Proxy.Rules] are asked for each such request, also where the
	// image is stored. In front of another registry ([Proxy.Handler]) next gets the request under
	// the same name, with all methods. It is no part of [Policy], since before the name is known
	// there is no rule whose policy could be asked for. false: ns is ignored,
	// but where only a rule of ROOT covers the name, and that is for another registry, the answer is 404.
	Mirror bool

	// Transport carries the requests to upstream registries. Redirects,
	// credentials and header timeouts are the proxy's own in any case. It must
	// not decompress. nil: a pooled transport with limits of its own, and the
	// proxies that the environment names (http.ProxyFromEnvironment).
	Transport http.RoundTripper
	// Fill says how much of an image a pull brings into the Store. 0: [FillLazy].
	Fill FillMode
	// SpoolDir is where downloads over 1 MiB are kept while they run. What came of those that
	// ended early stays there, in pullthrough-partial, for 24 hours and in 4 GiB at most, and
	// the next pull of the same blob by the same rule into the same repository goes on from
	// there, also in another process. "": os.TempDir, and nothing stays.
	SpoolDir string
	// SpoolBytes limits what the downloads in SpoolDir may take together. One that
	// finds no room within 10 seconds is refused with 503. Where the Store is a
	// [BlobStager], downloads are in its places and do not count, but for what such a
	// place had no room for. What stays of downloads that ended early counts, and goes
	// when another one needs the room. 0: no limit.
	SpoolBytes int64
	// MaxSilence is how long a client may take for one write of at most 1 MiB of an
	// answer; its connection is ended then. The longest silent are ended earlier, after a
	// second, when less than an eighth of the process's file descriptors is free.
	// The time in which the proxy waits for upstream does not count. Less than two
	// minutes cuts off slow clients that do read, since the buffers of a connection hold
	// more than 1 MiB. Where the http.Server has a WriteTimeout, that alone counts. 0:
	// ten minutes. Negative: no connection is ended.
	MaxSilence time.Duration

	// OnEvent is called once per request and once per fetch, after the fact. It
	// must not block for long. nil: nobody is told.
	OnEvent func(context.Context, Event)
	// Logger gets what a person would want to know: a warning for each fetch that fails,
	// unless upstream just does not have the object, an error for each failure that a client
	// reads as 500, and nothing for a hit. What fails for the same cause is logged once a
	// minute, with its number. nil: [slog.Default], as it is at the first use. For silence
	// give it slog.New(slog.DiscardHandler).
	Logger *slog.Logger
	// Now is the clock that stamps and ages tags and tokens. nil: time.Now.
	Now func() time.Time

	once  sync.Once
	parts *engine // made by once
}

// engine returns what the Proxy keeps in memory. It is made on first use, of the
// fields as they are then.
func (p *Proxy) engine() *engine {
	p.once.Do(func() {
		p.parts = newEngine(settings{
			store: p.Store, rules: p.Rules, credentials: p.Credentials, rotated: p.Rotated, endpoint: p.Endpoint,
			policy: p.Policy, authorize: p.Authorize, transport: p.Transport, fill: p.Fill, spoolDir: p.SpoolDir,
			spoolBytes: p.SpoolBytes, maxSilence: p.MaxSilence, onEvent: p.OnEvent, logger: p.Logger, now: p.Now,
		})
	})
	return p.parts
}

// Manifest returns the manifest r.Ref of r.Repo: from the Store, or from the
// upstream registry of the rule that covers the repository. It returns when the
// manifest is verified, which may be before the Store has it; see [Proxy.Idle]. An
// error is an [*Error]; where nothing is stored and no rule covers the name it Is
// [ErrNoRule]. HEAD and GET of a manifest are both this call.
func (p *Proxy) Manifest(ctx context.Context, r Request) (*Manifest, error) {
	m, _, err := p.engine().manifest(ctx, r)
	return m, err
}

// Blob returns the blob r.Ref of r.Repo: from the Store, or from the upstream
// registry of the rule that covers the repository. It returns as soon as the
// size is known; ctx also bounds reads of a download that still runs. Errors are as
// for Manifest. With r.Head set upstream is asked for the first byte of a blob that
// is not stored, whose Body is empty; nothing is downloaded, unless nobody tells the
// blob's size in another way.
func (p *Proxy) Blob(ctx context.Context, r Request) (*Blob, error) {
	b, _, err := p.engine().blob(ctx, r, fill.Want{})
	return b, err
}

// Referrers returns the list of what refers to the manifest r.Ref, a digest:
// signatures, SBOMs and the like (OCI distribution spec, "Listing Referrers";
// ListImageReferrers in Amazon ECR). artifactType, if not "", picks those of one
// type. A list is asked of upstream, kept, and asked for again when it is older
// than [Policy.ReferrersTTL]; when upstream fails a known list is returned. Upstream has no
// referrers API if it answers 404, and seems to have none if it answers 400, 405, 406 or
// 501, or, to a rule without credentials, 401 or 403 without a challenge: that counts for
// [Policy.NotFoundTTL], where no list is known. The artifacts in a list are fetched when
// they are pulled; with [FillBackground] and [FillEager] those of a subject that is stored
// come in the background. A subject that nobody knows has an empty list. Errors are as for [Proxy.Manifest]; where no rule covers the repository the
// error Is [ErrNoRule], and it Is [ErrNotFound] for a caller who may not import,
// where no list is known. Over HTTP both are an empty list.
func (p *Proxy) Referrers(ctx context.Context, r Request, artifactType string) (*ocispec.Index, error) {
	index, _, err := p.engine().listReferrers(ctx, r, artifactType)
	return index, err
}

// Import brings the image r.Ref of r.Repo into the Store, with all that it
// refers to, and returns its manifest. What is stored already is not fetched
// again, what is being fetched for a client is shared with it. It brings in what can be
// had: what fails in passing is tried again, up to 5 times within 2 minutes, and what
// cannot be had keeps nothing else out. The error then names all that is missing, but
// for foreign layers, and Is each of the reasons; the manifest is returned beside it.
// Errors and permissions are those of [Proxy.Manifest].
func (p *Proxy) Import(ctx context.Context, r Request, o ImportOptions) (*Manifest, error) {
	return p.engine().importImage(ctx, r, o)
}

// Downloads returns the blobs that are being downloaded, and those that are here
// but that clients still read from the spool, the oldest first. It is made for
// showing them, and costs nothing to downloads. It may be called at any time.
func (p *Proxy) Downloads() []Download { return p.engine().downloads() }

// Pending returns what waits for an upstream registry although nothing of it is being
// downloaded, each as the event of a fetch that has not ended. It is made for showing
// them, beside [Proxy.Downloads], and may be called at any time. Rule, Object and the
// account and Region of Request.Repo say what it is about; where the repository has no
// name it is all of the rule's. There are four cases:
//
//   - Nobody waits for the fetch any more: Err is nil. It goes on for 30 seconds, since
//     the client may try again.
//   - The registry has asked to wait, by 429 or by 503 with Retry-After: Err is an
//     [*Error] with the Status. Object is "" for tokens and lists of tags.
//   - A check of a stored tag has failed, and there are no checks for a while: Source is
//     SourceStale.
//   - An image could not be imported whole, and is left alone for a while: Part is set.
//
// RetryAfter of the *Error is the time that is left.
func (p *Proxy) Pending() []Event { return p.engine().pending() }

// Sent returns how many bytes of bodies the connections of clients have taken from the
// Proxy's handlers, and from [WriteBlob] with its blobs. Unlike [Event.Bytes] it does not
// count what a client has not asked for, or has left. It may be called at any time.
func (p *Proxy) Sent() int64 { return p.engine().writes.Sent() }

// ValidateRule tells whether a pull by the rule would get anywhere now: it asks the
// rule's upstream registry for /v2/ (OCI distribution spec, "Determining Support"),
// with the credentials of the rule if it is challenged, and keeps nothing of what it
// learns. repo says whose rule it is; it needs no name. It is made for
// ValidatePullThroughCacheRule of Amazon ECR: see ecrapi.API.Validate.
//
// The error is an [*Error]: ErrDenied when the registry or its token server refuses
// the credentials or Proxy.Credentials has none, ErrUnavailable when the registry
// cannot be reached, ErrNotFound when what answers is no registry, ErrInvalid for a
// rule that can never work. Rule.Validate is not asked, nor is Authorize.
func (p *Proxy) ValidateRule(ctx context.Context, repo Repo, rule Rule) error {
	return p.engine().validateRule(ctx, repo, rule)
}

// Shutdown ends the proxy: from now on what is stored is served, and a miss is
// an [ErrClosed]. It waits for running downloads, but for those that nobody waits for
// and that upstream has not begun to answer; when ctx ends first it
// cancels them, waits for their end, and returns ctx's error. Shut the
// http.Server down first.
func (p *Proxy) Shutdown(ctx context.Context) error { return p.engine().shutdown(ctx) }

// DeleteImage deletes what ref names from the Store, which must be an [ImageDeleter]: of a
// tag the tag alone, of a digest the manifest with all its tags. The next pull asks
// upstream: in Amazon ECR this is how a refresh is forced. A fetch that began before does
// not bring it back, but those that wait for it are served. A host that deletes from its
// Store in another way leaves that to chance. The errors are those of
// [ImageDeleter]; a Store that is none is one that Is [errors.ErrUnsupported]. DeleteImage
// waits for what was answered from the repository before, for a second at most, and for a
// put of the same object that is under way, as long as ctx allows. Authorize is not asked.
func (p *Proxy) DeleteImage(ctx context.Context, repo Repo, ref string) error {
	if err := ocipath.CheckRef(ref); err != nil {
		return invalid(repo, ref, err)
	}
	return p.engine().delete(ctx, repo, ref)
}

// DeleteRepo is DeleteImage for a repository with all that is in it.
func (p *Proxy) DeleteRepo(ctx context.Context, repo Repo) error {
	return p.engine().delete(ctx, repo, "")
}

// Idle waits until nothing is being fetched from an upstream registry and nothing
// is being put into the Store: what was answered before is stored then, or an event
// said why not. It is for tests, and for hosts that read the Store themselves after
// a pull. New pulls may begin while it waits, and are waited for too. When ctx ends
// first, the error says what still goes on, and Is the cause of ctx's end.
//
// With repos it waits for no download: only until the manifests, and the blobs that are
// here to their last byte, are stored that were answered from these repositories before. A
// Repo that has no Name stands for all of its account in its Region. The lists of tags and
// repositories that a Proxy serves wait so, for a second at most.
func (p *Proxy) Idle(ctx context.Context, repos ...Repo) error { return p.engine().idle(ctx, repos) }

// caller is the sender of a request, or why the sender is not known.
type caller struct {
	Identity
	err error
}

func (p *Proxy) identify(r *http.Request) (c caller) {
	if p.Identify == nil {
		return c
	}
	defer hostcall.Recover("Identify", &c.err)
	c.Identity, c.err = p.Identify(r)
	c.err = hostcall.Named("Identify", c.err)
	return c
}
