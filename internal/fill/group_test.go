package fill_test

import (
	"bytes"
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
	"github.com/ecr-pullthrough/pullthrough/internal/fill"
	"github.com/ecr-pullthrough/pullthrough/internal/flight"
)

func TestManyReadersShareOneSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, b := newWorld(t, fill.Options{}), newBody(len(content))
		o := newOwner(content, b)
		var shared, clients = 0, sync.WaitGroup{}
		var mu sync.Mutex
		for range 20 {
			clients.Go(func() {
				a, err := w.Open(t.Context(), "k", o.job)
				if !assert.NoError(t, err) {
					return
				}
				defer func() { _ = a.Body.Close() }()
				assert.EqualValues(t, len(content), a.Size)
				got, err := readAll(a)
				assert.NoError(t, err)
				assert.True(t, bytes.Equal(content, got))
				mu.Lock()
				defer mu.Unlock()
				if a.Shared {
					shared++
				}
			})
		}
		synctest.Wait() // all have joined
		b.end(pieces(content, 300_000)...)
		clients.Wait()
		w.idle(t)
		assert.Equal(t, 1, o.opens)
		assert.Equal(t, 19, shared)
		<-b.gone
		assert.True(t, bytes.Equal(content, o.stored(t)))
		assert.Equal(t, fill.Result{Size: int64(len(content)), Spooled: true, Connections: 1}, o.end(t))
	})
}

func TestTheLeaderLeavesAndNobodyElseNotices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, b := newWorld(t, fill.Options{}), newBody(len(content))
		o := newOwner(content, b)
		ctx, leave := context.WithCancel(t.Context())
		leader, follower := w.open(t, ctx, o), w.open(t, t.Context(), o)
		b.send(content[:mib])
		leave()
		_, err := readAll(leader)
		assert.ErrorIs(t, err, context.Canceled)
		require.NoError(t, leader.Body.Close())
		time.Sleep(5 * time.Second)
		b.end(content[mib:])
		got, err := readAll(follower)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(content, got))
		require.NoError(t, follower.Body.Close())
		w.idle(t)
		assert.Equal(t, 1, o.opens)
	})
}

func TestAllLeaveBeforeTheSourceAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, o := newWorld(t, fill.Options{}), newOwner(content)
		o.Open = func(ctx context.Context, _ extent.Span, _ int64) (fill.Source, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := w.Open(ctx, "k", o.job)
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		w.idle(t)
		assert.ErrorIs(t, o.end(t).Err, context.Canceled)
		assert.False(t, o.end(t).Spooled)
	})
}

func TestABlobThatHasBeenStoredMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, o := newWorld(t, fill.Options{}), newOwner(content)
		o.Stored = func(context.Context) (bool, error) { return true, nil }
		_, err := w.Open(t.Context(), "k", o.job)
		assert.ErrorIs(t, err, fill.ErrStored)
		f, _, err := w.Join(t.Context(), "k", o.job)
		require.NoError(t, err)
		defer f.Release()
		assert.NoError(t, f.Follow(t.Context(), func(int64) { t.Error("nothing comes") }))
		assert.NoError(t, f.Wait(t.Context()))
		w.idle(t)
		assert.Zero(t, o.opens)
		assert.Empty(t, o.ends)

		o.Stored = func(context.Context) (bool, error) { return true, io.ErrClosedPipe }
		_, err = w.Open(t.Context(), "k", o.job)
		assert.EqualError(t, err, "explained: io: read/write on closed pipe")
	})
}

// The client comes when the watch looks: at the very same time, as often as not.
func TestAClientComesWhenAFillIsGivenUp(t *testing.T) {
	for range 10 {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, fill.Options{})
			want := content[:mib+1]
			first := newBody(len(want))
			o := newOwner(want, first, wholeBody(want), wholeBody(want), wholeBody(want), wholeBody(want))
			require.NoError(t, w.open(t, t.Context(), o).Body.Close())
			var all sync.WaitGroup
			all.Go(func() {
				time.Sleep(time.Second) // by then it is given up, or read
				first.end(want)
			})
			for range 4 {
				all.Go(func() {
					time.Sleep(500 * time.Millisecond)
					got, err := w.read(t.Context(), o)
					assert.NoError(t, err)
					assert.True(t, bytes.Equal(want, got))
				})
			}
			all.Wait()
			w.idle(t)
		})
	}
}

// A client comes while a fill lets go of its content: it gets another fill.
func TestAClientComesAtTheEndOfAFill(t *testing.T) {
	for name, c := range map[string]struct {
		body []byte
		when func(p *memoryPlace, come func())
	}{
		"has failed": {flipped(content), func(p *memoryPlace, come func()) { p.onAbort = come }},
		"is stored":  {content, func(p *memoryPlace, come func()) { p.onClose = come }},
	} {
		t.Run(name, func(t *testing.T) {
			p := &memoryPlace{room: len(content)}
			w, o := newWorld(t, fill.Options{}), newOwner(content, wholeBody(c.body))
			next := newOwner(content, wholeBody(content))
			came := false
			c.when(p, func() {
				got, err := w.read(t.Context(), next)
				assert.NoError(t, err)
				assert.True(t, bytes.Equal(content, got))
				came = true
			})
			o.lend(p)
			left := make(chan struct{})
			o.Put = func(context.Context, *fill.Fill) error { <-left; return nil }
			_, _ = w.read(t.Context(), o)
			close(left) // the fill itself is the last that lets go
			w.idle(t)
			assert.True(t, came)
		})
	}
}

func TestAllShowsWhatIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, b := newWorld(t, fill.Options{Now: func() time.Time { return began }}), newBody(len(content))
		o := newOwner(content, b)
		_, known := w.Size("k")
		assert.False(t, known)
		a := w.open(t, t.Context(), o)
		b.send(content[:mib])
		_, err := io.ReadFull(a.Body, make([]byte, 1000))
		require.NoError(t, err)
		late := w.open(t, t.Context(), o)
		synctest.Wait()
		assert.Equal(t, []fill.Snapshot{{
			Owner: "mine", Digest: o.Digest, Began: began,
			Size: int64(len(content)), Written: mib, Readers: []int64{0, 1000}, Connections: 1,
		}}, w.All())
		size, known := w.Size("k")
		assert.True(t, known)
		assert.EqualValues(t, len(content), size)
		b.end(content[mib:])
		require.NoError(t, a.Body.Close())
		require.NoError(t, w.flights.Idle(t.Context()))
		assert.Len(t, w.All(), 1, "it is read, though it has ended")
		require.NoError(t, late.Body.Close())
		w.idle(t)
	})
}

func TestShutdownRefusesFillsAndEndsThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, o := newWorld(t, fill.Options{}), newOwner(content, newBody(len(content)))
		a := w.open(t, t.Context(), o)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		assert.ErrorIs(t, w.flights.Shutdown(ctx), context.DeadlineExceeded)
		_, err := readAll(a)
		assert.ErrorIs(t, err, context.Canceled)
		require.NoError(t, a.Body.Close())
		w.idle(t)
		_, err = w.Open(t.Context(), "k", o.job)
		assert.ErrorIs(t, err, flight.ErrClosed)
	})
}
