// Package fill brings a blob from a slow source to any number of readers, once.
//
// A [Fill] belongs to no client. Its goroutine opens a [Source], writes what comes
// into a spool, and hashes it. Clients read the spool from the first byte on, each
// at its own pace. When the digest is right, the readers get the end of the
// content and the owner's Store gets the blob. The owner says by a [Job] where all
// that comes from and goes to, so the package knows no registry and no Store.
//
// The way of one fill: the Store is asked once more, a turn in the lane is taken,
// the source is opened and beside it a place for the content, the content comes and
// is verified, the readers are released, the Store gets it.
//
// A fill that nobody waits for has two lives. Before its source is open it is a call of
// package flight that lingers. From then on the fill keeps that call, and ends it by
// itself: see desertedLocked. Once all content has come it goes on to its end.
//
// Four interleavings are hard. They are told where they happen: joining and
// letting go at [Fill.Release], the end of the content that is held back at
// receive, a client that comes while a fill is being given up at desertedLocked, and
// readers that go on in the Store's file at [Fill.HandOver].
package fill

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

const (
	// A blob this small is verified before it is shown, unless its source takes longer
	// than smallBlobWait.
	smallBlob     = 128 << 10
	smallBlobWait = 2 * time.Second
	// placeWait is how long a fill whose source has said no waits until a place that it does
	// not need any more is given back.
	placeWait = time.Second
)

// call is the flight of a fill, a [flight.Call] by any type of key.
type call interface {
	Context() context.Context
	Linger()
	Keep() bool
	Unkeep()
	Publish(*Fill)
	Waited() bool
	Desert(unheld func() bool) bool
	Unlink()
}

// Fill is one blob on its way. It is safe for concurrent use by those that hold it.
type Fill struct {
	job    Job
	call   call
	budget *budget
	cancel context.CancelCauseFunc
	// unwanted ends when a client wants the blob (see [demand]). nil: one does anyhow.
	unwanted context.Context

	// Set by the fill's goroutine before it publishes, and not changed later.
	spool *spool.Spool // nil: the Store has the blob
	place Place        // where the spool is, if the owner lends it; nil: elsewhere
	room  *room        // what the spool has reserved
	kept  Keeper       // place, if it may outlive the fill; nil: it may not

	shown       bool // by the fill's goroutine, before its digest was looked at
	hidden      bool // nobody was shown the spool before that
	connections int  // that have brought content at a time, at most
	told        bool // its size is a manifest's word, which the source has not confirmed
	broken      bool // what has come is good, as far as anybody knows, and not all
	left        bool // all of it is good, and not stored: it is kept when the spool is gone

	ended chan struct{} // closed when the Store has the blob, or will not have it
	err   error         // why it has not; set before ended is closed
}

// run is a fill from its first question to its end. It runs in the flight.
func run(c call, b *budget, job Job, unwanted context.Context) (*Fill, error) {
	ctx, cancel := context.WithCancelCause(c.Context())
	defer cancel(nil)
	f := &Fill{job: job, call: c, budget: b, cancel: cancel, unwanted: unwanted, ended: make(chan struct{})}
	defer close(f.ended)
	if job.Orphans > 0 {
		c.Linger()
	}
	if job.Stored != nil {
		if stored, err := job.Stored(ctx); err != nil {
			return f, job.Explain(err)
		} else if stored {
			return f, nil
		}
	}
	size, err := f.fetch(ctx)
	if err != nil {
		f.err = err
	}
	if job.Ended != nil {
		job.Ended(c.Context(), Result{Size: size, Err: err, Spooled: f.spool != nil, Connections: f.connections})
	}
	return f, err
}

// fetch receives the blob, verifies it and has it stored. Content that is damaged
// before anybody has seen a byte of it is received once more.
func (f *Fill) fetch(ctx context.Context) (int64, error) {
	leave, err := f.takeTurn(ctx)
	if err != nil {
		return 0, f.job.Explain(err)
	}
	defer leave()
	err = f.receive(ctx)
	if errors.Is(err, errWrongDigest) && f.hidden && f.job.Retry {
		f.discard(err)
		err = f.receive(ctx)
	}
	f.broken = isBroken(err)
	if err != nil {
		err = f.job.Explain(err) // before it enters the spool: readers get it from there
	}
	if f.spool == nil {
		return 0, err
	}
	// Out of sight first: nobody must join a fill that lets go of its content.
	defer func() { f.call.Unlink(); f.spool.Release() }()
	leave() // the Store must not hold up other fills
	return f.conclude(err)
}

