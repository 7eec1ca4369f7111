package fill

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/lru"
	"github.com/ecr-pullthrough/pullthrough/internal/quota"
	"github.com/ecr-pullthrough/pullthrough/internal/shelf"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

const (
	// roomWait is how long a client's fill waits for room: in SpoolBytes, or in its lane.
	roomWait       = 10 * time.Second
	roomRetryAfter = 10 * time.Second
	// growStep is what a fill of unknown length reserves at a time.
	growStep = 64 << 20

	// slowReader is how long a client may take for 600 KiB, about 1 KiB/s, while
	// others wait for the space that it holds.
	slowReader = 10 * time.Minute

	// maxLanes is how many lanes are remembered, those without a fill included.
	maxLanes = 1024

	// A blob whose content was wrong, with a part of it from a window, comes over one
	// connection for plainFor. So many of them are remembered.
	plainFor = 10 * time.Minute
	maxPlain = 1024
)

// budget is what the fills of a Group share out among them.
type budget struct {
	dir        string
	files      *spool.Files
	now        func() time.Time
	flights    *flight.Set // nil: none
	spoolBytes int64
	space      *quota.Quota                      // of spoolBytes
	lanes      *lru.Cache[laneKey, *quota.Quota] // fills of one lane at a time
	windows    *lru.Cache[laneKey, *quota.Quota] // side windows of one lane at a time
	rates      *lru.Cache[any, float64]          // what a connection of a lane has brought last, in bytes a second
	plain      *lru.Cache[plainKey, time.Time]
	shelf      *shelf.Shelf // what fills that ended early have left; nil: none
	kept       keptRoom
	orphans    orphans
	spools     sync.Map // of *spool.Spool to holding: all that hold content
}

func newBudget(o Options) *budget {
	b := &budget{
		dir:        o.Dir,
		files:      spool.NewFiles(spool.OpenFileLimit() / 4),
		now:        o.Now,
		flights:    o.Flights,
		spoolBytes: o.SpoolBytes,
		space:      quota.New(o.SpoolBytes),
		lanes:      lru.New[laneKey, *quota.Quota](maxLanes),
		windows:    lru.New[laneKey, *quota.Quota](maxLanes),
		rates:      lru.New[any, float64](maxLanes),
		plain:      lru.New[plainKey, time.Time](maxPlain),
	}
	if b.now == nil {
		b.now = time.Now
	}
	b.openShelf()
	return b
}

// plainKey is a blob of a lane.
type plainKey struct {
	lane   any
	digest digest.Digest
}

// laneKey is a lane with so many turns: a Policy that changes does not wait for what began
// before.
type laneKey struct {
	lane any
	max  int
}

// turns are shared by all of one lane, so that none waits for another lane's.
func turns(lanes *lru.Cache[laneKey, *quota.Quota], j *Job) *quota.Quota {
	return lanes.GetOrPut(laneKey{j.Lane, j.MaxPerLane}, func() *quota.Quota { return quota.New(int64(j.MaxPerLane)) })
}

// take takes n from q, and says within roomWait that there is no room. A claim of a
// fill that no client wants yet (see [demand]) stands behind those of clients; behind
// reports that. For a turn in a lane it waits as long as it takes, and for space no
// longer than a client, since it has upstream's answer in its hands.
func (b *budget) take(ctx, unwanted context.Context, q *quota.Quota, n int64) (behind bool, err error) {
	if unwanted != nil && unwanted.Err() == nil {
		if q.TryTakeBehind(n) {
			return true, nil
		}
		if err := b.takeBehind(unwanted, q, n); !errors.Is(err, errWanted) {
			return true, err
		}
	}
	if q.TryTake(n) {
		return false, nil
	}
	if q == b.space {
		if b.makeRoom(n, q.TryTake) {
			return false, nil
		}
		b.cutSlow()
	}
	return false, takeSoon(ctx, n, q.Take)
}

func (b *budget) takeBehind(unwanted context.Context, q *quota.Quota, n int64) error {
	if q != b.space {
		return q.TakeBehind(unwanted, n)
	}
	if b.makeRoom(n, q.TryTakeBehind) {
		return nil
	}
	b.cutSlow()
	return takeSoon(unwanted, n, q.TakeBehind)
}

// takeSoon is take within roomWait.
func takeSoon(ctx context.Context, n int64, take func(context.Context, int64) error) error {
	ctx, cancel := context.WithTimeout(ctx, roomWait)
	defer cancel()
	err := take(ctx, n)
	if err == nil || errors.Is(err, errWanted) {
		return err
	}
	return &Error{Kind: ErrBusy, RetryAfter: roomRetryAfter, Err: err}
}

// cutSlow ends the readers that hold on to space and hardly read.
func (b *budget) cutSlow() {
	b.spools.Range(func(key, _ any) bool {
		key.(*spool.Spool).CutSlow(slowReader)
		return true
	})
}

// room is the part of SpoolBytes that one spool has. Only the fill's goroutine
// changes it, but for what its windows have, and the spool's end gives it back, after that goroutine has let go.
type room struct {
	budget   *budget
	lent     bool  // the content goes to a Place, which is not counted
	start    int64 // of the content: what is before that is in a Place
	taken    int64
	ahead    atomic.Int64    // what windows have, for what lies ahead of the prefix
	behind   int64           // of taken, what was taken behind the claims of clients
	unwanted context.Context // see [demand]
}

// hold makes sure that the spool may hold the content up to the offset end.
func (r *room) hold(ctx context.Context, end int64) error {
	size := end - r.start
	more := size - r.taken
	if r.lent || more <= 0 {
		return nil
	}
	if limit := r.budget.spoolBytes; limit > 0 && size > limit {
		return newError(ErrBusy, "%d bytes are more than SpoolBytes, %d", size, limit)
	}
	behind, err := r.budget.take(ctx, r.unwanted, r.budget.space, more)
	if err != nil {
		return err
	}
	if behind {
		r.behind += more
	}
	r.taken += more
	return nil
}

// mayRunOut reports whether there may be no room where the content is moved.
func (r *room) mayRunOut() bool { return r.lent && r.budget.spoolBytes > 0 }

// move is called when the place of a spool has failed at the offset start: the rest of
// the content is counted from then on. size is that of all content, -1 where nobody
// knows it.
func (r *room) move(ctx context.Context, start, size int64) error {
	if !r.lent {
		return nil // it was counted before, wherever it is
	}
	r.lent, r.start = false, start
	if size < 0 {
		size = r.step(start + copyBuffer) // what is about to be written
	}
	return r.hold(ctx, size)
}

// step is up to what offset a spool of unknown length grows next, if it must hold the
// content up to end. Small limits are shared out in eighths, so that one fill does not
// reserve all of it for bytes that never come.
func (r *room) step(end int64) int64 {
	if end <= r.start+r.taken {
		return end
	}
	next := r.taken + growStep
	if limit := r.budget.spoolBytes; limit > 0 {
		next = min(next, r.taken+limit/8, limit)
	}
	return max(r.start+next, end)
}

// holdAhead takes n for a window, if that much is free.
func (r *room) holdAhead(n int64) bool {
	if !r.budget.space.TryTake(n) {
		return false
	}
	r.ahead.Add(n)
	return true
}

// giveAhead gives back what a window has not used.
func (r *room) giveAhead(n int64) {
	r.ahead.Add(-n)
	r.budget.space.Give(n)
}

// giveBack returns all of it.
func (r *room) giveBack() {
	r.budget.space.Give(r.ahead.Load())
	r.budget.space.GiveBehind(r.behind)
	r.budget.space.Give(r.taken - r.behind)
}
