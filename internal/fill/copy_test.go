package fill_test

import (
	"bytes"
	"cmp"
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
		"told, too long":      {total: -1, told: 3 * mib, sent: content, kind: fill.ErrDigest, text: "blob is longer than the 3145728 bytes announced"},
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

// What a manifest says of a blob's length is worth less than what the source says, and
// the digest is worth more than both.
func TestTheDigestDecidesWhereAManifestIsOff(t *testing.T) {
	for name, c := range map[string]struct {
		size  int
		total int64 // what the source announces; 0: the size
		off   int64 // by how much the manifest is
		cut   bool  // those that read meanwhile were told too much
	}{
		"announced, too little told":          {100_000, 0, -1, false},
		"announced, too much told":            {100_000, 0, 1, false},
		"announced, nothing like it":          {4 * mib, 0, 3 - 4*mib, false},
		"not announced, too little told":      {100_000, -1, -1, false},
		"not announced, too much told":        {100_000, -1, 30_000, false},
		"large, not announced, too much told": {4 * mib, -1, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				want := content[:c.size]
				b := slowBody(want, mib, 0)
				b.total = cmp.Or(c.total, int64(c.size))
				w, o := newWorld(t, fill.Options{}), newOwner(want, b)
				o.Size = func() int64 { return int64(c.size) + c.off }
				a := w.open(t, t.Context(), o)
				got, err := readAll(a)
				assert.NoError(t, err)
				assert.True(t, bytes.Equal(want, got))
				assert.Equal(t, c.cut, a.Size > int64(len(got)), "a part is never taken for the whole")
				require.NoError(t, a.Body.Close())
				w.idle(t)
				assert.True(t, bytes.Equal(want, o.stored(t)))
				assert.EqualValues(t, c.size, o.end(t).Size)
				assert.Equal(t, 1, o.opens)
			})
		})
	}
}

// A slow blob is shown with the size that a manifest told. It must not turn out longer.
func TestABlobThatWasShownWithTooLittleFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := content[:100_000]
		b := slowBody(want, 50_000, 3*time.Second)
		b.total = -1
		w, o := newWorld(t, fill.Options{}), newOwner(want, b)
		o.Size = func() int64 { return int64(len(want)) - 1 }
		_, err := w.read(t.Context(), o)
		assert.ErrorIs(t, err, fill.ErrDigest)
		w.idle(t)
		assert.Empty(t, o.puts)
	})
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
		small := content[:100_000]
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
		b := slowBody(content, mib, 50*time.Second)
		b.total = -1
		w, o := newWorld(t, fill.Options{}), newOwner(content, b)
		start := time.Now()
		a := w.open(t, t.Context(), o)
		assert.Equal(t, 250*time.Second, time.Since(start), "of which 50 for the end")
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
