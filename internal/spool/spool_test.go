package spool_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

func content(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func write(t *testing.T, s *spool.Spool, b []byte) {
	t.Helper()
	for len(b) > 0 {
		n, err := s.Write(b[:min(len(b), 100_000)])
		require.NoError(t, err)
		b = b[n:]
	}
}

func open(t *testing.T, s *spool.Spool) *spool.Reader {
	t.Helper()
	r, err := s.NewReader(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// sizes are one of each kind: empty, below the withheld tail, in memory, at
// the edge of memory, in a file.
var sizes = map[string]int{
	"empty": 0, "tiny": 1, "memory": 300_000, "edge": spool.MemoryLimit, "file": 3<<20 + 17,
}

func TestTheTailIsWithheldUntilFinish(t *testing.T) {
	for name, size := range sizes {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				want := content(size)
				s := spool.New(spool.Options{Dir: t.TempDir(), Size: int64(size)})
				defer s.Release()
				r := open(t, s)
				var mu sync.Mutex
				var got []byte
				go func() {
					buf := make([]byte, 32<<10)
					for {
						n, err := r.Read(buf)
						mu.Lock()
						got = append(got, buf[:n]...)
						mu.Unlock()
						if err != nil {
							return
						}
					}
				}()
				write(t, s, want)
				time.Sleep(time.Second)
				synctest.Wait()
				mu.Lock()
				assert.Len(t, got, max(0, size-spool.Withheld))
				mu.Unlock()
				s.Finish()
				synctest.Wait()
				mu.Lock()
				assert.True(t, bytes.Equal(want, got))
				mu.Unlock()
			})
		})
	}
}

func TestASlowUpstreamsBytesArriveWithoutMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := spool.New(spool.Options{Dir: t.TempDir(), Size: 10 << 20})
		defer s.Release()
		r := open(t, s)
		start := time.Now()
		write(t, s, content(100))
		write(t, s, content(100)) // less than a wake-up's worth after the first bytes
		n, err := io.ReadFull(r, make([]byte, 200))
		require.NoError(t, err)
		assert.Equal(t, 200, n)
		assert.LessOrEqual(t, time.Since(start), 10*time.Millisecond)
	})
}

func TestASpoolWithoutReadersCanBeAbandoned(t *testing.T) {
	s := spool.New(spool.Options{Dir: t.TempDir(), Size: 100})
	r := open(t, s)
	s.Retain()
	assert.False(t, s.Abandon(), "a spool with a reader cannot be abandoned")
	require.NoError(t, r.Close())
	require.NoError(t, r.Close(), "closing twice is harmless")
	assert.False(t, s.Abandon(), "nor one that somebody else holds")
	assert.True(t, s.Held())
	s.Release()
	assert.False(t, s.Held())
	require.True(t, s.Abandon())
	s.Fail(errors.New("nobody reads this download any more"))
	_, err := s.NewReader(t.Context())
	assert.ErrorIs(t, err, spool.ErrAbandoned)
	s.Release()
}

func TestAFullDiskIsTheWritersError(t *testing.T) {
	s := spool.New(spool.Options{Dir: filepath.Join(t.TempDir(), "missing"), Size: 5 << 20})
	defer s.Release()
	_, err := s.Write(content(5))
	assert.ErrorIs(t, err, os.ErrNotExist)
}

func BenchmarkSpool(b *testing.B) {
	want := content(64 << 20)
	sum := sha256.Sum256(want)
	b.SetBytes(int64(len(want)))
	for b.Loop() {
		s := spool.New(spool.Options{Dir: b.TempDir(), Size: int64(len(want))})
		r, _ := s.NewReader(b.Context())
		h := sha256.New()
		done := make(chan error)
		go func() { _, err := io.Copy(h, r); done <- err }()
		for off := 0; off < len(want); off += 256 << 10 {
			if _, err := s.Write(want[off : off+256<<10]); err != nil {
				b.Fatal(err)
			}
		}
		s.Finish()
		if err := <-done; err != nil || !bytes.Equal(h.Sum(nil), sum[:]) {
			b.Fatal("wrong content", err)
		}
		_ = r.Close()
		s.Release()
	}
}

