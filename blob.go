package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"net/http"
	"sync/atomic"
	"syscall"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
	"github.com/ecr-pullthrough/pullthrough/internal/fill"
	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/serve"
	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
)

// maxLosses bounds how often a blob that the Store loses is looked for again.
const maxLosses = 3

// blobs finds blobs: in the Store, or upstream. What comes from upstream is a fill,
// which any number of clients read.
type blobs struct {
	*core
	memory *memory
	fills  *fill.Group[objectKey]
	heads  flight.Group[objectKey, int64]
	puts   putCounts
}

// putCounts are how many blobs have been put, or could not be, by their digests. Several
// digests share a count.
type putCounts struct {
	seed   maphash.Seed
	counts [256]atomic.Uint64
}

func (p *putCounts) of(d digest.Digest) *atomic.Uint64 {
	return &p.counts[maphash.String(p.seed, string(d))%uint64(len(p.counts))]
}

// look is what the Store has said of a blob that a fetch is begun for.
type look struct {
	puts   uint64 // how many there had been right before
	failed bool
}

// isOld reports whether the Store may have got the blob since. Whoever looked before the
// end of a put may begin a fetch of its own after it.
func (bl *blobs) isOld(l look, d digest.Digest) bool {
	return l.failed || bl.puts.of(d).Load() != l.puts
}

func newBlobs(c *core, o fill.Options) *blobs {
	bl := &blobs{core: c, memory: c.registries.memory, fills: fill.New[objectKey](o)}
	bl.heads.Join(o.Flights, "size of")
	bl.puts.seed = maphash.MakeSeed()
	return bl
}

// pull answers HEAD and GET of a blob.
func (bl *blobs) pull(ctx context.Context, r Request, want fill.Want) (*Blob, outcome, error) {
	d, err := bl.admitDigest(ctx, r)
	if err != nil {
		return nil, outcome{}, err
	}
	puts := bl.puts.of(d).Load()
	b, storeErr := bl.store.blob(ctx, r.Repo, d)
	if b != nil {
		return bl.sure(ctx, r, b), outcome{}, nil
	}
	rt, out, err := bl.enter(ctx, r, storeErr)
	switch {
	case err != nil:
		return nil, out, err
	case out.repository == absent && rt.wantsManifestFirst():
		return nil, out, &Error{Kind: ErrNotFound} // blobs come after their manifest
	case r.Head:
		b, err = bl.head(ctx, rt, d)
	default:
		b, err = bl.get(ctx, rt, d, want, look{puts, storeErr != nil})
	}
	out.repository = unknown // upstream was asked for the blob, and its answer counts
	return b, out, err
}

func errLost(rt *route) error {
	return rt.error(ErrUnavailable, errors.New("the Store loses the blob again and again before it can be read"))
}

// stored returns the blob if the Store has it. A nil Blob without an error is a miss.
func (bl *blobs) stored(ctx context.Context, r Request) (*Blob, error) {
	d, err := bl.admitDigest(ctx, r)
	if err != nil {
		return nil, err
	}
	b, _ := bl.store.blob(ctx, r.Repo, d) // a failure is told, and is a miss
	if b == nil {
		return nil, nil
	}
	return bl.sure(ctx, r, b), nil
}

// sure makes a hit whose Body is no file one that is fetched where that Body turns out
// not to be there. What answers by itself, and what lies in memory, stays as it is.
func (bl *blobs) sure(ctx context.Context, r Request, b *Blob) *Blob {
	switch b.Body.(type) {
	case syscall.Conn, http.Handler, *memoryBody:
		return b
	}
	if r.Head {
		return b
	}
	hit, size := *b, b.Descriptor.Size
	hit.Body = newLateBody(b.Body, func(cause error) (io.ReadSeekCloser, error) { return bl.refetch(ctx, r, size, cause) })
	return &hit
}

