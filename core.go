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
	unset      error                                                // of a Proxy that lacks what it needs; nil: it has that
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

// unset says which required field is nil, and what to set it to.
func (s *settings) unset() error {
	switch {
	case s.store == nil:
		return unsetError("Proxy.Store is nil: set it, for example to memstore.New(), or to what dirstore.Open returns")
	case s.rules == nil:
		return unsetError(`Proxy.Rules is nil: set it, for example to pullthrough.StaticRules{{Prefix: "docker-hub", UpstreamURL: "registry-1.docker.io"}}`)
	}
	return nil
}

// newCore makes the core. What the registry client does beside its callers is among
// the flights.
func newCore(s settings, flights *flight.Set) *core {
	o := newObserver(s.onEvent, s.logger, s.now)
	store := newGuardedStore(s.store, o.storeFailed)
	client := upstream.New(upstream.Config{Transport: s.transport, Log: o.log, Now: o.now, Flights: flights})
	c := &core{
		observer: o, unset: s.unset(), authorize: s.authorize, store: store,
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
	if c.unset != nil {
		return c.unset
	}
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
	told := storeErr != nil && uncovered
	switch {
	case err == nil:
		err = c.mayImport(ctx, r)
	case told:
		err = storeErr
	}
	if err != nil {
		return nil, outcome{repository: c.presence(ctx, r.Repo, err), uncovered: uncovered, told: told}, err
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
	found, _ := c.store.exists(ctx, repo) // a Store that does not tell changes no word
	if found == unknown && c.store.listsTags() {
		if _, err := c.store.tags(ctx, repo); err == nil {
			return present
		}
	}
	return found
}

// tags lists the tags of a repository. A caller that may pull may list them.
func (c *core) tags(ctx context.Context, r Request) ([]string, error) {
	if c.unset != nil {
		return nil, c.unset
	}
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
	if c.unset != nil {
		return nil, c.unset
	}
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

// covers reports whether a rule of that registry covers the name.
func (c *core) covers(ctx context.Context, repo Repo) (bool, error) {
	if c.unset != nil {
		return false, c.unset
	}
	return c.router.covers(ctx, repo.Account, repo.Region, repo.Name)
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

// close closes the connections to registries that nobody uses.
func (c *core) close() { c.registries.client.Close() }
