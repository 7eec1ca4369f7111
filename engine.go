package pullthrough

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/fill"
	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
)

// engine is what a Proxy keeps in memory: one part for each kind of object, over a
// core that they share. It is made on first use.
type engine struct {
	*core
	manifests *resolver
	blobs     *blobs
	referrers *referrers
	importer  *importer
	probes    flight.Group[objectKey, struct{}]
	flights   flight.Set // everything that runs
}

// core is what the parts of the engine share.
type core struct {
	*observer
	gate       *gate
	router     *router
	store      *guardedStore
	registries *registries
	memory     *memory
}

func newEngine(p *Proxy) *engine {
	e := new(engine)
	o := &observer{onEvent: p.OnEvent, log: p.Logger, now: p.Now}
	if o.log == nil {
		o.log = slog.New(slog.DiscardHandler)
	}
	if o.now == nil {
		o.now = time.Now
	}
	lookups := new(hostcall.Lookups)
	store := newGuardedStore(p.Store, o, lookups)
	client := upstream.New(upstream.Config{Transport: p.Transport, Log: o.log, Now: o.now, Flights: &e.flights})
	e.core = &core{
		observer: o,
		gate:     &gate{authorize: p.Authorize},
		router:   &router{rules: p.Rules, endpoint: p.Endpoint, policy: p.Policy, lookups: lookups},
		store:    store, memory: newMemory(store, o.now),
		registries: &registries{client: client, credentials: p.Credentials, rotated: p.Rotated},
	}
	e.manifests = newResolver(e.core, p.Fill, &e.flights)
	e.blobs = newBlobs(e.core, fill.Options{Flights: &e.flights, Dir: p.SpoolDir, SpoolBytes: p.SpoolBytes, Now: o.now})
	e.referrers = newReferrers(e.core, &e.flights)
	e.importer = newImporter(e.manifests, e.blobs, &e.flights)
	e.probes.Join(&e.flights, "rule")
	return e
}

// validateRule asks the rule's upstream registry for /v2/.
func (e *engine) validateRule(ctx context.Context, repo Repo, rule Rule) error {
	rt, err := e.router.routeBy(ctx, rule, repo, "")
	if err != nil {
		return err
	}
	_, _, err = e.probes.Do(ctx, rt.key(""), func(call *flight.Call[objectKey, struct{}]) (struct{}, error) {
		return struct{}{}, e.registries.probe(call.Context(), rt)
	})
	return err
}

// enter decides about a miss: by which rule upstream may be asked, and whether this
// caller may cause that. storeErr is what the Store said: one that has failed must
// not be read as one that has nothing.
func (c *core) enter(ctx context.Context, r Request, storeErr error) (*route, outcome, error) {
	rt, err := c.router.route(ctx, r.Repo)
	switch {
	case err == nil:
		err = c.gate.mayFetch(ctx, ActionImport, r)
	case storeErr != nil && errors.Is(err, ErrNoRule):
		err = storeErr
	}
	if err != nil {
		return nil, outcome{repository: c.presence(ctx, r.Repo, err)}, err
	}
	found, err := c.store.repository(ctx, r.Repo)
	if err == nil && found == absent {
		err = c.gate.mayFetch(ctx, ActionCreate, r)
	}
	return rt, rt.outcome(found), err
}

// presence says whether the repository is there, if the words of err depend on it.
func (c *core) presence(ctx context.Context, repo Repo, err error) presence {
	if e, ok := errors.AsType[*Error](err); !ok || e.Kind != ErrNotFound && e.Kind != ErrNoRule {
		return unknown
	}
	found, _ := c.store.repository(ctx, repo) // a Store that does not tell changes no word
	return found
}

// outcome is what is known once upstream was asked by the route.
func (rt *route) outcome(repository presence) outcome {
	return outcome{hideDenied: rt.policy.HideDenied, repository: repository}
}

// tellFetch completes the event of a fetch by the route and tells it.
func (c *core) tellFetch(ctx context.Context, rt *route, ref string, e Event, t *upstream.Trace, start time.Time, err error) {
	facts := t.Facts()
	e.Kind, e.Request, e.Rule = EventFetch, Request{Repo: rt.repo, Ref: ref}, rt.rule.Prefix
	e.Duration, e.Err = c.now().Sub(start), outcome{}.words(context.Background(), rt.repo, ref, err)
	e.Upstream, e.Anonymous, e.WrongDigest, e.Warnings = facts.Requests, facts.Anonymous, facts.WrongDigest, facts.Warnings
	c.tell(ctx, e)
}