// refetch brings in a blob whose Body could not be read, because of cause. The Store,
// which says that it has the blob, is not asked again.
func (bl *blobs) refetch(ctx context.Context, r Request, size int64, cause error) (io.ReadSeekCloser, error) {
	if errors.Is(cause, fs.ErrNotExist) {
		cause = nil
	}
	bl.store.failed(ctx, "Store.Blob", r.Repo, r.Ref, cause)
	rt, out, err := bl.enter(ctx, r, cause)
	out.blob = true
	if err != nil {
		return nil, bl.explain(ctx, r, out, err)
	}
	unasked := func() fill.Job {
		j := bl.job(rt, digest.Digest(r.Ref), false)
		j.Stored = nil
		return j
	}
	for range maxLosses { // another fetch, which has asked the Store, may run
		var a fill.Answer
		a, err = bl.fills.Open(ctx, rt.key(r.Ref), unasked)
		if err == nil && a.Size == size {
			return a.Body, nil
		}
		if err == nil {
			err = errors.Join(rt.error(ErrDigest, fmt.Errorf("blob of %d bytes is stored with %d", a.Size, size)), a.Body.Close())
		}
		if !errors.Is(err, fill.ErrStored) {
			return nil, bl.explain(ctx, r, out, err)
		}
	}
	return nil, bl.explain(ctx, r, out, errLost(rt))
}

// head answers an existence check as a GET would be answered, and downloads nothing. That a
// manifest refers to the blob does not say that there is one.
func (bl *blobs) head(ctx context.Context, rt *route, d digest.Digest) (*Blob, error) {
	if _, err := bl.registries.target(rt, d.String()); err != nil {
		return nil, err // the size may be known, but the blob could not be pulled
	}
	size, known := bl.sizeOfExisting(rt, d)
	if !known {
		var err error
		size, _, err = bl.heads.Do(ctx, rt.key(d.String()), func(call *flight.Call[objectKey, int64]) (int64, error) {
			rt.begin(call)
			return bl.askSize(call.Context(), rt, d)
		})
		if err != nil {
			return nil, err
		}
	}
	if size > rt.policy.maxBlob() {
		return nil, rt.error(ErrTooLarge, fmt.Errorf("blob of %d bytes", size))
	}
	b := NewBlob(d, nil)
	b.Descriptor.Size = size
	b.Source = SourceFill
	return b, nil
}

// askSize runs in the flight. The flight before may have ended since we looked.
func (bl *blobs) askSize(ctx context.Context, rt *route, d digest.Digest) (int64, error) {
	if size, known := bl.sizeOfExisting(rt, d); known {
		return size, nil
	}
	size, err := bl.registries.blobSize(ctx, rt, d)
	if err != nil {
		bl.logFetch(ctx, rt, d.String(), err)
		if isRefuted(err) {
			bl.memory.forgetSize(rt, d)
		}
		return 0, err
	}
	if size < 0 { // else a manifest may be wrong
		told, known, _ := bl.memory.size(rt, d)
		if !known {
			return 0, rt.error(ErrUnavailable, errors.New("upstream has the blob and does not tell its size"))
		}
		size = told
	}
	bl.memory.noteExists(rt, d, size)
	return size, nil
}

// isRefuted reports whether err says that a blob is not there, or not as it was told.
func isRefuted(err error) bool {
	return errors.Is(err, ErrNotFound) || errors.Is(err, ErrDenied) || errors.Is(err, ErrDigest)
}

// sizeOfExisting is the size of a blob that is on its way, or that upstream has.
func (bl *blobs) sizeOfExisting(rt *route, d digest.Digest) (int64, bool) {
	if size, ok := bl.fills.Size(rt.key(d.String())); ok {
		return size, true
	}
	size, _, exists := bl.memory.size(rt, d)
	return size, exists
}

// get opens a reader on the fill of d, and starts one if none runs. A blob that the
// Store has got since we looked is the Store's, unless it is gone again by now.
func (bl *blobs) get(ctx context.Context, rt *route, d digest.Digest, want fill.Want, last look) (*Blob, error) {
	for range maxLosses {
		a, err := bl.fills.Open(ctx, rt.key(d.String()), func() fill.Job {
			j := bl.job(rt, d, false)
			j.Want = want
			if !bl.isOld(last, d) {
				j.Stored = nil
			}
			return j
		})
		if err == nil {
			return filling(a, d), nil
		}
		if !errors.Is(err, fill.ErrStored) {
			return nil, err
		}
		if b, err := bl.store.blob(ctx, rt.repo, d); b != nil || err != nil {
			return b, err
		}
	}
	return nil, errLost(rt)
}

// filling is a fill as the answer to a client.
func filling(a fill.Answer, d digest.Digest) *Blob {
	b := &Blob{Body: a.Body, Source: SourceFill}
	b.Descriptor = ocispec.Descriptor{MediaType: serve.MediaTypeBlob, Digest: d, Size: a.Size}
	if a.Shared {
		b.Source = SourceShared
	}
	return b
}

