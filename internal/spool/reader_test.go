package spool_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

func TestEveryReaderGetsTheWholeContent(t *testing.T) {
	for name, size := range sizes {
		for _, known := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				want := content(size)
				declared := int64(size)
				if !known {
					declared = -1
				}
				s := spool.New(spool.Options{Dir: t.TempDir(), Size: declared})
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

func TestFailReachesReadersAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := errors.New("boom")
		s := spool.New(spool.Options{Dir: t.TempDir(), Size: 10 << 20})
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
		s := spool.New(spool.Options{Dir: t.TempDir(), Size: 10 << 20})
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
		s := spool.New(spool.Options{Dir: t.TempDir(), Size: 10 << 20})
		defer s.Release()
		r := open(t, s)
		go func() { time.Sleep(time.Second); _ = r.Close() }()
		_, err := r.Read(make([]byte, 1))
		assert.Error(t, err)
	})
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

func TestAConnectionIsHandedTheFileButNeverTheTail(t *testing.T) {
	want := content(3 << 20)
	files := spool.NewFiles(1)
	s := spool.New(spool.Options{Dir: t.TempDir(), Size: int64(len(want)), Files: files})
	first, second := open(t, s), open(t, s)
	write(t, s, want)
	visible := int64(len(want) - spool.Withheld)
	var a, b readerFrom
	n, err := first.SendTo(&a, visible, spool.Conn{})
	require.NoError(t, err)
	assert.Equal(t, visible, n)
	assert.Positive(t, a.files)
	_, err = second.SendTo(&b, visible, spool.Conn{})
	require.NoError(t, err)
	assert.Zero(t, b.files, "there is one file only")
	assert.EqualValues(t, 1, files.Open())
	s.Finish()
	for r, w := range map[*spool.Reader]*readerFrom{first: &a, second: &b} {
		_, err = r.SendTo(w, spool.Withheld, spool.Conn{})
		require.NoError(t, err)
		assert.True(t, bytes.Equal(want, w.Bytes()))
		require.NoError(t, r.Close())
	}
	s.Release()
	assert.Zero(t, files.Open())
}

func TestSendToFlushesBeforeItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := spool.New(spool.Options{Dir: t.TempDir(), Size: 2 << 20})
		defer s.Release()
		r := open(t, s)
		var flushed atomic.Int32
		go func() {
			time.Sleep(time.Second)
			assert.EqualValues(t, 1, flushed.Load())
			write(t, s, content(100))
			time.Sleep(time.Second)
			write(t, s, content(100))
		}()
		var w bytes.Buffer
		_, err := r.SendTo(&w, 200, spool.Conn{Flush: func() { flushed.Add(1) }})
		require.NoError(t, err)
		assert.EqualValues(t, 2, flushed.Load())
	})
}

func TestReadersGoOnElsewhereAfterAHandOver(t *testing.T) {
	want := content(3 << 20)
	s := spool.New(spool.Options{Dir: t.TempDir(), Size: int64(len(want))})
	readers := []*spool.Reader{open(t, s), open(t, s), open(t, s)}
	write(t, s, want)
	s.Finish()
	var got readerFrom
	_, err := readers[1].SendTo(&got, 100_000, spool.Conn{})
	require.NoError(t, err)
	copied := filepath.Join(t.TempDir(), "copy")
	require.NoError(t, os.WriteFile(copied, want, 0o600))
	opened := 0
	s.HandOver(func(context.Context) (io.ReadSeekCloser, error) {
		if opened++; opened >= 3 {
			return nil, os.ErrNotExist
		}
		return os.Open(copied)
	})
	b, err := io.ReadAll(readers[0])
	require.NoError(t, err)
	assert.True(t, bytes.Equal(want, b))
	_, err = readers[1].SendTo(&got, int64(len(want)-100_000), spool.Conn{})
	require.NoError(t, err)
	assert.True(t, bytes.Equal(want, got.Bytes()))
	b, err = io.ReadAll(readers[2])
	require.NoError(t, err, "who cannot go on elsewhere stays")
	assert.True(t, bytes.Equal(want, b))
	assert.True(t, s.Held())
	require.NoError(t, readers[2].Close())
	assert.False(t, s.Held(), "those who went on hold nothing")
	s.Release()
	require.NoError(t, readers[0].Close())
}

func TestReadersThatHardlyReadAreCutWhenSpaceIsWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := content(3 << 20)
		s := spool.New(spool.Options{Dir: t.TempDir(), Size: int64(len(want))})
		blocked, idle, moving := open(t, s), open(t, s), open(t, s)
		write(t, s, want)
		s.Finish()
		conn := never{make(chan struct{})}
		done := make(chan error, 1)
		go func() {
			_, err := blocked.SendTo(conn, int64(len(want)), spool.Conn{Interrupt: func() { close(conn.cut) }})
			done <- err
		}()
		time.Sleep(11 * time.Minute)
		_, err := io.CopyN(io.Discard, moving, 2<<20)
		require.NoError(t, err)
		s.CutSlow(10 * time.Minute)
		assert.ErrorIs(t, <-done, spool.ErrSlow)
		_, err = idle.Read(make([]byte, 1))
		assert.ErrorIs(t, err, spool.ErrSlow)
		_, err = io.Copy(io.Discard, moving)
		assert.NoError(t, err)
		for _, r := range []*spool.Reader{blocked, idle, moving} {
			require.NoError(t, r.Close())
		}
		assert.False(t, s.Held())
		s.Release()
	})
}
