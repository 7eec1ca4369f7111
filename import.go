package pullthrough

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/quota"
)

const (
	// maxImports is how many images may wait for their import in the background, and how
	// many for their parts before they are stored. What comes on top is imported when it
	// is pulled again.
	maxImports = 4096
	// importsPerRule is how many of a rule's are imported in the background at a time.
	importsPerRule = 32
	// importBytesPerRule is how much the manifests may have together that the imports of
	// a rule work on.
	importBytesPerRule = 64 << 20
	// importFetchesPerRule is how many manifests the imports of a rule fetch at a time: a
	// quarter of maxFetches, so that clients find a turn.
	importFetchesPerRule = maxFetches / 4

	maxImportRules = 1024
	maxLookedAt    = 16384
	// importPause is how long an image is left alone after its import has failed twice.
	// The next pause is twice as long, up to maxImportPause.
	importPause    = 10 * time.Second
	maxImportPause = 10 * time.Minute
)

// importer brings in whole images. An image is imported by fetching manifests and
// blobs, and fetching a manifest may import an image. Each import is one [walk]. It is begun
//
//   - by [importer.pull] for the host, on the host's context,
//   - by [importer.partsFirst] in the flight of a manifest that is stored after its
//     parts (FillEager),
//   - by [importer.background] in a flight of its own, after a manifest was stored
//     (FillBackground), or when a stored one is pulled that nobody has looked at yet, or
//     that was not whole before; and after a list of referrers was fetched.
//
// So Idle waits for each of the last two, and Shutdown ends them: what waits gives up
// at once, and what is being downloaded is downloaded to its end.
type importer struct {
	*core
	manifests *resolver
	blobs     *blobs
	flights   *flight.Set

	later  flight.Group[imageKey, struct{}] // in the background
	firsts *quota.Quota                     // before their manifest
	lanes  *lru.Cache[routeID, *importLane]
	looked *lru.Cache[imageKey, lookedAt] // images that this process has looked at
}

// imageKey is an image of a repository, tagged or not, or what refers to it.
type imageKey struct {
	repo      Repo
	digest    digest.Digest
	referrers bool
}

// String names the image, for people.
func (k imageKey) String() string { return ocipath.Object(k.repo.Name, k.digest.String()) }

// lookedAt is what was found of an image.
type lookedAt struct {
	whole bool // all is stored that is to be had
	fails int  // imports that have not made it so
	next  time.Time
}

func newImporter(re *resolver, bl *blobs, flights *flight.Set) *importer {
	im := &importer{
		core: re.core, manifests: re, blobs: bl, flights: flights,
		firsts: quota.New(maxImports),
		lanes:  lru.New[routeID, *importLane](maxImportRules),
		looked: lru.New[imageKey, lookedAt](maxLookedAt),
	}
	im.later.Join(flights, "import of")
	return im
}

func (im *importer) lane(rt *route) *importLane {
	return im.lanes.GetOrPut(rt.id, func() *importLane {
		return &importLane{turns: quota.New(importsPerRule), bytes: quota.New(importBytesPerRule), fetches: quota.New(importFetchesPerRule)}
	})
}

func (im *importer) newWalk(rt *route, o ImportOptions) *walk {
	return &walk{
		core: im.core, manifests: im.manifests, blobs: im.blobs, flights: im.flights, rt: rt, lane: im.lane(rt), options: o,
		note:  func(d digest.Digest, whole bool) { im.note(imageKey{repo: rt.repo, digest: d}, whole) },
		begun: im.now(), slots: make(chan struct{}, importWidth), visits: make(map[object]*visit), cancel: func(error) {},
	}
}

// pull brings in the image r.Ref, and returns its manifest.
func (im *importer) pull(ctx context.Context, r Request, o ImportOptions) (*Manifest, outcome, error) {
	m, out, err := im.manifests.pull(ctx, r)
	if err != nil {
		return nil, out, err
	}
	// The manifest may have been a hit: what it refers to has its own price.
	if err := im.mayImport(ctx, r); err != nil {
		return nil, outcome{}, err
	}
	rt, err := im.router.routeBeside(ctx, r.Repo)
	if err != nil {
		return nil, outcome{}, err
	}
	w := im.newWalk(rt, o)
	// What was found out about the manifest says nothing of its parts: by now the
	// repository is there.
	return m, outcome{}, w.run(ctx, r.Ref, m)
}

// partsFirst brings in what m refers to before m is stored, and returns the worst of
// what became of it.
func (im *importer) partsFirst(f *fetching, m *Manifest) fate {
	if !im.firsts.TryTake(1) {
		im.log.Warn("too many images wait for their parts: it is not stored", "repository", f.rt.repo.Name, "ref", f.r.Ref)
		return absentForNow
	}
	defer im.firsts.Give(1)
	w := im.newWalk(f.rt, ImportOptions{})
	// The flight's own context: what the parts cost is theirs, not this fetch's.
	err := w.runParts(f.Context(), m)
	if w.worst > absentForGood {
		im.log.Warn("image is not complete and so not stored", "repository", f.rt.repo.Name, "ref", f.r.Ref, "err", err)
	}
	return w.worst
}

