package pullthrough

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
)

// core is what the parts of the engine share: the host's clock, log and events, who
// may do what, the Store, and the way upstream.
type core struct {
	*observer
	authorize  func(ctx context.Context, a Action, r Request) error // nil: everybody may
	router     *router
	store      *guardedStore
	registries *registries
	probes     flight.Group[objectKey, struct{}]
}

// settings are the fields of a Proxy, under their names there.
type settings struct {
	store       Store
	rules       RuleSource
	credentials func(ctx context.Context, repo Repo, rule Rule) (Credential, error)
	rotated     func(ctx context.Context, repo Repo, rule Rule, identityToken string)
	endpoint    func(ctx context.Context, repo Repo, rule Rule) (*url.URL, error)
	policy      func(ctx context.Context, repo Repo, rule Rule) Policy
	authorize   func(ctx context.Context, a Action, r Request) error
	transport   http.RoundTripper
	fill        FillMode
	spoolDir    string
	spoolBytes  int64
	maxSilence  time.Duration
	onEvent     func(context.Context, Event)
	logger      *slog.Logger
	now         func() time.Time
}

// newCore makes the core. What the registry client does beside its callers is among
// the flights.
func newCore(s settings, flights *flight.Set) *core {
	o := &observer{onEvent: s.onEvent, log: s.logger, now: s.now}
	if o.log == nil {
		o.log = slog.New(slog.DiscardHandler)
	}
	if o.now == nil {
		o.now = time.Now
	}
	store := newGuardedStore(s.store, o.storeFailed)
	client := upstream.New(upstream.Config{Transport: s.transport, Log: o.log, Now: o.now, Flights: flights})
	c := &core{
		observer: o, authorize: s.authorize, store: store,
		router:     &router{rules: s.rules, endpoint: s.endpoint, policy: s.policy, callbacks: new(hostcall.Lookups), deletions: store.deletions},
		registries: newRegistries(client, store, o.now),
	}
	c.probes.Join(flights, "rule")
	c.registries.credentials, c.registries.rotated = s.credentials, s.rotated
	return c
}

// admit checks the grammar of a request before anything else, then the right to
// pull. It is on the way of every hit.
func (c *core) admit(ctx context.Context, r Request) error {
	err := ocipath.CheckName(r.Repo.Name)
	if err == nil {
		err = ocipath.CheckRef(r.Ref)
	}
	if err != nil {
		return invalid(r.Repo, r.Ref, err)
	}
	if c.authorize == nil {
		return nil
	}
	return authorize(ctx, c.authorize, ActionPull, r)
}

// admitDigest is admit for what has no tags: r.Ref must be a digest.
func (c *core) admitDigest(ctx context.Context, r Request) (digest.Digest, error) {
	if err := c.admit(ctx, r); err != nil {
		return "", err
	}
	if !ocipath.ValidDigest(r.Ref) {
		return "", invalid(r.Repo, r.Ref, &ocipath.Error{Part: ocipath.Digest, Value: r.Ref})
	}
	return digest.Digest(r.Ref), nil
}

// mayImport asks whether this caller may cause a fetch, or join one.
func (c *core) mayImport(ctx context.Context, r Request) error {
	return c.mayFetch(ctx, ActionImport, r)
}

// mayFetch asks beside the caller, who leaves when its context ends.
func (c *core) mayFetch(ctx context.Context, a Action, r Request) error {
	if c.authorize == nil {
		return nil
	}
	_, err := callBeside(ctx, c.router.callbacks, "Authorize", func(ctx context.Context) (struct{}, error) {
		return struct{}{}, authorizeFetch(ctx, c.authorize, a, r)
	})
	return err
}

// enter decides about a miss: by which rule upstream may be asked, and whether this
// caller may cause that. storeErr is what the Store said: one that has failed must
// not be read as one that has nothing.
func (c *core) enter(ctx context.Context, r Request, storeErr error) (*route, outcome, error) {
	if spool.IsOutOfFiles(storeErr) { // a fetch would need even more of them
		return nil, outcome{}, &Error{Kind: errBusy, RetryAfter: hostcall.FilesWait, Err: storeErr}
	}
	rt, err := c.router.routeBeside(ctx, r.Repo)
	uncovered := errors.Is(err, ErrNoRule)
	switch {
	case err == nil:
		err = c.mayImport(ctx, r)
	case storeErr != nil && uncovered:
		err = storeErr
	}
	if err != nil {
		return nil, outcome{repository: c.presence(ctx, r.Repo, err), uncovered: uncovered}, err
	}
	found, err := c.store.repository(ctx, r.Repo)
	if err == nil && found == absent {
		err = c.mayFetch(ctx, ActionCreate, r)
	}
	out := rt.outcome(found)
	out.entered = err == nil
	return rt, out, err
}

// createRepo has the Store make the repository of r, if it is not there: upstream has
// shown the image that it is for. By a rule that has changed nothing is made, nor stored.
func (c *core) createRepo(ctx context.Context, rt *route, r Request) error {
	found, err := c.store.repository(ctx, r.Repo)
	if found != absent || c.router.unchanged(ctx, rt) != nil {
		return err
	}
	return c.store.createRepo(ctx, rt.beginning, rt.rule, r)
}

