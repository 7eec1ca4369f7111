package upstream_test

import (
	"fmt"
	"io"
	"math/big"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/contentrange"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestABlobThatIsCutGoesOnWhereItWasCut(t *testing.T) {
	const size = 4<<20 + 3
	for name, fault := range map[string]pullthroughtest.Fault{
		"closed": {CutAfter: new(int64(1 << 20))},
		"reset":  {CutAfter: new(int64(1 << 20)), Reset: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
			layer := w.Layer(size)
			fault.Match, fault.Times = testkit.Blobs+" 20*", 3
			w.Up.Fault(fault)
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					b, err := w.Open(t.Context(), layer.Digest)
					if assert.NoError(t, err) {
						testkit.AssertBody(t, layer.Digest, b)
					}
				})
			}
			wg.Wait()
			w.Settled(t)
			var ranges []string
			var sent int64
			for _, r := range w.Up.Requests() {
				if strings.Contains(r.Path, "/blobs/") && r.Status/100 == 2 {
					ranges = append(ranges, r.Range)
					sent += r.Bytes
				}
			}
			require.Len(t, ranges, 4)
			if name == "closed" { // a reset takes back what is on its way
				assert.Equal(t, []string{"", "bytes=1048576-", "bytes=2097152-", "bytes=3145728-"}, ranges)
				assert.EqualValues(t, size, sent, "no byte is fetched twice")
			}
			assert.Equal(t, 1, w.Up.Count("* 401"))
			assert.Equal(t, 1, w.Up.Count("GET /token*"))
		})
	}
}

func TestABlobThatStallsIsAskedForAgain(t *testing.T) {
	up, enter := testkit.Piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		layer := w.Layer(4 << 20)
		up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Times: 1, Stall: make(chan struct{}), StallAfter: new(int64(2 << 20))})
		start := time.Now()
		w.PullBlob(t, "a", layer.Digest)
		w.Settled(t)
		assert.InDelta(t, 30*time.Second, time.Since(start), float64(2*time.Second))
		assert.Equal(t, 1, up.Count(testkit.Blobs+" 206"))
	})
}

func TestABlobThatNeverGoesOnFails(t *testing.T) {
	up, enter := testkit.Piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		layer := w.Layer(4 << 20)
		up.Fault(pullthroughtest.Fault{Match: testkit.Blobs + " 200", Times: 1, Stall: make(chan struct{}), StallAfter: new(int64(2 << 20))})
		up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Stall: make(chan struct{}), StallAfter: new(int64(0))})
		start := time.Now()
		b, err := w.Open(t.Context(), layer.Digest)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, b.Body)
		assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
		require.NoError(t, b.Body.Close())
		w.Settled(t)
		assert.Less(t, time.Since(start), 4*time.Minute)
	})
}

func TestATrickleIsNoDownload(t *testing.T) {
	up, enter := testkit.Piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		layer := w.Layer(4 << 20)
		up.Fault(pullthroughtest.Fault{Match: testkit.Blobs, Rate: 100})
		start := time.Now()
		b, err := w.Open(t.Context(), layer.Digest)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, b.Body)
		assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
		require.NoError(t, b.Body.Close())
		w.Settled(t)
		assert.LessOrEqual(t, time.Since(start), 2*time.Minute+time.Second)
		assert.Equal(t, 1, up.Count(testkit.Blobs))
	})
}

func TestAnUpstreamThatSaysNothingIsGivenUp(t *testing.T) {
	up, enter := testkit.Piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		w := enter(t)
		w.Layer(100)
		up.Fault(pullthroughtest.Fault{Stall: make(chan struct{})})
		start := time.Now()
		_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
		assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
		assert.Equal(t, 30*time.Second, time.Since(start))
	})
}

// FuzzContentRange compares with a reading by regular expression and big numbers.
func FuzzContentRange(f *testing.F) {
	for _, seed := range []string{"bytes 0-0/1", "bytes 5-9/10", "bytes 9-5/10", "bytes */10", "bytes 0-9/*", "bytes 0-9223372036854775808/9223372036854775809", "bytes +0-1/2"} {
		f.Add(seed)
	}
	form := regexp.MustCompile(`^bytes ([0-9]+)-([0-9]+)/([0-9]+)$`)
	f.Fuzz(func(t *testing.T, v string) {
		first, last, total, ok := contentrange.Parse(v)
		m := form.FindStringSubmatch(v)
		if m == nil {
			assert.False(t, ok)
			return
		}
		var n [3]*big.Int
		fits := true
		for i := range n {
			n[i], _ = new(big.Int).SetString(m[i+1], 10)
			fits = fits && n[i].IsInt64()
		}
		assert.Equal(t, fits && n[0].Cmp(n[1]) <= 0 && n[1].Cmp(n[2]) < 0, ok)
		if ok {
			assert.Equal(t, []string{n[0].String(), n[1].String(), n[2].String()}, []string{fmt.Sprint(first), fmt.Sprint(last), fmt.Sprint(total)})
		}
	})
}
