package fill_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/fill"
)

// lend makes the owner lend p.
func (o *owner) lend(p *memoryPlace) {
	o.Place = func(context.Context) (fill.Place, error) { return p, nil }
}

func TestAPlaceIsUsedWhole(t *testing.T) {
	// It takes no room of ours, and also what is small.
	for _, want := range [][]byte{content, content[:1000], nil} {
		p := &memoryPlace{room: len(content)}
		w, o := newWorld(t, fill.Options{SpoolBytes: 1}), newOwner(want, wholeBody(want))
		o.lend(p)
		o.Put = func(_ context.Context, f *fill.Fill) error {
			assert.Same(t, p, f.Place())
			assert.True(t, f.Whole())
			assert.Equal(t, o.Digest, f.Digest())
			assert.EqualValues(t, len(want), f.Size())
			assert.True(t, bytes.Equal(want, p.b))
			return nil
		}
		got, err := w.read(t.Context(), o)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(want, got))
		w.idle(t)
		assert.NoError(t, o.end(t).Err)
		assert.Equal(t, []int{0, 1}, []int{p.aborted, p.closed}, "aborted, closed")
	}
}

func TestAPlaceThatIsFullIsLeft(t *testing.T) {
	p := &memoryPlace{room: 2 * mib}
	w, o := newWorld(t, fill.Options{}), newOwner(content, wholeBody(content))
	o.lend(p)
	var told []string
	o.PlaceFailed = func(_ context.Context, err error) { told = append(told, err.Error()) }
	store := o.Put
	o.Put = func(ctx context.Context, f *fill.Fill) error {
		assert.False(t, f.Whole())
		defer f.Place().Abort()
		return store(ctx, f)
	}
	got, err := w.read(t.Context(), o)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(content, got))
	w.idle(t)
	assert.Equal(t, []string{"place is full"}, told)
	assert.True(t, bytes.Equal(content, o.stored(t)))
	assert.Equal(t, []int{1, 1}, []int{p.aborted, p.closed}, "aborted, closed")
}

func TestAPlaceIsAborted(t *testing.T) {
	small := content[:1000]
	for name, c := range map[string]struct {
		bodies []*body
		times  int
	}{
		"when the content is wrong":   {[]*body{wholeBody(content)}, 1},
		"before each new try":         {[]*body{wholeBody(flipped(small)), wholeBody(flipped(small))}, 2},
		"when nobody would commit it": {[]*body{wholeBody(small)}, 1},
		"when there is no content":    {nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			p := &memoryPlace{room: 2 * len(content)}
			w, o := newWorld(t, fill.Options{}), newOwner(small, c.bodies...)
			o.Retry, o.Put = true, nil
			o.Place = func(context.Context) (fill.Place, error) {
				p.b = nil
				return p, nil
			}
			_, _ = w.read(t.Context(), o)
			w.idle(t)
			assert.Equal(t, []int{c.times, c.times}, []int{p.aborted, p.closed}, "aborted, closed")
		})
	}
}

func TestBothPlacesFail(t *testing.T) {
	w, o := newWorld(t, fill.Options{}), newOwner(content, wholeBody(content))
	broken := fill.New[string](fill.Options{Flights: w.flights, Dir: t.TempDir() + "/missing"})
	w.Group = broken
	o.lend(&memoryPlace{})
	_, err := w.read(t.Context(), o)
	assert.ErrorIs(t, err, fill.ErrSpool)
	assert.ErrorContains(t, err, "spool: place is full")
	w.idle(t)
}