// presence says whether the repository is there, if the words of err depend on it.
func (c *core) presence(ctx context.Context, repo Repo, err error) presence {
	if e, ok := errors.AsType[*Error](err); !ok || e.Kind != ErrNotFound && e.Kind != ErrNoRule {
		return unknown
	}
	found, _ := c.store.repository(ctx, repo) // a Store that does not tell changes no word
	return found
}

// tags lists the tags of a repository. A caller that may pull may list them.
func (c *core) tags(ctx context.Context, r Request) ([]string, error) {
	if !c.store.listsTags() {
		return nil, errNotListed
	}
	if err := authorize(ctx, c.authorize, ActionPull, r); err != nil {
		return nil, err
	}
	names, err := c.store.tags(ctx, r.Repo)
	return names, asUnknownName(err)
}

// asUnknownName says of a miss of a list that there is no such repository, or registry.
func asUnknownName(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &Error{Kind: ErrNotFound, Code: codeNameUnknown, Err: err}
	}
	return err
}

// repos lists the repositories of a registry, if the caller may know that there is any.
func (c *core) repos(ctx context.Context, r Request) ([]string, error) {
	if err := authorize(ctx, c.authorize, actionCatalog, r); err != nil {
		return nil, err
	}
	names, err := c.store.repos(ctx, r.Repo.Account, r.Repo.Region)
	return names, asUnknownName(err)
}

// mayPull reports whether the caller of r may pull from the repository that is called name.
func (c *core) mayPull(ctx context.Context, r Request, name string) (bool, error) {
	r.Repo.Name = name
	err := authorize(ctx, c.authorize, ActionPull, r)
	if errors.Is(err, ErrDenied) || errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// covers reports whether a rule of that registry covers the name. A failure is logged.
func (c *core) covers(ctx context.Context, repo Repo) (bool, error) {
	covered, err := c.router.covers(ctx, repo.Account, repo.Region, repo.Name)
	if err != nil && ctx.Err() == nil {
		c.log.Error("the rules cannot be read: only what is stored is served", "repository", repo.Name, "err", err)
	}
	return covered, err
}

// validateRule asks the rule's upstream registry for /v2/.
func (c *core) validateRule(ctx context.Context, repo Repo, rule Rule) error {
	rt, err := c.router.routeBy(ctx, rule, repo, "")
	if err == nil {
		_, _, err = c.probes.Do(ctx, rt.key(""), func(call *flight.Call[objectKey, struct{}]) (struct{}, error) {
			rt.begin(call)
			return struct{}{}, c.registries.probe(call.Context(), rt)
		})
	}
	return outcome{}.words(ctx, repo, "", err)
}

// explain gives the error of a request that is not told by an event its words.
func (c *core) explain(ctx context.Context, r Request, out outcome, err error) error {
	return out.words(ctx, r.Repo, r.Ref, err)
}

// close closes the connections to registries that nobody uses.
func (c *core) close() { c.registries.client.Close() }

// fetchEvent is the event of a fetch before the fetch has begun.
func (c *core) fetchEvent(object string, part bool) *fetchEvent {
	return &fetchEvent{Trace: new(upstream.Trace), object: object, part: part, start: c.now()}
}

// fetchEvent is what is to be told of a fetch. Its Trace notes what happens upstream.
type fetchEvent struct {
	*upstream.Trace
	object      string
	part        bool
	start       time.Time
	connections int // see Event.Connections
}

// tellFetch reports the end of a fetch by the route. desc is what came; its Digest may
// be known although nothing came.
func (c *core) tellFetch(ctx context.Context, f *fetchEvent, rt *route, ref string, desc ocispec.Descriptor, source Source, err error) {
	if err != nil {
		err = outcome{}.words(context.Background(), rt.repo, ref, err)
	}
	facts := f.Facts()
	c.tell(ctx, Event{
		Kind: EventFetch, Request: Request{Repo: rt.repo, Ref: ref}, Object: f.object, Part: f.part, Rule: rt.prefix(),
		Digest: desc.Digest.String(), Source: source, Bytes: desc.Size,
		Duration: c.now().Sub(f.start), Err: err,
		Upstream: facts.Requests, Connections: f.connections, Anonymous: facts.Anonymous, WrongDigest: facts.WrongDigest, Warnings: facts.Warnings,
	})
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

// answer is what every request ends with: the error gets its words, and the host is
// told. start is when the request began.
func (o *observer) answer(ctx context.Context, e Event, start time.Time, out outcome, err error) error {
	if err != nil {
		out.blob = e.Kind == EventBlob
		err = out.words(ctx, e.Request.Repo, e.Request.Ref, err)
	}
	if o.onEvent != nil {
		e.Duration, e.Err = o.now().Sub(start), err
		o.tell(ctx, e)
	}
	return err
}

// storeFailed reports that the Store failed, and that the pull goes on without it.
func (o *observer) storeFailed(ctx context.Context, repo Repo, ref string, err error) {
	o.log.Error("store failed", "repository", repo.Name, "ref", ref, "err", err)
	o.tell(ctx, Event{Kind: EventStoreFailed, Request: Request{Repo: repo, Ref: ref}, Err: err})
}

// endedSilent reports that a client's connection was ended since it read nothing.
func (o *observer) endedSilent(r *http.Request, silent time.Duration, short bool) {
	o.log.Warn("connection ended: the client reads nothing", "client", r.RemoteAddr, "path", r.URL.Path,
		"silent", silent.Round(time.Second), "descriptors short", short)
}
