package fill_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
	"github.com/ecr-pullthrough/pullthrough/internal/fill"
	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestMain(m *testing.M) { pullthroughtest.Main(m) }

const mib = 1 << 20

var content = func() []byte {
	b := make([]byte, 4*mib)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}()

// body is a Source. It brings what the test sends, until the test closes it.
type body struct {
	total   int64
	chunks  chan []byte   // closed: the end
	every   time.Duration // how long each of them takes
	failure error         // what comes after the end; nil: io.EOF
	panics  bool          // Read does

	mu          sync.Mutex
	ctx         context.Context
	rest        []byte
	interrupted []error
	received    int64
	moved       time.Time
	tries       int
	gone        chan struct{} // closed by Close
}

func newBody(total int) *body {
	return &body{total: int64(total), chunks: make(chan []byte), gone: make(chan struct{})}
}

// wholeBody brings b at once, and ends.
func wholeBody(b []byte) *body { return slowBody(b, len(b)+1, 0) }

// slowBody brings n bytes of b every so often, and ends.
func slowBody(b []byte, n int, every time.Duration) *body {
	s := newBody(len(b))
	all := pieces(b, n)
	s.chunks, s.every = make(chan []byte, len(all)), every
	s.send(all...)
	close(s.chunks)
	return s
}