// importLater brings in what m refers to while nobody waits.
func (im *importer) importLater(rt *route, m *Manifest) {
	key := imageKey{repo: rt.repo, digest: m.Descriptor.Digest}
	im.begin(key, func(context.Context) *route { return rt }, im.storedImage(key))
}

// importReferrers brings in what a list of referrers has, for a subject that is stored, while
// nobody waits: images without tags. list reads the list when their turn has come.
func (im *importer) importReferrers(rt *route, subject digest.Digest, list func(context.Context) *ocispec.Index) {
	if im.manifests.fill == FillLazy {
		return
	}
	key := imageKey{rt.repo, subject, true}
	im.begin(key, func(context.Context) *route { return rt }, func(ctx context.Context) *Manifest {
		index := list(ctx)
		if index == nil || im.storedImage(key)(ctx) == nil {
			return nil
		}
		content, err := json.Marshal(index)
		if err != nil {
			return nil
		}
		return &Manifest{
			Descriptor: ocispec.Descriptor{MediaType: index.MediaType, Digest: digest.FromBytes(content), Size: int64(len(content))},
			Content:    content,
		}
	})
}

// storedImage returns what reads the manifest of the image from the Store; it returns nil for
// a miss.
func (im *importer) storedImage(key imageKey) func(context.Context) *Manifest {
	return func(ctx context.Context) *Manifest { return im.store.findManifest(ctx, key.repo, key.digest.String()) }
}

// takeUp looks whether all of m is stored, which was stored before, and brings in the
// rest: after a restart, and after an import that has failed. It is on the way of
// hits, and asks nobody unless there is something to do. The caller's right to cause a
// fetch is asked for beside that, with the values of ctx and not with its end.
func (im *importer) takeUp(ctx context.Context, r Request, m *Manifest) {
	if im.manifests.fill == FillLazy || m.Source != SourceHit && m.Source != SourceRevalidated {
		return
	}
	key, local := imageKey{repo: r.Repo, digest: m.Descriptor.Digest}, m.Origin == ""
	if at, ok := im.looked.Get(key); ok && (at.whole || im.now().Before(at.next)) {
		return
	}
	im.begin(key, func(flight context.Context) *route {
		asking, stop := context.WithCancel(context.WithoutCancel(ctx))
		defer stop()
		defer context.AfterFunc(flight, stop)()
		rt, err := im.router.routeBeside(asking, r.Repo)
		if err != nil || rt.policy.Offline || local && rt.policy.KeepLocal {
			im.note(key, false) // not on each hit
			return nil
		}
		if im.mayImport(asking, r) != nil {
			return nil
		}
		return rt
	}, im.storedImage(key))
}

// begin starts an import in the background, unless one runs. find is its way upstream; nil: none.
// read returns the manifest whose parts are brought in, once it is their turn; nil: none.
func (im *importer) begin(key imageKey, find func(context.Context) *route, read func(context.Context) *Manifest) {
	if im.later.Len() >= maxImports {
		im.log.Warn("too many images wait for their import", "repository", key.repo.Name, "digest", key.digest.String())
		return
	}
	_, _, _ = im.later.Do(context.Background(), key, func(call *flight.Call[imageKey, struct{}]) (struct{}, error) {
		call.Publish(struct{}{}) // nobody waits for the rest
		if rt := find(call.Context()); rt != nil {
			im.background(call.Context(), rt, key, read)
		}
		return struct{}{}, nil
	})
}

// background imports an image in its turn. What waits has no manifest in its hands:
// that may be large, and there may be many.
func (im *importer) background(ctx context.Context, rt *route, key imageKey, read func(context.Context) *Manifest) {
	waiting, stop := im.flights.UntilClosed(ctx)
	defer stop()
	turns := im.lane(rt).turns
	if turns.Take(waiting, 1) != nil {
		return
	}
	defer turns.Give(1)
	m := read(ctx)
	if m == nil {
		return
	}
	w := im.newWalk(rt, ImportOptions{})
	if err := w.runParts(ctx, m); err != nil {
		im.log.Warn("image could not be imported whole", "repository", rt.repo.Name, "digest", key.digest.String(), "err", err)
	}
}

// unfinished are the images that are not whole and are left alone for now, as events of
// fetches that wait.
func (im *importer) unfinished() (all []Event) {
	now := im.now()
	im.looked.Each(func(key imageKey, at lookedAt) {
		if at.whole || !now.Before(at.next) {
			return
		}
		all = append(all, Event{
			Kind: EventFetch, Part: true, Request: Request{Repo: key.repo, Ref: key.digest.String()}, Digest: key.digest.String(),
			Err: &Error{Kind: ErrUnavailable, RetryAfter: at.next.Sub(now), Err: errUnfinished},
		})
	})
	return all
}

// errUnfinished is why an image is not imported now.
var errUnfinished = errors.New("the image is not whole: a pull of it later on brings in the rest")

// note remembers how an import has ended. One that has failed is taken up by the next
// pull, and from the second failure on after a pause.
func (im *importer) note(key imageKey, whole bool) {
	at, _ := im.looked.Get(key)
	if whole {
		im.looked.Put(key, lookedAt{whole: true})
		return
	}
	if at.fails > 0 {
		at.next = im.now().Add(min(importPause<<min(at.fails-1, 10), maxImportPause))
	}
	at.fails++
	im.looked.Put(key, at)
}