// takeTurn waits for a turn in the lane, which leave gives back. A part that waits
// gives up when the flights are closed: only what has begun is brought to its end.
func (f *Fill) takeTurn(ctx context.Context) (leave func(), err error) {
	lane, unwanted := turns(f.budget.lanes, &f.job), f.unwanted
	if unwanted != nil && f.budget.flights != nil {
		var stop context.CancelFunc
		unwanted, stop = f.budget.flights.UntilClosed(unwanted)
		defer stop()
	}
	behind, err := f.budget.take(ctx, unwanted, lane, 1)
	if err != nil {
		return nil, err
	}
	if behind {
		return sync.OnceFunc(func() { lane.GiveBehind(1) }), nil
	}
	return sync.OnceFunc(func() { lane.Give(1) }), nil
}

// receive takes the content from the source into a spool and verifies it. The
// spool stays nil where it has not come that far.
//
// When the first reader sees the content, and how much of it:
//
//  1. Larger than smallBlob: at once. Readers follow all but the last 64 KiB, which
//     the spool withholds. Only where it lies in a Place, and SpoolBytes may not have
//     room should that fail, its first bytes are written first: then it can still be
//     refused. That takes no longer than smallBlobWait.
//  2. Small: after the digest was looked at (conclude publishes), or after
//     smallBlobWait, whichever is first. The timer and the verdict may meet: Stop
//     reports whether the timer has not fired, so hidden is true only if no reader
//     has the spool or ever gets it. Only then may the spool be thrown away.
//  3. Of unknown length: after the digest was looked at. An answer needs a length.
//
// In each case the last bytes are readable after Finish alone, and Finish comes
// after verify. If verify fails, Fail comes instead, and a reader that waits for
// the last bytes gets the error: no reader ever completes content that is wrong.
func (f *Fill) receive(ctx context.Context) (err error) {
	defer hostcall.Recover("the source of a blob", &err)
	defer f.resume(ctx)()
	w := newWindows(ctx, f)
	defer func() { f.connections = max(f.connections, w.stop()) }()
	place := f.lease(ctx)
	defer place.end()
	source, err := f.open(ctx, w)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }() // all that counts has been read, or never will be
	size, err := f.declare(source.Total())
	if err != nil {
		return err
	}
	if err := f.openSpool(ctx, size, place, w); err != nil {
		return err
	}
	w.begin(size, extent.Span{From: source.Offset(), To: source.Until()})
	if !f.call.Keep() { // from here on the watch says how long the fill goes on
		return context.Cause(ctx)
	}
	unseen := f.show(size)
	defer func() {
		f.hidden = unseen()
		if err == nil && !f.hidden && size >= 0 && f.spool.Written() > size {
			err = tooLong(size) // those that were told the size would take the part for the whole
		}
	}()
	watch := newWatch(f, source, w)
	defer watch.Stop()
	err = f.copy(ctx, w, source, size)
	watch.Stop()
	if w.used.Load() && errors.Is(err, errWrongDigest) {
		f.budget.plain.Put(plainKey{f.job.Lane, f.job.Digest}, time.Now())
	}
	if cause := context.Cause(ctx); err == nil && errors.Is(cause, flight.ErrDeserted) {
		err = f.explainBreak(ctx, cause) // it was given up in the moment of its end
	}
	return err
}

// declare returns how long the blob is going to be, -1 where nobody knows. What the
// source says counts. A manifest may be wrong, and still the digest be right.
func (f *Fill) declare(size int64) (int64, error) {
	f.told = size < 0 && f.job.Size != nil
	if f.told {
		size = f.job.Size()
	}
	if size > f.job.maxBytes() {
		return 0, newError(ErrTooLarge, "blob of %d bytes", size)
	}
	return size, nil
}