func (b *body) Read(p []byte) (int, error) {
	if b.panics {
		panic("boom")
	}
	if len(b.rest) == 0 {
		time.Sleep(b.every)
		if err := context.Cause(b.ctx); err != nil {
			return 0, err
		}
		var more bool
		select {
		case b.rest, more = <-b.chunks:
			if !more {
				return 0, cmp.Or(b.failure, io.EOF)
			}
		case <-b.ctx.Done():
			return 0, context.Cause(b.ctx)
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	b.skip(n)
	return n, nil
}

// skip counts n bytes that Read returns, or that it has passed over.
func (b *body) skip(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.received, b.moved = b.received+int64(n), time.Now()
}

// fail says that so many requests for the rest were in vain.
func (b *body) fail(tries int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tries = tries
}

func (b *body) Progress() (received int64, moved time.Time, tries int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.received, b.moved, b.tries
}

func (b *body) Jump(int64, int64) error { return errors.New("this one comes in order") }

func (b *body) Total() int64 { return b.total }

func (b *body) Offset() int64 { return 0 }

func (b *body) Until() int64 { return b.total }

func (b *body) Interrupt(cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.interrupted = append(b.interrupted, cause)
}

func (b *body) Close() error {
	close(b.gone) // twice is a panic
	return nil
}

func (b *body) interruptions() []error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.interrupted
}

// explained is an error in the owner's words.
type explained struct{ cause error }

func (e *explained) Error() string { return "explained: " + e.cause.Error() }

func (e *explained) Unwrap() error { return e.cause }

// owner makes jobs and notes what becomes of them.
type owner struct {
	fill.Job
	bodies []*body // one an Open

	mu    sync.Mutex
	opens int
	puts  [][]byte
	ends  []fill.Result
}

// newOwner is of the blob want, which comes as bodies.
func newOwner(want []byte, bodies ...*body) *owner {
	o := &owner{bodies: bodies}
	o.Job = fill.Job{
		Digest:  digest.FromBytes(want),
		Owner:   "mine",
		Explain: func(err error) error { return &explained{err} },
		Open:    o.open,
		Put:     o.put,
		Ended:   o.ended,
	}
	return o
}

func (o *owner) job() fill.Job { return o.Job }

func (o *owner) open(ctx context.Context, _ extent.Span, _ int64) (fill.Source, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.opens == len(o.bodies) {
		return nil, errors.New("no more bodies")
	}
	b := o.bodies[o.opens]
	b.ctx = ctx
	o.opens++
	return b, nil
}

func (o *owner) put(ctx context.Context, f *fill.Fill) error {
	r, err := f.NewReader(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	b, err := io.ReadAll(r)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.puts = append(o.puts, b)
	return err
}

func (o *owner) ended(_ context.Context, r fill.Result) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ends = append(o.ends, r)
}

// stored is what the Store was given, once.
func (o *owner) stored(t *testing.T) []byte {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	require.Len(t, o.puts, 1)
	return o.puts[0]
}

// end is how the one fill ended.
func (o *owner) end(t *testing.T) fill.Result {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	require.Len(t, o.ends, 1)
	return o.ends[0]
}

// world is a Group that is idle, and holds nothing, when the test ends.
type world struct {
	*fill.Group[string]
	flights *flight.Set
}

func newWorld(t *testing.T, o fill.Options) *world {
	t.Helper()
	w := &world{flights: new(flight.Set)}
	o.Flights, o.Dir = w.flights, t.TempDir()
	w.Group = fill.New[string](o)
	t.Cleanup(func() {
		left, err := os.ReadDir(o.Dir)
		assert.NoError(t, err)
		assert.Empty(t, left)
	})
	return w
}

// idle waits for all fills. Nothing is held by then, if the test's readers are closed.
func (w *world) idle(t *testing.T) {
	t.Helper()
	require.NoError(t, w.flights.Idle(t.Context()))
	assert.Empty(t, w.All())
	assert.Zero(t, w.Len())
}

// read is the whole blob as a client reads it.
func (w *world) read(ctx context.Context, o *owner) ([]byte, error) {
	a, err := w.Open(ctx, "k", o.job)
	if err != nil {
		return nil, err
	}
	defer func() { _ = a.Body.Close() }()
	return readAll(a)
}

func readAll(a fill.Answer) ([]byte, error) {
	b := bytes.NewBuffer(make([]byte, 0, a.Size+bytes.MinRead))
	_, err := b.ReadFrom(a.Body)
	return b.Bytes(), err
}

// open opens a reader, which the test closes.
func (w *world) open(t *testing.T, ctx context.Context, o *owner) fill.Answer {
	t.Helper()
	a, err := w.Open(ctx, "k", o.job)
	require.NoError(t, err)
	return a
}

// pieces cuts b.
func pieces(b []byte, n int) (all [][]byte) {
	for len(b) > 0 {
		m := min(n, len(b))
		all, b = append(all, b[:m]), b[m:]
	}
	return all
}

// send brings all, as long as anybody reads.
func (b *body) send(all ...[]byte) {
	for _, p := range all {
		select {
		case b.chunks <- p:
		case <-b.gone:
		}
	}
}

// end is send of the last bytes.
func (b *body) end(all ...[]byte) {
	b.send(all...)
	close(b.chunks)
}

func flipped(b []byte) []byte {
	c := bytes.Clone(b)
	c[len(c)/2] ^= 1
	return c
}

// memoryPlace is a Place that may be too small.
type memoryPlace struct {
	mu      sync.Mutex
	b       []byte
	room    int
	aborted int
	closed  int
	onAbort func()
	onClose func()
}

func (p *memoryPlace) WriteAt(b []byte, off int64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if int(off)+len(b) > p.room {
		return 0, errors.New("place is full")
	}
	if int(off) != len(p.b) {
		return 0, fmt.Errorf("gap at %d", off)
	}
	p.b = append(p.b, b...)
	return len(b), nil
}

func (p *memoryPlace) ReadAt(b []byte, off int64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.NewReader(p.b).ReadAt(b, off)
}

func (p *memoryPlace) Sparse() bool { return false }

func (p *memoryPlace) Open() (*os.File, error) { return nil, errors.ErrUnsupported }

func (p *memoryPlace) Abort() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.aborted++
	if p.onAbort != nil {
		p.onAbort()
	}
}

func (p *memoryPlace) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed++
	if p.onClose != nil {
		p.onClose()
	}
}

// began is when the tests' clock stands.
var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