// part joins the fill of d for an import. The caller releases it.
func (bl *blobs) part(ctx context.Context, rt *route, d digest.Digest) (*fill.Fill, error) {
	f, _, err := bl.fills.Join(ctx, rt.key(d.String()), func() fill.Job { return bl.job(rt, d, true) })
	return f, err
}

// isStored reports whether the Store has the blob.
func (bl *blobs) isStored(ctx context.Context, rt *route, d digest.Digest) bool {
	return bl.store.hasBlob(ctx, rt.repo, d)
}

// onItsWay is a download as a fill knows it, and what is noted of its way upstream.
type onItsWay struct {
	Download
	trace *upstream.Trace
}

// downloads is what is on its way.
func (bl *blobs) downloads() []Download {
	all := []Download{}
	for _, s := range bl.fills.All() {
		o := s.Owner.(onItsWay)
		d := o.Download
		d.Retries = o.trace.Facts().Resumes
		d.Began, d.Size, d.Written, d.Readers = s.Began, s.Size, s.Written, s.Readers
		d.Ahead, d.Connections = s.Ahead, s.Connections
		all = append(all, d)
	}
	return all
}

// job is how a blob comes from the route's upstream into the Store. part says that
// an import wants it, no client.
func (bl *blobs) job(rt *route, d digest.Digest, part bool) fill.Job {
	event := bl.fetchEvent(EventBlob, part)
	j := fill.Job{
		Digest: d,
		Part:   part,
		Owner:  onItsWay{Download{Repo: rt.repo, Digest: d, Upstream: rt.base.Host, Part: part}, event.Trace},
		Stored: func(ctx context.Context) (bool, error) { return bl.store.hasBlob(ctx, rt.repo, d), nil },
		Open: func(ctx context.Context, span extent.Span, size int64) (fill.Source, error) {
			return bl.registries.blob(event.Attach(ctx), rt, d, span, size)
		},
		Key:    rt.key(d.String()).hash(),
		Resume: func(ctx context.Context, key string) fill.Keeper { return bl.resume(ctx, rt, d, key) },
		OpenPart: func(ctx context.Context, span extent.Span) (fill.Part, error) {
			return bl.registries.part(event.Attach(ctx), rt, d, span)
		},
		Size:  func() int64 { return bl.toldSize(rt, d) },
		Place: func(ctx context.Context) (fill.Place, error) { return bl.place(ctx, rt, d) },
		PlaceFailed: func(ctx context.Context, err error) {
			bl.store.failed(ctx, "Store.StageBlob", rt.repo, d.String(), err)
		},
		Explain: func(err error) error {
			return outcome{}.words(context.Background(), rt.repo, d.String(), fromFill(rt, err))
		},
		Put: func(ctx context.Context, f *fill.Fill) error { return bl.put(ctx, rt, f) },
		Ended: func(ctx context.Context, r fill.Result) {
			bl.learn(rt, d, r)
			desc := ocispec.Descriptor{Digest: d, Size: r.Size}
			event.connections = r.Connections
			bl.tellFetch(ctx, event, rt, d.String(), desc, SourceFill, r.Err)
		},
	}
	rt.limit(&j)
	if rt.policy.Offline {
		j.Place = nil // nothing comes
	}
	return j
}

// toldSize is how long a blob is by what has been told of it, a manifest's word at least;
// -1: nothing has.
func (bl *blobs) toldSize(rt *route, d digest.Digest) int64 {
	if size, known, _ := bl.memory.size(rt, d); known {
		return size
	}
	return -1
}

// learn draws conclusions from the end of a fill.
func (bl *blobs) learn(rt *route, d digest.Digest, r fill.Result) {
	switch {
	case r.Err == nil:
		if told, known, _ := bl.memory.size(rt, d); known && told != r.Size {
			bl.memory.noteExists(rt, d, r.Size) // a manifest was wrong
		}
	case isRefuted(r.Err):
		bl.memory.forgetSize(rt, d) // a HEAD must not go on to say that it is there, or that long
	}
}

var fillKinds = map[error]error{
	fill.ErrBusy:     errBusy,
	fill.ErrDigest:   ErrDigest,
	fill.ErrTooLarge: ErrTooLarge,
	fill.ErrBroken:   ErrUnavailable,
	fill.ErrSpool:    ErrUnavailable,
}

