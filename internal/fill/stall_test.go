package fill_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
	"github.com/ecr-pullthrough/pullthrough/internal/fill"
	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

func TestASourceThatStallsIsInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, b := newWorld(t, fill.Options{}), newBody(len(content))
		o := newOwner(content, b)
		a := w.open(t, t.Context(), o)
		b.send(content[:mib])
		time.Sleep(29 * time.Second)
		assert.Empty(t, b.interruptions())
		time.Sleep(2 * time.Second)
		assert.Equal(t, []error{fill.ErrStalled}, b.interruptions())
		time.Sleep(30 * time.Second)
		assert.Len(t, b.interruptions(), 2)
		b.end(content[mib:])
		got, err := readAll(a)
		assert.NoError(t, err)
		assert.True(t, bytes.Equal(content, got))
		require.NoError(t, a.Body.Close())
		w.idle(t)
	})
}

// A source that is sent again what it has had passes over it, and that is no stall.
func TestASourceThatSkipsIsNotInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, b := newWorld(t, fill.Options{}), newBody(len(content))
		o := newOwner(content, b)
		a := w.open(t, t.Context(), o)
		b.send(content[:mib])
		for range 300 {
			time.Sleep(time.Second)
			b.skip(2000)
		}
		assert.Empty(t, b.interruptions())
		b.end(content[mib:])
		got, err := readAll(a)
		assert.NoError(t, err)
		assert.True(t, bytes.Equal(content, got))
		require.NoError(t, a.Body.Close())
		w.idle(t)
	})
}

// A download that nobody reads may finish, but nobody waits for its upstream.
func TestAnOrphanWhoseSourceIsAwayEnds(t *testing.T) {
	for tries, ends := range map[int]bool{3: false, 4: true} {
		synctest.Test(t, func(t *testing.T) {
			w, b := newWorld(t, fill.Options{}), newBody(len(content))
			o := newOwner(content, b)
			o.Orphans, o.OrphanBytes = 1, 1<<30
			a := w.open(t, t.Context(), o)
			b.send(content[:mib])
			b.fail(tries)
			time.Sleep(10 * time.Second)
			assert.Equal(t, 1, w.Len(), "it is read")
			require.NoError(t, a.Body.Close())
			time.Sleep(2 * time.Second)
			synctest.Wait()
			assert.Equal(t, ends, w.Len() == 0)
			if ends {
				assert.ErrorIs(t, o.end(t).Err, flight.ErrDeserted)
			} else {
				b.end(content[mib:])
			}
			w.idle(t)
		})
	}
}

func TestASourceThatIsTooSlowEndsTheFill(t *testing.T) {
	for perSecond, ends := range map[int]bool{1000: true, 1100: false} {
		synctest.Test(t, func(t *testing.T) {
			want := content[:1100*perSecond]
			b := slowBody(want, perSecond, time.Second)
			w, o := newWorld(t, fill.Options{}), newOwner(want, b)
			start := time.Now()
			_, err := w.read(t.Context(), o)
			if ends {
				assert.ErrorIs(t, err, fill.ErrTooSlow)
				assert.ErrorIs(t, err, fill.ErrBroken)
				assert.ErrorContains(t, err, "000 bytes: upstream sent less than 61440 bytes in 1m0s")
				assert.LessOrEqual(t, time.Since(start), 62*time.Second)
			} else {
				assert.NoError(t, err)
			}
			w.idle(t)
		})
	}
}

func TestAFillThatNobodyReadsEndsWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, b := newWorld(t, fill.Options{}), newBody(len(content))
		o := newOwner(content, b)
		a := w.open(t, t.Context(), o)
		b.send(content[:mib])
		time.Sleep(time.Minute)
		require.NoError(t, a.Body.Close())
		time.Sleep(time.Second)
		synctest.Wait()
		assert.ErrorIs(t, o.end(t).Err, flight.ErrDeserted)
		assert.ErrorContains(t, o.end(t).Err, "after 1048576 bytes: nobody waits for it any more")
		w.idle(t)
		<-b.gone
		assert.Empty(t, o.puts)
	})
}

func TestAFillThatIsHeldIsNotDeserted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, b := newWorld(t, fill.Options{}), newBody(len(content))
		o := newOwner(content, b)
		f, _, err := w.Join(t.Context(), "k", o.job)
		require.NoError(t, err)
		go func() {
			time.Sleep(20 * time.Second)
			b.end(content)
		}()
		assert.NoError(t, f.Wait(t.Context()))
		f.Release()
		w.idle(t)
	})
}

