package pullthrough

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/fill"
	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/referrerlist"
	"github.com/ecr-pullthrough/pullthrough/internal/serve"
)

// engine is what a Proxy keeps in memory: one part for each kind of object, over a
// core that they share. It is made on first use, of the Proxy's fields as they are
// then. It gives each answer its event, and each error its words.
type engine struct {
	*core
	manifests *resolver
	blobs     *blobs
	referrers *referrers
	tagLists  *tagLists
	importer  *importer
	flights   flight.Set   // everything that runs
	writes    *serve.Watch // what is being written to clients
}

func newEngine(s settings) *engine {
	e := new(engine)
	e.core = newCore(s, &e.flights)
	e.manifests = newResolver(e.core, s.fill, &e.flights)
	e.blobs = newBlobs(e.core, fill.Options{Flights: &e.flights, Dir: s.spoolDir, SpoolBytes: s.spoolBytes, Now: e.now})
	e.referrers = newReferrers(e.core, &e.flights)
	e.tagLists = newTagLists(e.core, &e.flights)
	e.importer = newImporter(e.manifests, e.blobs, &e.flights)
	e.referrers.importLater = e.importer.importReferrers
	e.manifests.partsFirst, e.manifests.importLater = e.importer.partsFirst, e.importer.importLater
	e.writes = &serve.Watch{Silence: s.maxSilence, Ended: e.endedSilent}
	return e
}

func (e *engine) manifest(ctx context.Context, r Request) (*Manifest, outcome, error) {
	start := e.start()
	m, out, err := e.manifests.pull(ctx, r)
	event := Event{Kind: EventManifest, Request: r}
	if err == nil {
		e.importer.takeUp(ctx, r, m)
		event.Digest, event.Source, event.Bytes = m.Descriptor.Digest.String(), m.Source, m.Descriptor.Size
	}
	return m, out, e.answer(ctx, event, start, out, err)
}

func (e *engine) blob(ctx context.Context, r Request, want fill.Want) (*Blob, outcome, error) {
	start := e.start()
	b, out, err := e.blobs.pull(ctx, r, want)
	event := Event{Kind: EventBlob, Request: r}
	if err == nil {
		event.Digest, event.Source, event.Bytes = b.Descriptor.Digest.String(), b.Source, b.Descriptor.Size
		b.writes = e.writes
	}
	return b, out, e.answer(ctx, event, start, out, err)
}

// storedBlob is blob for what the Store has. A nil Blob without an error is a miss, of
// which nobody is told.
func (e *engine) storedBlob(ctx context.Context, r Request) (*Blob, error) {
	start := e.start()
	b, err := e.blobs.stored(ctx, r)
	event := Event{Kind: EventBlob, Request: r}
	switch {
	case err == nil && b == nil:
		return nil, nil
	case err == nil:
		event.Digest, event.Source, event.Bytes = b.Descriptor.Digest.String(), b.Source, b.Descriptor.Size
		b.writes = e.writes
	}
	return b, e.answer(ctx, event, start, outcome{}, err)
}

func (e *engine) listReferrers(ctx context.Context, r Request, artifactType string) (*ocispec.Index, outcome, error) {
	start := e.start()
	index, source, out, err := e.referrers.pull(ctx, r)
	err = e.answer(ctx, Event{Kind: EventReferrers, Request: r, Source: source}, start, out, err)
	if err != nil {
		return nil, out, err
	}
	return referrerlist.OfType(index, artifactType), out, nil
}

func (e *engine) importImage(ctx context.Context, r Request, o ImportOptions) (*Manifest, error) {
	m, out, err := e.importer.pull(ctx, r, o)
	return m, e.explain(ctx, r, out, err)
}

func (e *engine) downloads() []Download { return e.blobs.downloads() }

