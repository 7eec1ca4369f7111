package spool_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"testing/iotest"
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

func TestEveryReaderGetsTheWholeContent(t *testing.T) {
	for name, size := range sizes {
		for _, known := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				want := content(size)
				declared := int64(size)
				if !known {
					declared = -1
				}
				s := spool.New(t.TempDir(), declared)
				var wg sync.WaitGroup
				for range 8 {
					r := open(t, s)
					wg.Go(func() {
						got, err := io.ReadAll(r)
						assert.NoError(t, err)
						assert.True(t, bytes.Equal(want, got))
					})
				}
				write(t, s, want)
				s.Finish()
				late := open(t, s)
				s.Release()
				wg.Wait()
				if size <= 300_000 { // it reads byte by byte
					assert.NoError(t, iotest.TestReader(late, want), "a late reader starts at byte 0")
				}
				assert.EqualValues(t, size, s.Size())
			})
		}
	}
}

func TestTheTailIsWithheldUntilFinish(t *testing.T) {
	for name, size := range sizes {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				want := content(size)
				s := spool.New(t.TempDir(), int64(size))
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
		s := spool.New(t.TempDir(), 10<<20)
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

func TestFailReachesReadersAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := errors.New("boom")
		s := spool.New(t.TempDir(), 10<<20)
		defer s.Release()
		waiting, behind := open(t, s), open(t, s)
		write(t, s, content(1000))
		_, err := io.ReadFull(waiting, make([]byte, 1000))
		require.NoError(t, err)
		go func() { time.Sleep(time.Second); s.Fail(boom) }()
		_, err = waiting.Read(make([]byte, 1))
		assert.ErrorIs(t, err, boom)
		assert.ErrorIs(t, waiting.Err(), boom)
		_, err = behind.Read(make([]byte, 1))
		assert.ErrorIs(t, err, boom)
		_, err = s.NewReader(t.Context())
		assert.ErrorIs(t, err, boom)
	})
}

func TestAReaderLeavesOnItsOwnContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := spool.New(t.TempDir(), 10<<20)
		defer s.Release()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r, err := s.NewReader(ctx)
		require.NoError(t, err)
		_, err = r.Read(make([]byte, 1))
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		require.NoError(t, r.Close())
	})
}

func TestCloseEndsABlockedRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := spool.New(t.TempDir(), 10<<20)
		defer s.Release()
		r := open(t, s)
		go func() { time.Sleep(time.Second); _ = r.Close() }()
		_, err := r.Read(make([]byte, 1))
		assert.Error(t, err)
	})
}

func TestASpoolWithoutReadersCanBeAbandoned(t *testing.T) {
	s := spool.New(t.TempDir(), 100)
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
	_, err := s.NewReader(t.Context())
	assert.ErrorIs(t, err, spool.ErrAbandoned)
	s.Release()
}

func TestNothingIsLeftOnDisk(t *testing.T) {
	dir := t.TempDir()
	s := spool.New(dir, 5<<20)
	write(t, s, content(5<<20))
	s.Finish()
	r := open(t, s)
	s.Release()
	_, err := io.Copy(io.Discard, r)
	require.NoError(t, err, "readers outlive the owner")
	require.NoError(t, r.Close())
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestAFullDiskIsTheWritersError(t *testing.T) {
	s := spool.New(filepath.Join(t.TempDir(), "missing"), 5<<20)
	defer s.Release()
	_, err := s.Write(content(5))
	assert.ErrorIs(t, err, os.ErrNotExist)
}

// A reader that embedded *os.File, or had its SyscallConn, would be sent by
// net/http past the withheld tail.
func TestAReaderHidesItsFile(t *testing.T) {
	typ := reflect.TypeFor[*spool.Reader]()
	for _, name := range []string{"SyscallConn", "Fd", "WriteTo"} {
		_, has := typ.MethodByName(name)
		assert.False(t, has, name)
	}
	for i := range typ.Elem().NumField() {
		assert.False(t, typ.Elem().Field(i).Anonymous)
	}
}

func BenchmarkSpool(b *testing.B) {
	want := content(64 << 20)
	sum := sha256.Sum256(want)
	b.SetBytes(int64(len(want)))
	for b.Loop() {
		s := spool.New(b.TempDir(), int64(len(want)))
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