func TestWaitTellsWhatBecomesOfTheBlob(t *testing.T) {
	refused := errors.New("refused")
	for name, c := range map[string]struct {
		put  func(context.Context, *fill.Fill) error
		want string
	}{
		"stored":  {func(context.Context, *fill.Fill) error { time.Sleep(time.Hour); return nil }, ""},
		"refused": {func(context.Context, *fill.Fill) error { time.Sleep(time.Hour); return refused }, "refused"},
		"panics":  {func(context.Context, *fill.Fill) error { time.Sleep(time.Hour); panic("boom") }, "the put of a blob panicked: boom"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, o := newWorld(t, fill.Options{}), newOwner(content, wholeBody(content))
				o.Put = c.put
				start := time.Now()
				got, err := w.read(t.Context(), o)
				assert.NoError(t, err, "clients do not wait for the Store")
				assert.True(t, bytes.Equal(content, got))
				assert.Zero(t, time.Since(start))
				f, shared, err := w.Join(t.Context(), "k", o.job)
				require.NoError(t, err)
				assert.True(t, shared, "while the Store takes it, the fill is joined")
				short, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				assert.ErrorIs(t, f.Wait(short), context.DeadlineExceeded)
				err = f.Wait(t.Context())
				assert.Equal(t, time.Hour, time.Since(start))
				if c.want == "" {
					assert.NoError(t, err)
				} else {
					assert.EqualError(t, err, c.want)
				}
				f.Release()
				w.idle(t)
				assert.NoError(t, o.end(t).Err, "the content was right")
			})
		})
	}
}

func TestOnlyShutdownEndsAPut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, o := newWorld(t, fill.Options{}), newOwner(content, wholeBody(content))
		o.Put = func(ctx context.Context, _ *fill.Fill) error {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		start := time.Now()
		_, err := w.read(t.Context(), o)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
		defer cancel()
		assert.ErrorIs(t, w.flights.Shutdown(ctx), context.DeadlineExceeded)
		assert.Equal(t, 24*time.Hour, time.Since(start))
		w.idle(t)
	})
}

func TestFollowTellsOfAllThatComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, o := newWorld(t, fill.Options{}), newOwner(content, slowBody(content, mib, time.Second))
		f, _, err := w.Join(t.Context(), "k", o.job)
		require.NoError(t, err)
		defer f.Release()
		var seen []int64
		assert.NoError(t, f.Follow(t.Context(), func(done int64) { seen = append(seen, done) }))
		assert.IsIncreasing(t, seen)
		assert.Subset(t, seen, []int64{0, mib, 2 * mib, 3 * mib})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		assert.NoError(t, f.Follow(ctx, func(int64) {}), "all is there")
	})
}

func TestFollowFailsAsTheFillDoes(t *testing.T) {
	w, o := newWorld(t, fill.Options{}), newOwner(content, wholeBody(flipped(content)))
	hold := make(chan struct{})
	o.Explain = func(err error) error { <-hold; return &explained{err} }
	f, _, err := w.Join(t.Context(), "k", o.job)
	require.NoError(t, err)
	close(hold)
	assert.ErrorIs(t, f.Follow(t.Context(), func(int64) {}), fill.ErrDigest)
	assert.ErrorIs(t, f.Wait(t.Context()), fill.ErrDigest)
	f.Release()
	w.idle(t)
}

// A reader goes on in the Store's file, and the space is free before it has ended.
func TestReadersAreHandedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, o := newWorld(t, fill.Options{SpoolBytes: 4 * mib}), newOwner(content, wholeBody(content))
		var opened int
		o.Put = func(_ context.Context, f *fill.Fill) error {
			f.HandOver(func(context.Context) (io.ReadSeekCloser, error) {
				opened++
				return struct {
					io.ReadSeeker
					io.Closer
				}{bytes.NewReader(content), io.NopCloser(nil)}, nil
			})
			return nil
		}
		a := w.open(t, t.Context(), o)
		require.NoError(t, w.flights.Idle(t.Context()))
		assert.Len(t, w.All(), 1)
		head := make([]byte, 1000)
		_, err := io.ReadFull(a.Body, head)
		require.NoError(t, err)
		w.idle(t)
		rest, err := readAll(a)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(content, append(head, rest...)))
		assert.Equal(t, 1, opened)
		require.NoError(t, a.Body.Close())
	})
}
