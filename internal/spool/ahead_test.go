package spool_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/extent"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

const aheadSize = 3<<20 + 77

// filling fills a spool in order, and by windows.
type filling struct {
	*spool.Spool
	want     []byte
	rand     *rand.Rand
	windows  []*spool.Window
	finished atomic.Bool
}

// inOrder brings the next bytes as the main stream does: those that are there already are
// read back.
func (f *filling) inOrder(t *testing.T) {
	from := f.Written()
	n, wait := f.Ahead()
	switch {
	case n > 0:
		p := make([]byte, min(n, 100_000))
		require.NoError(t, f.ReadAhead(p))
		require.True(t, bytes.Equal(f.want[from:from+int64(len(p))], p))
		write(t, f.Spool, p)
	case wait == nil && from < aheadSize:
		write(t, f.Spool, f.want[from:from+min(f.Gap(), aheadSize-from, 1+f.rand.Int64N(100_000))])
	}
}

func (f *filling) open(t *testing.T) {
	span, ok := f.Next(0)
	if !ok {
		from := f.rand.Int64N(aheadSize)
		span = extent.Span{From: from, To: from + 1 + f.rand.Int64N(1<<20)}
	}
	w, err := f.Open(span)
	if err == nil {
		f.windows = append(f.windows, w)
		return
	}
	assert.False(t, ok, "what should be opened cannot be: %v", err)
}

// byWindow brings some bytes of a window, perhaps more than it has room for, or closes it.
func (f *filling) byWindow(t *testing.T) {
	if len(f.windows) == 0 {
		return
	}
	i := f.rand.IntN(len(f.windows))
	w := f.windows[i]
	span := w.Span()
	if span.Len() == 0 || f.rand.IntN(20) == 0 {
		w.Close()
		f.windows = append(f.windows[:i], f.windows[i+1:]...)
		return
	}
	p := f.want[span.From:min(aheadSize, span.From+1+f.rand.Int64N(200_000))]
	n, err := w.Write(p)
	require.NoError(t, err)
	assert.Equal(t, min(int64(len(p)), span.Len()), int64(n))
}

// read is a client of the part, or of all where it says none, and of the last bytes only when
// they are right, unless it may have them before.
func (f *filling) read(t *testing.T, p *spool.Part) {
	r, err := f.NewReader(t.Context())
	if !assert.NoError(t, err) {
		return
	}
	defer func() { assert.NoError(t, r.Close()) }()
	from, to, early := int64(0), int64(aheadSize), false
	if p != nil {
		from, to, early = p.From, p.To, !p.Open && p.To-p.From < aheadSize
		r.Ask([]spool.Part{*p})
	}
	_, err = r.Seek(from, io.SeekStart)
	assert.NoError(t, err)
	buf := make([]byte, 50_000)
	for from < to {
		n, err := r.Read(buf[:min(int64(len(buf)), to-from)])
		if !assert.NoError(t, err) || !assert.True(t, bytes.Equal(f.want[from:from+int64(n)], buf[:n]), "at %d", from) {
			return
		}
		from += int64(n)
		if !early && from > aheadSize-spool.Withheld && !assert.True(t, f.finished.Load(), "it sees the end too early") {
			return
		}
	}
}

// Whatever comes in whatever order, each reader gets its bytes.
func TestWindowsInAnyOrder(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			f := &filling{want: content(aheadSize), rand: rand.New(rand.NewPCG(seed, 1))}
			f.Spool = spool.New(spool.Options{Dir: t.TempDir(), Size: aheadSize, Changed: func() {}})
			defer f.Release()
			var readers sync.WaitGroup
			readers.Go(func() { f.read(t, nil) })
			steps := []func(*testing.T){f.inOrder, f.byWindow, f.byWindow, f.byWindow, f.open}
			for f.Written() < aheadSize {
				steps[f.rand.IntN(len(steps))](t)
				if f.rand.IntN(10) == 0 {
					from := f.rand.Int64N(aheadSize)
					p := &spool.Part{From: from, To: from + 1 + f.rand.Int64N(aheadSize-from), Open: f.rand.IntN(2) == 0}
					if p.Open {
						p.To = aheadSize
					}
					readers.Go(func() { f.read(t, p) })
				}
			}
			assert.EqualValues(t, aheadSize, f.Bytes())
			for _, w := range f.windows {
				w.Close()
			}
			f.finished.Store(true)
			f.Finish()
			readers.Wait()
			assert.True(t, f.Whole())
		})
	}
}

// A reader that comes to a far place in somebody else's window gets a first window of its own.
func TestAFirstWindowInAWindow(t *testing.T) {
	const size, at = 64 << 20, 40 << 20
	for name, part := range map[string]spool.Part{"open": {From: at, To: size, Open: true}, "closed": {From: at, To: at + 1<<20}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := spool.New(spool.Options{Dir: t.TempDir(), Size: size, Changed: func() {}})
				w, err := s.Open(extent.Span{From: 8 << 20, To: size})
				require.NoError(t, err)
				r := open(t, s)
				r.Ask([]spool.Part{part})
				_, err = r.Seek(at, io.SeekStart)
				require.NoError(t, err)
				go func() { _, _ = r.Read(make([]byte, 1)) }()
				synctest.Wait()
				next, ok := s.Next(0)
				assert.True(t, ok)
				assert.Equal(t, extent.Span{From: at, To: at + 1<<20}, next)
				w.Close()
				s.Fail(io.ErrUnexpectedEOF)
				synctest.Wait()
				s.Release()
			})
		})
	}
}

// A part whose end may be seen early comes to its end without Finish.
func TestAClosedPartEndsBeforeFinish(t *testing.T) {
	want := content(aheadSize)
	s := spool.New(spool.Options{Dir: t.TempDir(), Size: aheadSize})
	defer s.Release()
	r := open(t, s)
	r.Ask([]spool.Part{{From: aheadSize - 100, To: aheadSize}})
	_, err := r.Seek(aheadSize-100, io.SeekStart)
	require.NoError(t, err)
	w, err := s.Open(extent.Span{From: aheadSize - 200, To: aheadSize})
	require.NoError(t, err)
	_, err = w.Write(want[aheadSize-200:])
	require.NoError(t, err)
	var got bytes.Buffer
	n, err := r.SendTo(&got, 100, spool.Conn{})
	require.NoError(t, err)
	assert.EqualValues(t, 100, n)
	assert.True(t, bytes.Equal(want[aheadSize-100:], got.Bytes()))
	w.Close()
}
