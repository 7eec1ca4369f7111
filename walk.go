package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
)

const (
	// importWidth is how many objects of an image are fetched at a time, maxImportObjects
	// how many it may have.
	importWidth      = 4
	maxImportObjects = 10_000
)

// walk is one import: it goes through an image and brings in what the Store does not
// have. Each object is visited once, however often indexes list it.
//
// An index is visited in a goroutine of its own, which waits for the visits of what it
// lists. Only what is being looked up or downloaded has one of the few slots, and what
// waits has none: so visits that wait for each other, in this walk and in others, always
// end, since no index can list itself.
type walk struct {
	im      *importer
	rt      *route
	lane    *importLane
	options ImportOptions
	begun   time.Time
	slots   chan struct{}
	cancel  context.CancelCauseFunc

	panicked atomic.Bool // Progress has, and is not called again

	mu     sync.Mutex
	visits map[object]*visit
	gaps   []gap // what the Store does not have in the end
	bytes  int64 // of manifests
	worst  fate  // of all that was visited
}

// object is what a walk visits. The media type of its descriptor says whether it is a
// manifest: an index may list blobs, as that of a build cache does.
type object struct {
	digest   digest.Digest
	manifest bool
}

// visit is one object on its way.
type visit struct {
	done chan struct{} // closed once fate is set
	fate fate
}

func (im *importer) newWalk(rt *route, o ImportOptions) *walk {
	return &walk{
		im: im, rt: rt, lane: im.lane(rt), options: o, begun: im.now(),
		slots: make(chan struct{}, importWidth), visits: make(map[object]*visit), cancel: func(error) {},
	}
}

// run brings in all that m refers to, and waits until the Store has m, too. ref is the
// tag or digest that m was pulled by.
func (w *walk) run(ctx context.Context, ref string, m *Manifest) error {
	err := w.runParts(ctx, m)
	if ctx.Err() != nil {
		return err
	}
	// The manifest's answer was out before the Store had it.
	if err := w.im.manifests.stored(ctx, w.rt, ref); err != nil {
		return err
	}
	stored := w.im.store.findManifest(ctx, w.rt.repo, m.Descriptor.Digest.String()) != nil
	if err == nil && !stored {
		err = &Error{Kind: errInternal, Err: errNotKept}
	}
	var why error
	if !stored {
		why = err
	}
	if panicked := w.tell(m.Descriptor, m.Descriptor.Size, stored, why); err == nil {
		err = panicked
	}
	return err
}

// runParts brings in all that m refers to. The error says what is missing, of what the
// registry is meant to have.
func (w *walk) runParts(ctx context.Context, m *Manifest) error {
	ctx, w.cancel = context.WithCancelCause(ctx)
	defer w.cancel(nil)
	defer func() { w.lane.bytes.Give(w.bytes) }()
	if f, err := w.parts(ctx, m); err != nil {
		w.lack(m.Descriptor, f, err)
	}
	if err := context.Cause(ctx); err != nil {
		w.worst = absentForNow
		return err
	}
	if w.options.Platforms == nil {
		w.im.note(imageKey{w.rt.repo, m.Descriptor.Digest}, w.worst <= absentForGood)
	}
	err := w.missing()
	w.tellMissing(ctx, m, err)
	return err
}

// parts brings in all that m refers to, and returns the worst of what became of it. The
// error is about m itself.
func (w *walk) parts(ctx context.Context, m *Manifest) (fate, error) {
	if err := w.reserve(m); err != nil {
		return absentForNow, err
	}
	info, err := manifest.Inspect(m.Descriptor.MediaType, m.Content, manifest.Stored)
	if err != nil {
		return absentForNow, w.rt.error(ErrUnavailable, err)
	}
	visits := make([]*visit, 0, len(info.Manifests)+len(info.Blobs))
	for _, d := range info.Manifests {
		if o := (object{d.Digest, d.MediaType == "" || manifest.IsType(d.MediaType)}); !o.manifest || w.options.wants(d) {
			visits = append(visits, w.visit(ctx, o, d))
		}
	}
	for _, d := range info.Blobs {
		visits = append(visits, w.visit(ctx, object{d.Digest, manifest.IsType(d.MediaType)}, d))
	}
	worst := kept
	for _, v := range visits {
		<-v.done
		worst = max(worst, v.fate)
	}
	return worst, nil
}