// openSpool makes the fill's spool: in a Place of the owner, in memory, or in a
// file for which there is room.
func (f *Fill) openSpool(ctx context.Context, size int64, l *lease, w *windows) error {
	place, lent := f.findPlace(ctx, size, l)
	r := &room{budget: f.budget, lent: lent, unwanted: f.unwanted}
	if size > spool.MemoryLimit {
		if err := r.hold(ctx, size); err != nil {
			return err
		}
	}
	o := spool.Options{Size: size, Dir: f.budget.dir, Files: f.budget.files}
	if f.job.OpenPart != nil {
		o.Changed = w.plan
	}
	f.lend(&o, place)
	o.PlaceFailed = func(start int64, err error) error {
		if r.lent && f.job.PlaceFailed != nil { // else it is the spool's own file that fails
			f.job.PlaceFailed(ctx, err)
		}
		return r.move(ctx, start, size)
	}
	var s *spool.Spool
	kept := f.kept
	o.Gone = func() {
		f.budget.spools.Delete(s)
		r.giveBack()
		if f.left {
			kept.Keep()
		}
		if place != nil {
			place.Close()
		}
		if _, own := place.(*shelved); own {
			f.budget.countKept()
		}
	}
	l.taken = true
	s = spool.New(o)
	f.spool, f.place, f.room = s, place, r
	f.budget.spools.Store(s, holding{Snapshot{Owner: f.job.Owner, Digest: f.job.Digest, Began: f.budget.now()}, w})
	return nil
}

// lease is a place that a fill asks for while its source is opened.
type lease struct {
	job   *Job
	ready chan struct{} // closed when it is there, or is not lent; nil: nobody has asked
	place Place
	err   error
	taken bool // by the spool; else it is given back
}

// lease asks for the place, unless what was kept is in one.
func (f *Fill) lease(ctx context.Context) *lease {
	l := &lease{job: &f.job}
	if f.kept == nil {
		l.ask(ctx)
	}
	return l
}

func (l *lease) ask(ctx context.Context) {
	l.ready = make(chan struct{})
	if l.job.Place == nil {
		close(l.ready)
		return
	}
	go func() {
		defer close(l.ready)
		defer hostcall.Recover("the place of a blob", &l.err)
		l.place, l.err = l.job.Place(ctx)
	}()
}

// wait returns the place, nil: none is lent.
func (l *lease) wait(ctx context.Context) (Place, error) {
	if l.ready == nil {
		l.ask(ctx)
	}
	<-l.ready
	return l.place, l.err
}

// end gives back a place that was not taken.
func (l *lease) end() {
	if l.taken || l.ready == nil {
		return
	}
	soon(func() {
		<-l.ready
		if l.place != nil {
			l.place.Abort()
			l.place.Close()
		}
	})
}

// soon calls giveBack, and waits for placeWait at most. A Store that hangs must not hold up
// what the source has said.
func soon(giveBack func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		giveBack()
	}()
	timer := time.NewTimer(placeWait)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// show publishes a fill of that size, now or later. unseen stops what is still to
// come, and reports whether nobody has been shown the spool.
func (f *Fill) show(size int64) (unseen func() bool) {
	switch {
	case size < 0:
		return func() bool { return true }
	case size > f.small() && !f.room.mayRunOut():
		f.call.Publish(f)
		f.shown = true
		return func() bool { return false }
	}
	later := time.AfterFunc(smallBlobWait, func() { f.call.Publish(f) })
	return func() bool { return later.Stop() && !f.shown }
}

// small is how large content may be that is verified before it is shown. Where upstream has
// not said how large it is, what a manifest has told may be wrong: then it is what stays in
// memory.
func (f *Fill) small() int64 {
	if f.told {
		return spool.MemoryLimit
	}
	return smallBlob
}

// showLarge publishes a larger fill whose first bytes have been written.
func (f *Fill) showLarge(size int64) {
	if size > f.small() && !f.shown {
		f.call.Publish(f)
		f.shown = true
	}
}

// discard lets go of a spool that nobody has seen.
func (f *Fill) discard(err error) {
	f.call.Unkeep()
	f.spool.Fail(err)
	f.abort()
	f.spool.Release()
	f.spool, f.place, f.kept = nil, nil, nil
}

func (f *Fill) abort() {
	if f.place != nil {
		f.place.Abort()
	}
}

