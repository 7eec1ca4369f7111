package fill_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/fill"
)

func TestWhatIsWrongIsNeverCompleteAndNeverStored(t *testing.T) {
	reset := errors.New("connection reset")
	for name, c := range map[string]struct {
		total   int
		sent    []byte
		failure error
		told    int64 // by a manifest; 0: nothing
		max     int64
		kind    error
		text    string
	}{
		"another digest":      {total: 4 * mib, sent: flipped(content), kind: fill.ErrDigest, text: "blob has the digest sha256:"},
		"too short":           {total: 4 * mib, sent: content[:3*mib], kind: fill.ErrBroken, text: "blob ended after 3145728 of 4194304 bytes"},
		"too long":            {total: 3 * mib, sent: content, kind: fill.ErrDigest, text: "blob is longer than the 3145728 bytes announced"},
		"unknown, wrong":      {total: -1, sent: flipped(content), kind: fill.ErrDigest, text: "blob has the digest sha256:"},
		"another length":      {total: 4 * mib, told: 3, kind: fill.ErrDigest, text: "blob of 3 bytes is announced with 4194304"},
		"told, short":         {total: -1, told: 4 * mib, sent: content[:mib], kind: fill.ErrBroken, text: "blob ended after 1048576 of 4194304 bytes"},
		"announced too large": {total: 4 * mib, max: 3 * mib, kind: fill.ErrTooLarge, text: "blob of 4194304 bytes"},
		"unknown, too large":  {total: -1, sent: content, max: 3 * mib, kind: fill.ErrTooLarge, text: "blob is longer than 3145728 bytes"},
		"broken":              {total: 4 * mib, sent: content[:mib], failure: reset, kind: reset, text: "explained: connection reset"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := slowBody(c.sent, mib, 0)
				b.total, b.failure = int64(c.total), c.failure
				w, o := newWorld(t, fill.Options{}), newOwner(content, b)
				o.Retry, o.MaxBytes = c.total > 0, c.max
				if c.told != 0 {
					o.Size = func() int64 { return c.told }
				}
				got, err := w.read(t.Context(), o)
				assert.ErrorIs(t, err, c.kind)
				assert.ErrorContains(t, err, c.text)
				assert.IsType(t, &explained{}, err, "readers get it in the owner's words")
				assert.Less(t, len(got), len(content)-64<<10+1)
				w.idle(t)
				assert.Equal(t, 1, o.opens, "what is large has been seen, and is not received again")
				assert.Empty(t, o.puts)
				assert.Equal(t, err, o.end(t).Err)
			})
		})
	}
}

func TestSmallBlobsAreVerifiedBeforeTheyAreShown(t *testing.T) {
	small := content[:100_000]
	for name, c := range map[string]struct {
		bodies []*body
		retry  bool
		opens  int
		err    bool
	}{
		"right":               {[]*body{wholeBody(small)}, true, 1, false},
		"flipped once":        {[]*body{wholeBody(flipped(small)), wholeBody(small)}, true, 2, false},
		"flipped twice":       {[]*body{wholeBody(flipped(small)), wholeBody(flipped(small))}, true, 2, true},
		"flipped, no retries": {[]*body{wholeBody(flipped(small))}, false, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			w, o := newWorld(t, fill.Options{}), newOwner(small, c.bodies...)
			o.Retry = c.retry
			a, err := w.Open(t.Context(), "k", o.job)
			assert.Equal(t, c.opens, o.opens)
			if c.err {
				assert.ErrorIs(t, err, fill.ErrDigest)
				w.idle(t)
				return
			}
			require.NoError(t, err)
			got, err := readAll(a)
			assert.NoError(t, err)
			assert.True(t, bytes.Equal(small, got))
			require.NoError(t, a.Body.Close())
			w.idle(t)
			assert.True(t, bytes.Equal(small, o.stored(t)))
		})
	}
}

func TestSmallBlobsThatTakeLongAreShownUnverified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		small := content[:200_000]
		w, b := newWorld(t, fill.Options{}), newBody(len(small))
		o := newOwner(small, b)
		o.Retry = true
		start := time.Now()
		a := w.open(t, t.Context(), o)
		assert.Equal(t, 2*time.Second, time.Since(start))
		b.send(flipped(small))
		got := make([]byte, len(small))
		n, err := io.ReadAtLeast(a.Body, got, len(small)-64<<10)
		require.NoError(t, err)
		assert.Equal(t, len(small)-64<<10, n, "the last 64 KiB are held back")
		close(b.chunks)
		_, err = a.Body.Read(got)
		assert.ErrorIs(t, err, fill.ErrDigest)
		require.NoError(t, a.Body.Close())
		w.idle(t)
		assert.Equal(t, 1, o.opens, "it has been seen")
	})
}

func TestBlobsOfUnknownLengthAreShownWhenTheyAreWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := slowBody(content, mib, time.Minute)
		b.total = -1
		w, o := newWorld(t, fill.Options{}), newOwner(content, b)
		start := time.Now()
		a := w.open(t, t.Context(), o)
		assert.Equal(t, 5*time.Minute, time.Since(start), "of which one for the end")
		assert.EqualValues(t, len(content), a.Size)
		require.NoError(t, a.Body.Close())
		w.idle(t)
	})
}

func TestASourceThatPanicsFailsItsReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBody(len(content))
		b.panics = true
		w, o := newWorld(t, fill.Options{}), newOwner(content, b)
		_, err := w.read(t.Context(), o)
		assert.EqualError(t, err, "explained: the source of a blob panicked: boom")
		w.idle(t)
		<-b.gone
	})
}
