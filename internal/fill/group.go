package fill

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

// Options are what all fills of a Group have in common. The zero value is usable.
type Options struct {
	// Flights is told of each fill, as a "blob", and may end them all. nil: nobody is.
	Flights *flight.Set
	// Dir is for the spools' files; "": [os.TempDir].
	Dir string
	// SpoolBytes bounds what the spools hold on disk. 0: nothing does.
	SpoolBytes int64
	// Now is the clock for [Snapshot.Began]. nil: [time.Now].
	Now func() time.Time
}

// Group is fills by key, at most one a key. It is safe for concurrent use.
type Group[K comparable] struct {
	calls  flight.Group[K, *Fill]
	demand demand[K]
	budget *budget
}

// New returns a Group without fills.
func New[K comparable](o Options) *Group[K] {
	g := &Group[K]{budget: newBudget(o)}
	g.calls.Acquire, g.calls.Release = (*Fill).retain, (*Fill).Release
	if o.Flights != nil {
		g.calls.Join(o.Flights, "blob")
	}
	return g
}

// Join returns the fill that runs for key, and starts one with job if there is
// none. The caller holds it, and calls [Fill.Release]. shared reports whether it
// ran already. Join returns once the fill has something to show, or has failed.
// Only the fill that it starts calls job. The error is one that [Job.Explain] has
// explained, the end of ctx, or one of package flight.
func (g *Group[K]) Join(ctx context.Context, key K, job func() Job) (f *Fill, shared bool, err error) {
	return g.calls.Do(ctx, key, func(c *flight.Call[K, *Fill]) (*Fill, error) { return g.run(c, key, job()) })
}

// run is one fill of key. As long as no client wants a part, it knows.
func (g *Group[K]) run(c call, key K, job Job) (*Fill, error) {
	if !job.Part {
		return run(c, g.budget, job, nil)
	}
	unwanted, done := g.demand.part(c.Context(), key)
	defer done()
	return run(c, g.budget, job, unwanted)
}

// ErrStored is what [Group.Open] returns for a blob that the Store turned out to
// have: there is nothing to read here.
var ErrStored = errors.New("the Store has the blob")

// Answer is a blob for one client.
type Answer struct {
	Body   *spool.Reader // its reads end when the client's context does
	Size   int64         // -1: nobody knows yet
	Shared bool          // another client's fill has brought it
}

// Open joins the fill of key for a client, as Join does, and opens a reader on it. The
// error is [ErrStored] where the Store turned out to have the blob already.
func (g *Group[K]) Open(ctx context.Context, key K, job func() Job) (Answer, error) {
	defer g.demand.join(key)()
	f, shared, err := g.Join(ctx, key, job)
	if err != nil {
		return Answer{}, err
	}
	defer f.Release() // the reader holds the spool by itself
	if f.spool == nil {
		return Answer{}, ErrStored
	}
	body, err := f.spool.NewReader(ctx)
	if err != nil {
		return Answer{}, err
	}
	return Answer{Body: body, Size: f.spool.Size(), Shared: shared}, nil
}

// Size returns the length of a blob that is on its way, if that is known.
func (g *Group[K]) Size(key K) (int64, bool) {
	f, ok := g.calls.Peek(key)
	if !ok || f.spool == nil || f.spool.Size() < 0 {
		return 0, false
	}
	return f.spool.Size(), true
}

// Settle waits until the blobs are stored, or cannot be, whose content is all here by
// now and whose keys match. match must not use the Group.
func (g *Group[K]) Settle(ctx context.Context, match func(K) bool) error {
	return g.calls.Settle(ctx, func(key K, f *Fill) bool {
		return match(key) && f.spool != nil && f.spool.Written() == f.spool.Size()
	})
}

// Len returns the number of fills that run.
func (g *Group[K]) Len() int { return g.calls.Len() }

// Snapshot is how far a fill was when [Group.All] was called.
type Snapshot struct {
	Owner   any // the Job's
	Digest  digest.Digest
	Began   time.Time // when upstream had answered, by Options.Now
	Size    int64     // -1: nobody knows yet
	Written int64     // bytes that have come
	Readers []int64   // how far each reader has got, the slowest first

	Connections int   // how many bring content
	Ahead       int64 // of Written, the bytes that have come before it was their turn
}

// holding is what is known of a spool that holds content.
type holding struct {
	Snapshot // of the beginning
	windows  *windows
}

// All returns the fills whose content is held here, the oldest first. Those that
// have ended are among them while anybody reads their spool.
func (g *Group[K]) All() []Snapshot {
	all := []Snapshot{}
	g.budget.spools.Range(func(key, value any) bool {
		s, held := key.(*spool.Spool), value.(holding)
		one := held.Snapshot
		one.Size, one.Written, one.Readers = s.Size(), s.Bytes(), s.Readers()
		one.Ahead, one.Connections = one.Written-s.Written(), held.windows.connections()
		slices.Sort(one.Readers)
		all = append(all, one)
		return true
	})
	slices.SortStableFunc(all, func(a, b Snapshot) int { return a.Began.Compare(b.Began) })
	return all
}