// conclude ends the spool one way or the other. err is in the owner's words.
func (f *Fill) conclude(err error) (int64, error) {
	if err != nil {
		f.call.Unlink() // first: a client that comes now starts afresh
		f.spool.Fail(err)
		if f.broken && f.kept != nil && f.Whole() {
			f.kept.Keep()
		} else {
			f.abort()
		}
		return 0, err
	}
	f.spool.Finish()
	f.call.Publish(f)
	if f.job.Put != nil {
		f.err = hostcall.Guard("the put of a blob", func() error { return f.job.Put(f.call.Context(), f) })
	}
	switch _, own := f.place.(*shelved); {
	case own && f.err != nil:
		f.Leave()
	case own, f.job.Put == nil:
		f.abort()
	}
	return f.spool.Size(), nil
}

// Leave is for a Put that could not begin. The next fill goes on from here, if that is
// possible, when nobody reads any more: what is verified must not be written again before.
func (f *Fill) Leave() {
	f.left = f.kept != nil && f.Whole()
	if !f.left {
		f.abort()
	}
}

func (f *Fill) retain() {
	if f.spool != nil {
		f.spool.Retain()
	}
}

// Release lets go of the fill. The last one that lets go frees its space.
//
// What is joined stays until it is let go, step by step:
//
//  1. A client asks the group for a key. Under the group's lock it finds a call and
//     is counted as its waiter, or, where the fill is published, retains the spool.
//  2. The fill publishes. Under the same lock the waiters are counted, and the spool
//     is retained once for each. So between Publish and the moment when a waiter
//     runs again, nobody can take the content from it.
//  3. A waiter whose own context has ended meanwhile releases under that lock.
//  4. The fill ends. It is unlinked first, under that lock: from here on no client
//     finds it, and so none retains it. Only then its own hold is released.
//
// So each retain happens while the fill's goroutine holds the spool too, and a
// spool is never retained after its end.
func (f *Fill) Release() {
	if f.spool != nil {
		f.spool.Release()
	}
}

// Follow calls progress with the bytes that have come, until all have. It returns
// why they have not. progress may be called with the same number again.
func (f *Fill) Follow(ctx context.Context, progress func(done int64)) error {
	if f.spool == nil {
		return nil
	}
	for done := int64(0); ; {
		progress(done)
		written, ended, err := f.spool.Wait(ctx, done)
		if err != nil || ended {
			return err
		}
		done = written
	}
}

// Wait waits until the Store has the blob, and returns why it does not get it.
func (f *Fill) Wait(ctx context.Context) error {
	select {
	case <-f.ended:
		return f.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Digest returns the blob's digest.
func (f *Fill) Digest() digest.Digest { return f.job.Digest }

// Size returns the blob's length, -1 while nobody knows it. It is for Put, and for
// those that hold the fill of a blob that was not stored.
func (f *Fill) Size() int64 { return f.spool.Size() }

// Whole reports whether all content is in one place: in the Place, if there is one.
// Otherwise the Place is full or broken, and the rest is in the spool's own file.
func (f *Fill) Whole() bool { return f.spool.Whole() }

// Place returns the place that the owner has lent, nil: none. It is for Put.
func (f *Fill) Place() Place { return f.place }

// NewReader returns the whole content for Put, which closes it.
func (f *Fill) NewReader(ctx context.Context) (*spool.Reader, error) { return f.spool.NewReader(ctx) }

// HandOver lets readers go on with next, the Store's own file, so that the spool's
// space is free before a slow client is done. Put calls it once the Store has the
// blob and the content is not in a committed Place, which costs no space of ours.
//
// The end of a spool, step by step:
//
//  1. Put has stored the blob and calls HandOver. Nothing happens to any reader yet.
//  2. A reader that reads again calls next, on its client's goroutine, and seeks to
//     where it is. If that works it lets go of the spool. If it fails it stays, and
//     does not ask again.
//  3. Put returns. The fill is unlinked and lets go of the spool. A client that
//     comes now finds the blob in the Store.
//  4. A client that has joined before, and opens its reader only now, still holds the
//     spool (see Release). It reads from there, and goes on with next at once.
//  5. The last reader leaves. The spool's file and its room are free.
func (f *Fill) HandOver(next spool.Successor) { f.spool.HandOver(next) }