// pending is what waits for upstream although nothing is being downloaded.
func (e *engine) pending() []Event {
	all := append([]Event{}, e.registries.held()...)
	all = append(all, e.manifests.checks.paused(e.now())...)
	all = append(all, e.importer.unfinished()...)
	for _, l := range e.flights.Lingering() {
		if key, ok := l.Key.(objectKey); ok {
			all = append(all, key.waiting(objectOf[l.Group]))
		}
	}
	slices.SortStableFunc(all, func(a, b Event) int {
		x, y := a.Request, b.Request
		return cmp.Or(
			cmp.Compare(x.Repo.Account+" "+x.Repo.Region, y.Repo.Account+" "+y.Repo.Region),
			cmp.Compare(a.Rule, b.Rule), cmp.Compare(x.Repo.Name, y.Repo.Name), cmp.Compare(a.Object, b.Object), cmp.Compare(x.Ref, y.Ref),
		)
	})
	return all
}

func (e *engine) shutdown(ctx context.Context) error {
	defer e.close()
	return e.flights.Shutdown(ctx)
}

func (e *engine) idle(ctx context.Context, repos []Repo) error {
	if len(repos) > 0 {
		return e.settle(ctx, repos)
	}
	if err := e.flights.Idle(ctx); err != nil {
		return fmt.Errorf("pullthrough: not idle: %s: %w", strings.Join(e.flights.Running(), ", "), err)
	}
	return nil
}

// settle waits until what was answered from these repositories is stored.
func (e *engine) settle(ctx context.Context, repos []Repo) error {
	match := func(key objectKey) bool { return slices.ContainsFunc(repos, key.isOf) }
	err := e.manifests.flights.Settle(ctx, func(key objectKey, _ *Manifest) bool { return match(key) })
	return cmp.Or(err, e.blobs.fills.Settle(ctx, match))
}

// listPatience is how long a list waits for what was answered before it was asked for.
const listPatience = time.Second

// settled is settle for a list, which does without in the end.
func (e *engine) settled(ctx context.Context, repo Repo) {
	ctx, cancel := context.WithTimeout(ctx, listPatience)
	defer cancel()
	_ = e.settle(ctx, []Repo{repo})
}

// tags lists the tags of a repository, with those of the pulls before.
func (e *engine) tags(ctx context.Context, r Request) ([]string, error) {
	if e.store.listsTags() {
		e.settled(ctx, r.Repo)
	}
	return e.core.tags(ctx, r)
}

// allTags is tags, with those that upstream has, where the Policy says so and the caller may
// import.
func (e *engine) allTags(ctx context.Context, r Request) ([]string, error) {
	stored, err := e.tags(ctx, r)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	rt := e.tagLists.wanted(ctx, r.Repo)
	if rt != nil && e.mayImport(ctx, r) != nil {
		rt = nil
	}
	return e.tagLists.withUpstream(ctx, rt, stored, err)
}

// repos lists the repositories of a registry, with those of the pulls before.
func (e *engine) repos(ctx context.Context, r Request) ([]string, error) {
	e.settled(ctx, r.Repo)
	return e.core.repos(ctx, r)
}

// delete deletes what ref names in the repository, or the repository if ref is "".
func (e *engine) delete(ctx context.Context, repo Repo, ref string) error {
	if err := ocipath.CheckName(repo.Name); err != nil {
		return invalid(repo, ref, err)
	}
	if !e.store.deletes() {
		return fmt.Errorf("the Store is no ImageDeleter: %w", errors.ErrUnsupported)
	}
	e.settled(ctx, repo) // what was answered before is there, and is deleted
	unlink := func() { e.forget(repo, ref) }
	return e.store.deletions.delete(ctx, deleted{repo, ref}, unlink, func() error {
		return e.store.delete(ctx, repo, ref)
	})
}

// forget has the next pull of ref, or of all in the repository if ref is "", ask anew.
func (e *engine) forget(repo Repo, ref string) {
	match := func(key objectKey) bool { return key.isOf(repo) && (ref == "" || key.ref == ref) }
	e.manifests.flights.Unlink(match)
	e.registries.memory.forget(match)
	if ref == "" {
		e.referrers.lists.RemoveAll(match)
		e.importer.looked.RemoveAll(func(key imageKey) bool { return key.repo == repo })
	}
}