// place is a file that fails from the offset full on, in the way given.
type place struct {
	*os.File
	full  int64
	short bool
}

func (p *place) WriteAt(b []byte, off int64) (int, error) {
	if off+int64(len(b)) > p.full {
		if p.short {
			return p.File.WriteAt(b[:len(b)/2], off)
		}
		return 0, syscall.ENOSPC
	}
	return p.File.WriteAt(b, off)
}

func (p *place) Open() (*os.File, error) { return os.Open(p.Name()) }

func newPlace(t *testing.T, full int64) *place {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "place"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return &place{File: f, full: full}
}

func TestTheRestGoesElsewhereWhenTheFirstPlaceFails(t *testing.T) {
	for _, short := range []bool{false, true} {
		for _, full := range []int64{0, 1, 1 << 20, 2<<20 + 7} {
			want := content(3<<20 + 17)
			p := newPlace(t, full)
			p.short = short
			var failed error
			s := spool.New(spool.Options{
				Dir: t.TempDir(), Size: int64(len(want)), Place: p, Files: spool.NewFiles(10),
				PlaceFailed: func(start int64, err error) error {
					assert.LessOrEqual(t, start, full)
					failed = err
					return nil
				},
			})
			plain, sending := open(t, s), open(t, s)
			var wg sync.WaitGroup
			wg.Go(func() {
				got, err := io.ReadAll(plain)
				assert.NoError(t, err)
				assert.True(t, bytes.Equal(want, got))
			})
			wg.Go(func() {
				var got readerFrom
				n, err := sending.SendTo(&got, int64(len(want)), spool.Conn{})
				assert.NoError(t, err)
				assert.EqualValues(t, len(want), n)
				assert.True(t, bytes.Equal(want, got.Bytes()))
			})
			write(t, s, want)
			s.Finish()
			wg.Wait()
			assert.False(t, s.Whole())
			assert.Error(t, failed)
			s.Release()
		}
	}
}

func TestWhereThereIsNoRoomForTheRest(t *testing.T) {
	p, dir, refused := newPlace(t, 1<<20), t.TempDir(), errors.New("no room")
	s := spool.New(spool.Options{Dir: dir, Size: 3 << 20, Place: p, PlaceFailed: func(int64, error) error { return refused }})
	defer s.Release()
	write(t, s, content(1<<20))
	_, err := s.Write(content(1 << 20))
	assert.ErrorIs(t, err, refused)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, left)
	assert.True(t, s.Whole())
}

func TestBothPlacesFail(t *testing.T) {
	p := newPlace(t, 1<<20)
	s := spool.New(spool.Options{Dir: filepath.Join(t.TempDir(), "missing"), Size: 3 << 20, Place: p})
	defer s.Release()
	r := open(t, s)
	first := content(1 << 20)
	write(t, s, first)
	_, err := s.Write(first)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorIs(t, err, os.ErrNotExist)
	got := make([]byte, len(first))
	_, err = io.ReadFull(r, got)
	require.NoError(t, err, "what is there stays readable")
	assert.True(t, bytes.Equal(first, got))
}

// readerFrom is a connection that has a file sent to it.
type readerFrom struct {
	bytes.Buffer
	files int
}

func (w *readerFrom) ReadFrom(src io.Reader) (int64, error) {
	if part, ok := src.(*io.LimitedReader); ok {
		if _, ok := part.R.(*os.File); ok {
			w.files++
		}
	}
	return w.Buffer.ReadFrom(src)
}

// never is a connection whose other end does not read.
type never struct{ cut chan struct{} }

func (n never) Write([]byte) (int, error) {
	<-n.cut
	return 0, os.ErrDeadlineExceeded
}