// fromFill puts an error of a fill into our words: its own, or one that the
// registry client gave it.
func fromFill(rt *route, err error) error {
	e, ok := errors.AsType[*fill.Error](err)
	if !ok {
		return fromClient(err)
	}
	own := &Error{Kind: fillKinds[e.Kind], RetryAfter: e.RetryAfter, Err: e.Err}
	if e.Kind != fill.ErrBusy && e.Kind != fill.ErrSpool {
		own.Host = rt.base.Host
	}
	return own
}

// put hands the verified blob to the Store. The clients have all that they need by
// now: what goes wrong here is an event. The context is no client's: only a Shutdown
// that runs out of time ends it.
func (bl *blobs) put(ctx context.Context, rt *route, f *fill.Fill) error {
	defer bl.puts.of(f.Digest()).Add(1) // the fill can still be joined
	place, _ := f.Place().(*stagePlace)
	if err := bl.router.unchanged(ctx, rt); err != nil {
		if place != nil {
			f.Leave()
		}
		bl.log.Warn("blob is served and not stored", "repository", rt.repo.Name, "digest", f.Digest().String(), "err", err)
		return err
	}
	err := bl.commit(ctx, rt, f, place)
	if errors.Is(err, errDeleted) {
		bl.log.Warn("blob is served and not stored", "repository", rt.repo.Name, "digest", f.Digest().String(), "err", err)
		return err
	}
	if err != nil {
		call := "Store.PutBlob"
		if place != nil && f.Whole() {
			call = "Stage.Commit"
		}
		bl.storeFailed(ctx, call, rt.repo, f.Digest().String(), err)
		return err
	}
	if place == nil { // the spool has space of its own
		f.HandOver(func(ctx context.Context) (io.ReadSeekCloser, error) { return bl.successor(ctx, rt, f) })
	}
	return nil
}

// commit stores the blob: by committing the Stage in which it lies, or by a copy.
func (bl *blobs) commit(ctx context.Context, rt *route, f *fill.Fill, place *stagePlace) error {
	desc := ocispec.Descriptor{MediaType: serve.MediaTypeBlob, Digest: f.Digest(), Size: f.Size()}
	if place != nil && f.Whole() {
		err := bl.store.commitStage(ctx, rt.beginning, place.stage, desc)
		switch {
		case errors.Is(err, hostcall.ErrNotCalled):
			f.Leave()
		case errors.Is(err, errDeleted):
			place.Abort()
		}
		return err
	}
	defer place.Abort() // what is in there is read until then
	body, err := f.NewReader(context.Background())
	if err != nil {
		return err
	}
	// A Store that was given up at Shutdown must not read a spool that is gone.
	defer func() { _ = body.Close() }()
	return bl.store.putBlob(ctx, rt.beginning, desc, body)
}

// successor is the Store's blob for a reader of the spool, which can go then.
func (bl *blobs) successor(ctx context.Context, rt *route, f *fill.Fill) (io.ReadSeekCloser, error) {
	b, err := bl.store.blob(ctx, rt.repo, f.Digest())
	if b == nil {
		return nil, errors.Join(err, fs.ErrNotExist)
	}
	body, ok := b.Body.(io.ReadSeekCloser)
	if ok && b.Descriptor.Size == f.Size() {
		if _, file := body.(syscall.Conn); !file {
			_, err = body.Read(make([]byte, 1)) // the reader seeks before it reads on
		}
		if err == nil {
			return body, nil
		}
	}
	return nil, errors.Join(errors.ErrUnsupported, err, b.Body.Close())
}

// resume asks the Store for what an earlier download has left.
func (bl *blobs) resume(ctx context.Context, rt *route, d digest.Digest, key string) fill.Keeper {
	p, err := bl.store.resume(ctx, rt.repo, d, key)
	bl.store.failed(ctx, "Store.ResumeBlob", rt.repo, d.String(), err)
	if p == nil || err != nil {
		return nil // and no nil *stagePlace
	}
	return p
}

// place asks the Store for a place; nil: it lends none.
func (bl *blobs) place(ctx context.Context, rt *route, d digest.Digest) (fill.Place, error) {
	p, err := bl.store.stage(ctx, rt.repo, d)
	if p == nil || err != nil {
		return nil, err // and no nil *stagePlace
	}
	return p, nil
}