// reserve counts the manifest among those that imports of the rule work on.
func (w *walk) reserve(m *Manifest) error {
	size := int64(len(m.Content))
	if !w.lane.bytes.TryTake(size) {
		return &Error{Kind: errBusy, Err: errors.New("the manifests of the images that are being imported are too large together")}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bytes += size
	return nil
}

// visit brings in o, unless that has begun already. It returns when that has begun.
func (w *walk) visit(ctx context.Context, o object, d ocispec.Descriptor) *visit {
	v, first := w.enter(o)
	if !first {
		return v
	}
	if err := w.takeSlot(ctx); err != nil {
		w.end(v, d, absentForNow, err)
		return v
	}
	go func() {
		f, err := w.bringIn(ctx, o, d)
		w.end(v, d, f, err)
	}()
	return v
}

// enter returns the visit of o, and whether the caller is to make it.
func (w *walk) enter(o object) (v *visit, first bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if v, ok := w.visits[o]; ok {
		return v, false
	}
	if len(w.visits) == maxImportObjects {
		w.cancel(w.rt.error(ErrTooLarge, fmt.Errorf("the image has more than %d objects", maxImportObjects)))
	}
	v = &visit{done: make(chan struct{})}
	w.visits[o] = v
	return v, true
}

// end notes what became of d, and releases those that wait for it.
func (w *walk) end(v *visit, d ocispec.Descriptor, f fate, err error) {
	if f == kept {
		_ = w.tell(d, d.Size, true, nil)
	} else {
		w.lack(d, f, err)
	}
	v.fate = f
	close(v.done)
}

// lack notes what the Store does not have.
func (w *walk) lack(d ocispec.Descriptor, f fate, err error) {
	err = outcome{}.words(context.Background(), w.rt.repo, d.Digest.String(), err)
	w.mu.Lock()
	w.worst = max(w.worst, f)
	w.gaps = append(w.gaps, gap{d, f, f == absentForGood && manifest.IsForeign(d.MediaType), err})
	w.mu.Unlock()
	_ = w.tell(d, 0, false, err)
}

// tell reports how far an object is. A Progress that panics ends the import.
func (w *walk) tell(d ocispec.Descriptor, done int64, stored bool, failure error) error {
	if w.options.Progress == nil || w.panicked.Load() {
		return nil
	}
	err := hostcall.Guard("Progress", func() error {
		w.options.Progress(ImportProgress{Descriptor: d, Done: done, Total: d.Size, Stored: stored, Err: failure})
		return nil
	})
	if err != nil {
		w.panicked.Store(true)
		w.cancel(err)
	}
	return err
}

func (o ImportOptions) wants(d ocispec.Descriptor) bool {
	if o.Platforms == nil {
		return true
	}
	return d.Platform != nil && slices.ContainsFunc(o.Platforms, func(p ocispec.Platform) bool {
		return p.OS == d.Platform.OS && p.Architecture == d.Platform.Architecture && (p.Variant == "" || p.Variant == d.Platform.Variant)
	})
}

// takeSlot waits for one of the few places for what costs something.
func (w *walk) takeSlot(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	select {
	case w.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (w *walk) giveSlot() { <-w.slots }

// bringIn has a slot, and gives it back.
func (w *walk) bringIn(ctx context.Context, o object, d ocispec.Descriptor) (f fate, err error) {
	if o.manifest {
		return w.manifest(ctx, d)
	}
	err = w.persist(ctx, func() error { return w.blob(ctx, d) })
	f = fateOf(err)
	if f == absentForNow && manifest.IsForeign(d.MediaType) && isRefused(err) {
		f = absentForGood
	}
	return f, err
}

// manifest brings in a manifest of an index and what that refers to.
func (w *walk) manifest(ctx context.Context, d ocispec.Descriptor) (fate, error) {
	hold := w.im.manifests.newHold()
	defer hold.release(absentForNow)
	var m *Manifest
	fetches := w.lane.fetches
	err := w.persist(ctx, func() error {
		err := fetches.Take(ctx, 1)
		if err == nil {
			defer fetches.Give(1)
			m, err = w.im.manifests.child(ctx, w.rt, d.Digest, hold, func() { _ = w.tell(d, 0, false, nil) })
		}
		return err
	})
	if err != nil {
		return fateOf(err), err
	}
	parts, err := w.parts(ctx, m)
	hold.release(parts)
	if err != nil {
		return parts, err
	}
	stored, err := w.isStored(ctx, d)
	if err == nil && !stored && parts <= absentForGood && hold.isUnused() {
		// It came by the fetch of another import, which was given up. A fetch of our own
		// finds the parts in the Store.
		if _, err = w.im.manifests.child(ctx, w.rt, d.Digest, hold, func() {}); err == nil {
			stored, err = w.isStored(ctx, d)
		}
	}
	return w.manifestFate(d, stored, parts, err)
}

// isStored reports whether the Store has the manifest once nobody fetches it any more.
func (w *walk) isStored(ctx context.Context, d ocispec.Descriptor) (bool, error) {
	if err := w.im.manifests.stored(ctx, w.rt, d.Digest.String()); err != nil {
		return false, err
	}
	return w.im.store.findManifest(ctx, w.rt.repo, d.Digest.String()) != nil, nil
}

// manifestFate is what became of a manifest that upstream has. parts is what became of
// what it refers to.
func (w *walk) manifestFate(d ocispec.Descriptor, stored bool, parts fate, err error) (fate, error) {
	eager := w.im.manifests.fill == FillEager
	switch {
	case err != nil:
		return absentForNow, err
	case stored:
		if parts <= absentForGood && w.options.Platforms == nil {
			w.im.note(imageKey{w.rt.repo, d.Digest}, true)
		}
		return kept, nil
	case eager && parts == absentForNow:
		return absentForNow, w.rt.error(ErrUnavailable, errKeptBack)
	case eager && parts == absentForGood: // the Store does not want it with holes
		return absentForGood, &Error{Kind: errInternal, Err: errNotKept}
	}
	return absentForNow, &Error{Kind: errInternal, Err: errNotKept}
}

// blob brings in a blob and waits until the Store has it.
func (w *walk) blob(ctx context.Context, d ocispec.Descriptor) error {
	if w.im.blobs.isStored(ctx, w.rt, d.Digest) {
		return nil
	}
	f, err := w.im.blobs.part(ctx, w.rt, d.Digest)
	if err != nil {
		return err
	}
	defer f.Release()
	if err := f.Follow(ctx, func(done int64) { _ = w.tell(d, done, false, nil) }); err != nil {
		return err
	}
	if err := f.Wait(ctx); err != nil {
		return &Error{Kind: errInternal, Err: fmt.Errorf("%w: %w", errNotKept, err)}
	}
	return nil
}
