package pullthrough_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// part reads n bytes at off, and returns how long the first took.
func (c *client) part(url string, off, n int64) (first time.Duration, err error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	start := time.Now()
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return 0, fmt.Errorf("%s: %s", url, resp.Status)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
		return 0, err
	}
	first = time.Since(start)
	got, err := io.Copy(io.Discard, resp.Body)
	if err == nil && got != n-1 {
		err = fmt.Errorf("%s: %d bytes of %d", url, got+1, n)
	}
	return first, err
}

// sent is how many bytes upstream has sent since it was reset.
func (c *coldLayer) sent() (n int64) {
	for _, r := range c.up.Requests() {
		n += r.Bytes
	}
	return n
}

// BenchmarkFarPart is the first byte of the last 50 KiB of a cold blob of 1 GiB, from an
// upstream that is 20 ms late. ms-late is by how much ours comes after upstream's own.
// x-upstream-bytes is what the whole download cost.
func BenchmarkFarPart(b *testing.B) {
	const tail = 50 << 10
	layer := newColdLayer(b, testkit.Most(int64(1<<30)), upstreamDelay)
	store := newLayerStore(b)
	url, again := layer.behind(b, stagingStore{store}, func() error { return os.Remove(store.path(layer.Digest)) })
	var ours, direct []time.Duration
	var most float64
	for b.Loop() {
		first, err := layer.direct.part(layer.remote, layer.Size-tail, tail)
		if err != nil {
			b.Fatal(err)
		}
		direct = append(direct, first)
		layer.up.Reset()
		first, err = layer.local.part(url, layer.Size-tail, tail)
		if err := errors.Join(err, again()); err != nil {
			b.Fatal(err)
		}
		ours = append(ours, first)
		most = max(most, float64(layer.sent())/float64(layer.Size))
	}
	b.ReportMetric(float64(testkit.Median(ours).Microseconds())/1000, "ms-first")
	b.ReportMetric(float64((testkit.Median(ours)-testkit.Median(direct)).Microseconds())/1000, "ms-late")
	b.ReportMetric(most, "x-upstream-bytes")
}

// slowLine is a way to an upstream that all connections share.
type slowLine struct {
	to   string
	rate int64 // bytes a second

	mu   sync.Mutex
	free time.Time // when the line has sent all that it was given
}

// newSlowLine returns the URL of one.
func newSlowLine(b *testing.B, to string, rate int64) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := &slowLine{to: to, rate: rate}
	b.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go s.carry(b.Context(), conn)
		}
	}()
	return "http://" + l.Addr().String()
}

func (s *slowLine) carry(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	up, err := pullthroughtest.DialLoopback(ctx, "tcp", s.to)
	if err != nil {
		return
	}
	defer up.Close()
	_ = up.(*net.TCPConn).SetReadBuffer(32 << 10)
	_ = conn.(*net.TCPConn).SetWriteBuffer(32 << 10)
	go func() { _, _ = io.Copy(up, conn); _ = up.Close() }()
	buf := make([]byte, 16<<10)
	for {
		n, err := up.Read(buf)
		s.wait(n)
		if _, writeErr := conn.Write(buf[:n]); err != nil || writeErr != nil {
			return
		}
	}
}

// wait takes the line for n bytes.
func (s *slowLine) wait(n int) {
	s.mu.Lock()
	now := time.Now()
	if s.free.Before(now) {
		s.free = now
	}
	s.free = s.free.Add(time.Duration(n) * time.Second / time.Duration(s.rate))
	left := s.free.Sub(now)
	s.mu.Unlock()
	time.Sleep(left)
}

// lazily reads a layer as stargz does: two bytes, the footer, the table of contents, and
// then files here and there.
func (c *client) lazily(url string, size int64) error {
	reads := [][2]int64{{0, 2}, {size - 51, 51}, {size - 400_000, 399_949}}
	for i := range int64(12) {
		reads = append(reads, [2]int64{(i * 7919 % 12) * (size / 13), 300_000 + i*20_000})
	}
	for _, r := range reads {
		if _, err := c.part(url, r[0], r[1]); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkLazyLayer reads a cold layer of 30 MB behind a line of 3 MiB/s as a snapshotter
// does that mounts it before it is there. The bound is the same client at the upstream
// itself, over the same line. x-upstream-bytes is what the whole download cost.
func BenchmarkLazyLayer(b *testing.B) {
	layer := newColdLayer(b, 30_000_000, 0)
	base := newSlowLine(b, strings.TrimPrefix(layer.up.URL, "http://"), 3<<20)
	var ratios []float64
	var most float64
	for b.Loop() {
		start := time.Now()
		if err := layer.direct.lazily(base+"/v2/a/blobs/"+layer.Digest.String(), layer.Size); err != nil {
			b.Fatal(err)
		}
		direct := time.Since(start)
		layer.up.Reset()
		ours, err := layer.lazilyBehind(b, base)
		if err != nil {
			b.Fatal(err)
		}
		ratios = append(ratios, ours.Seconds()/direct.Seconds())
		most = max(most, float64(layer.sent())/float64(layer.Size))
	}
	b.ReportMetric(testkit.Median(ratios), "x-direct")
	b.ReportMetric(most, "x-upstream-bytes")
}

// lazilyBehind reads the layer through a proxy that knows nothing yet.
func (c *coldLayer) lazilyBehind(b *testing.B, upstream string) (took time.Duration, err error) {
	p := &pullthrough.Proxy{
		Store: newLayerStore(b), SpoolDir: b.TempDir(),
		Rules: pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: upstream}},
	}
	s := httptest.NewServer(p)
	defer s.Close()
	start := time.Now()
	err = c.local.lazily(s.URL+"/v2/"+testkit.Prefix+"/a/blobs/"+c.Digest.String(), c.Size)
	took = time.Since(start)
	return took, errors.Join(err, p.Idle(b.Context()), p.Shutdown(b.Context()))
}
