package pullthrough

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
	"github.com/ecr-pullthrough/pullthrough/internal/quota"
)

const (
	// importWidth is how many objects of an image are fetched at a time, maxImportObjects
	// how many it may have.
	importWidth      = 4
	maxImportObjects = 10_000
)

var (
	// errKeptBack is why a manifest is not stored although it is here.
	errKeptBack = errors.New("it is not stored before what it refers to")
	errNotKept  = errors.New("the Store did not keep it")
)

// importLane is what the imports of one rule share.
type importLane struct {
	turns   *quota.Quota // of those in the background
	bytes   *quota.Quota // of manifests
	fetches *quota.Quota // of manifests, at a time
}

// walk is one import: it goes through an image and brings in what the Store does not
// have. Each object is visited once, however often indexes list it.
//
// An index is visited in a goroutine of its own, which waits for the visits of what it
// lists. Only what is being looked up or downloaded has one of the few slots, and what
// waits has none: so visits that wait for each other, in this walk and in others, always
// end, since no index can list itself.
type walk struct {
	core      *core
	manifests *resolver
	blobs     *blobs
	flights   *flight.Set
	note      func(d digest.Digest, whole bool) // that all is stored of d that is to be had, or not

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
	done chan struct{} // closed when it has ended
	fate fate
}

// run brings in all that m refers to, and waits until the Store has m, too. ref is the
// tag or digest that m was pulled by.
func (w *walk) run(ctx context.Context, ref string, m *Manifest) error {
	err := w.runParts(ctx, m)
	if ctx.Err() != nil {
		return cmp.Or(err, context.Cause(ctx))
	}
	// The manifest's answer was out before the Store had it.
	stored, failure := w.manifests.isStored(ctx, w.rt, ref, m.Descriptor.Digest)
	if failure != nil {
		return failure
	}
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
	if f, err := w.parts(ctx, m); err != nil {
		w.lack(m.Descriptor, f, err)
	}
	if err := context.Cause(ctx); err != nil {
		w.worst = absentForNow
		return err
	}
	if w.options.Platforms == nil {
		w.note(m.Descriptor.Digest, w.worst <= absentForGood)
	}
	return w.missing(ctx, m)
}

// missing is the error for what the Store does not have. That is told, as an event of the
// whole image m.
func (w *walk) missing(ctx context.Context, m *Manifest) error {
	if len(w.gaps) == 0 {
		return nil
	}
	told := make([]ocispec.Descriptor, min(len(w.gaps), maxGapsTold))
	for i := range told {
		told[i] = w.gaps[i].descriptor
	}
	err, d := missing(w.gaps, len(w.visits)), m.Descriptor.Digest.String()
	event := Event{
		Kind: EventFetch, Request: Request{Repo: w.rt.repo, Ref: d}, Part: true, Rule: w.rt.prefix(), Digest: d,
		Source: SourceFill, Duration: w.core.now().Sub(w.begun), Missing: told,
	}
	if err != nil {
		event.Err = outcome{}.words(context.Background(), w.rt.repo, d, err)
	}
	w.core.tell(ctx, event)
	return err
}

// parts brings in all that m refers to, and returns the worst of what became of it. The
// error is about m itself.
func (w *walk) parts(ctx context.Context, m *Manifest) (fate, error) {
	size := int64(len(m.Content))
	if !w.lane.bytes.TryTake(size) {
		return absentForNow, &Error{Kind: errBusy, Err: errors.New("the manifests of the images that are being imported are too large together")}
	}
	defer w.lane.bytes.Give(size)
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
	v = &visit{done: make(chan struct{}), fate: absentForNow}
	if len(w.visits) == maxImportObjects {
		w.cancel(w.rt.error(ErrTooLarge, fmt.Errorf("the image has more than %d objects", maxImportObjects)))
		close(v.done)
		return v, false
	}
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
		w.options.Progress(d, done, stored, failure)
		return nil
	})
	if err != nil {
		w.panicked.Store(true)
		w.cancel(err)
	}
	return err
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

// persist is [persist] with a slot, which it gives back: what waits has none.
func (w *walk) persist(ctx context.Context, try func() error) error {
	return persist(func() error {
		defer func() { <-w.slots }()
		return try()
	}, func(wait time.Duration) error {
		if err := w.sleep(ctx, wait); err != nil {
			return err
		}
		return w.takeSlot(ctx)
	})
}

// sleep ends early with ctx, and when the proxy is shut down.
func (w *walk) sleep(ctx context.Context, d time.Duration) error {
	ctx, stop := w.flights.UntilClosed(ctx)
	defer stop()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

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
	hold := w.manifests.newHold()
	defer hold.release(absentForNow)
	m, err := w.child(ctx, d, hold)
	if err != nil {
		return fateOf(err), err
	}
	parts, err := w.parts(ctx, m)
	hold.release(parts)
	if err != nil {
		return parts, err
	}
	stored, err := w.manifests.isStored(ctx, w.rt, d.Digest.String(), d.Digest)
	if err == nil && !stored && parts <= absentForGood && hold.isUnused() {
		// It came by the fetch of another import, which was given up. A fetch of our own
		// finds the parts in the Store.
		if err = w.takeSlot(ctx); err == nil {
			_, err = w.child(ctx, d, hold)
		}
		if err == nil {
			stored, err = w.manifests.isStored(ctx, w.rt, d.Digest.String(), d.Digest)
		}
	}
	return w.manifestFate(d, stored, hold != nil, parts, err)
}

// child returns the manifest d of an index. It has a slot, and gives it back.
func (w *walk) child(ctx context.Context, d ocispec.Descriptor, hold *hold) (m *Manifest, err error) {
	err = w.persist(ctx, func() error {
		err := w.lane.fetches.Take(ctx, 1)
		if err == nil {
			defer w.lane.fetches.Give(1)
			m, err = w.manifests.child(ctx, w.rt, d.Digest, hold, func() { _ = w.tell(d, 0, false, nil) })
		}
		return err
	})
	return m, err
}

// manifestFate is what became of a manifest that upstream has. parts is what became of
// what it refers to, which was to be stored before it if eager.
func (w *walk) manifestFate(d ocispec.Descriptor, stored, eager bool, parts fate, err error) (fate, error) {
	switch {
	case err != nil:
		return absentForNow, err
	case stored:
		if parts <= absentForGood && w.options.Platforms == nil {
			w.note(d.Digest, true)
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
	if w.blobs.isStored(ctx, w.rt, d.Digest) {
		return nil
	}
	f, err := w.blobs.part(ctx, w.rt, d.Digest)
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