func TestFewFillsGoOnWithoutAReader(t *testing.T) {
	for name, c := range map[string]struct {
		orphans  int
		bytes    int64
		finished int
	}{
		"none":           {0, 1 << 30, 0},
		"two":            {2, 1 << 30, 2},
		"bytes of three": {9, 3 * 4 * mib, 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fill.Options{})
				var all []*owner
				for i := range 5 {
					b := newBody(len(content))
					o := newOwner(content, b)
					o.Orphans, o.OrphanBytes = c.orphans, c.bytes
					all = append(all, o)
					a, err := w.Open(t.Context(), fmt.Sprint(i), o.job)
					require.NoError(t, err)
					require.NoError(t, a.Body.Close())
				}
				time.Sleep(time.Second)
				synctest.Wait()
				assert.Equal(t, c.finished, w.Len())
				for _, o := range all {
					o.bodies[0].end(content)
				}
				w.idle(t)
				finished := 0
				for _, o := range all {
					finished += len(o.puts)
				}
				assert.Equal(t, c.finished, finished)
			})
		})
	}
}

func TestAnOrphanThatIsReadAgainMakesRoomForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fill.Options{})
		first, second := newOwner(content, newBody(len(content))), newOwner(content, newBody(len(content)))
		for _, o := range []*owner{first, second} {
			o.Orphans, o.OrphanBytes = 1, 1<<30
		}
		require.NoError(t, w.open(t, t.Context(), first).Body.Close())
		time.Sleep(time.Second)
		a := w.open(t, t.Context(), first)
		time.Sleep(time.Second)
		other, err := w.Open(t.Context(), "other", second.job)
		require.NoError(t, err)
		require.NoError(t, other.Body.Close())
		time.Sleep(5 * time.Second)
		for _, o := range []*owner{first, second} {
			o.bodies[0].end(content)
		}
		_, err = readAll(a)
		assert.NoError(t, err)
		require.NoError(t, a.Body.Close())
		w.idle(t)
		assert.NoError(t, second.end(t).Err)
	})
}

func TestAnOrphanThatHasFinishedMakesRoomForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fill.Options{})
		for range 3 {
			o := newOwner(content, newBody(len(content)))
			o.Orphans, o.OrphanBytes = 1, int64(len(content))
			require.NoError(t, w.open(t, t.Context(), o).Body.Close())
			time.Sleep(5 * time.Second)
			o.bodies[0].end(content)
			w.idle(t)
			assert.NoError(t, o.end(t).Err)
		}
	})
}

// trickle is a Part that brings half a MiB, and then a byte now and then.
type trickle struct {
	ctx  context.Context
	rest []byte
	left int // of the first
}

func (p *trickle) Read(b []byte) (int, error) {
	if p.left <= 0 {
		b = b[:1]
		select {
		case <-time.After(10 * time.Second):
		case <-p.ctx.Done():
			return 0, context.Cause(p.ctx)
		}
	}
	n := copy(b, p.rest)
	p.rest, p.left = p.rest[n:], p.left-n
	return n, nil
}

func (p *trickle) Total() int64 { return int64(len(content)) }

func (p *trickle) Close() error { return nil }

// The main stream reads nothing while it waits for a window. When that one is too slow it
// ends, and not the fill.
func TestAWindowThatIsTooSlowEndsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fill.Options{})
		o := newOwner(content, newBody(len(content)))
		o.OpenPart = func(ctx context.Context, span extent.Span) (fill.Part, error) {
			return &trickle{ctx, content[span.From:], mib / 2}, nil
		}
		all, far := w.open(t, t.Context(), o), w.open(t, t.Context(), o)
		o.bodies[0].send(content[:mib/2])
		synctest.Wait()
		far.Body.Ask([]spool.Part{{From: 2 * mib, To: 3 * mib}})
		_, err := far.Body.Seek(2*mib, io.SeekStart)
		require.NoError(t, err)
		part := make(chan error, 1)
		go func() {
			got, err := io.ReadAll(io.LimitReader(far.Body, mib))
			assert.True(t, bytes.Equal(content[2*mib:3*mib], got))
			part <- err
		}()
		synctest.Wait() // the window is open
		go o.bodies[0].end(content[mib/2:])
		got, err := readAll(all)
		assert.NoError(t, err)
		assert.True(t, bytes.Equal(content, got))
		assert.NoError(t, <-part)
		require.NoError(t, all.Body.Close())
		require.NoError(t, far.Body.Close())
		w.idle(t)
		assert.Equal(t, 2, o.end(t).Connections)
	})
}
