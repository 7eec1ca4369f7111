package pullthrough_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// rangeCase is a Range header and what RFC 9110, section 14, makes of it.
type rangeCase struct {
	name, header string
	from, to     int // of the bytes wanted, to excluded
	status       int
}

// rangeCases are of an object of n bytes, n > 1000.
func rangeCases(n int) []rangeCase {
	many := strings.TrimSuffix(strings.Repeat("0-0,", 1000), ",")
	part := http.StatusPartialContent
	return []rangeCase{
		{"first byte", "bytes=0-0", 0, 1, part},
		{"middle", "bytes=300-399", 300, 400, part},
		{"last byte", fmt.Sprintf("bytes=%d-%[1]d", n-1), n - 1, n, part},
		{"suffix", "bytes=-7", n - 7, n, part},
		{"suffix longer than all", fmt.Sprintf("bytes=-%d", n+5), 0, n, part},
		{"open", fmt.Sprintf("bytes=%d-", n-10), n - 10, n, part},
		{"all of it", "bytes=0-", 0, n, part},
		{"end behind the end", fmt.Sprintf("bytes=%d-%d", n-10, n+10), n - 10, n, part},
		{"behind the end", fmt.Sprintf("bytes=%d-", n), 0, 0, http.StatusRequestedRangeNotSatisfiable},
		{"far behind the end", "bytes=9000000000000-9000000000001", 0, 0, http.StatusRequestedRangeNotSatisfiable},
		{"two ranges", "bytes=0-1,5-6", 0, n, http.StatusOK},
		{"overlapping ranges", "bytes=0-100,50-150,60-", 0, n, http.StatusOK},
		{"1000 ranges", "bytes=" + many, 0, n, http.StatusOK},
		{"another unit", "items=0-5", 0, n, http.StatusOK},
		{"garbage unit", "b%n@n@s=0-5", 0, n, http.StatusOK},
	}
}

func assertRange(t *testing.T, r reply, c rangeCase, content []byte) {
	t.Helper()
	assert.NoError(t, r.err)
	if !assert.Equal(t, c.status, r.StatusCode, "%s: %.200q", c.header, r.content) {
		return
	}
	assert.Empty(t, r.TransferEncoding, "nothing is chunked")
	assert.Empty(t, r.Header.Values("Content-Encoding"))
	total := strconv.Itoa(len(content))
	switch c.status {
	case http.StatusRequestedRangeNotSatisfiable:
		assert.Equal(t, "bytes */"+total, r.Header.Get("Content-Range"))
		code, _ := ociError(t, r)
		assert.NotEmpty(t, code)
		return
	case http.StatusPartialContent:
		assert.Equal(t, fmt.Sprintf("bytes %d-%d/%s", c.from, c.to-1, total), r.Header.Get("Content-Range"))
	default:
		assert.Empty(t, r.Header.Values("Content-Range"))
	}
	assert.Equal(t, octetStream, r.Header.Get("Content-Type"))
	assert.Equal(t, int64(c.to-c.from), r.ContentLength)
	assertSame(t, content[c.from:c.to], r.content)
}

// C17, stored.
func TestRangeOfAStoredBlob(t *testing.T) {
	for _, size := range []int64{5000, 2<<20 + 3} {
		t.Run(strconv.FormatInt(size, 10), func(t *testing.T) {
			f := newFace(t, pullthroughtest.Config{}, nil)
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: size})
			f.up.Push("a", "v1", img)
			path, content := blobPath("a", img.Layers[0].Digest), blobContent(t, img.Layers[0])
			require.Equal(t, 200, f.get(t, path).StatusCode)
			f.settled(t)
			f.up.Reset()
			for _, c := range rangeCases(len(content)) {
				t.Run(c.name, func(t *testing.T) {
					r := f.get(t, path, "Range", c.header)
					assertRange(t, r, c, content)
					if c.status < 300 {
						assert.Equal(t, etag(img.Layers[0].Digest), r.Header.Get("ETag"))
						assert.Equal(t, img.Layers[0].Digest.String(), r.Header.Get("Docker-Content-Digest"))
						assert.Equal(t, "registry/2.0", r.Header.Get("Docker-Distribution-Api-Version"))
					}
				})
			}
			assert.Empty(t, f.up.Log(), "a warm pull asks nobody")
		})
	}
}

// RFC 9110, section 14.2, lets a server ignore a header like these or refuse
// the range; it must not answer other bytes.
func TestOddRangeOfAStoredBlob(t *testing.T) {
	f := newFace(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 5000})
	f.up.Push("a", "v1", img)
	path, content := blobPath("a", img.Layers[0].Digest), blobContent(t, img.Layers[0])
	require.Equal(t, 200, f.get(t, path).StatusCode)
	f.settled(t)
	f.up.Reset()
	for _, header := range []string{
		"bytes=--1", "bytes=", "bytes=-", "bytes=5-2", "bytes=a-b", "bytes=-0", "bytes=0", "bytes", "bytes=+1-+2", "bytes= ", "bytes=,", "",
		"bytes=1-2-3", "bytes=0x0-0x1", "bytes=99999999999999999999-", "bytes=-99999999999999999999", "bytes=0-99999999999999999999",
		"bytes=９-９", "BYTES=0-0", "0-5", "bananas",
	} {
		t.Run(header, func(t *testing.T) {
			r := f.get(t, path, "Range", header)
			c := rangeCase{header: header, to: len(content), status: r.StatusCode}
			switch r.StatusCode {
			case http.StatusOK:
			case http.StatusRequestedRangeNotSatisfiable: // Content-Range is for ranges that could be read
				code, _ := ociError(t, r)
				assert.NotEmpty(t, code)
				return
			case http.StatusPartialContent: // where the header can be read as a range at all
				var first, last, total int
				_, err := fmt.Sscanf(r.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &total)
				require.NoError(t, err)
				c.from, c.to = first, last+1
			default:
				assert.Fail(t, "no answer that RFC 9110 knows", "%d", r.StatusCode)
				return
			}
			assertRange(t, r, c, content)
		})
	}
	assert.Empty(t, f.up.Log())
}

// RFC 9110, section 14.1.1: an end behind the end means the end, however large
// the number is.
func TestRangeWithAHugeEndIsTheRest(t *testing.T) {
	f := newFace(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 5000})
	f.up.Push("a", "v1", img)
	path, content := blobPath("a", img.Layers[0].Digest), blobContent(t, img.Layers[0])
	require.Equal(t, 200, f.get(t, path).StatusCode)
	f.settled(t)
	f.up.Reset()
	for _, end := range []string{"9223372036854775807", "9223372036854775806"} {
		r := f.get(t, path, "Range", "bytes=10-"+end)
		assertRange(t, r, rangeCase{header: end, from: 10, to: len(content), status: http.StatusPartialContent}, content)
	}
	assert.Empty(t, f.up.Log())
}

func TestRangeOfAnEmptyBlob(t *testing.T) {
	f := newFace(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: -1})
	f.up.Push("a", "v1", img)
	f.up.Reset()
	path := blobPath("a", img.Layers[0].Digest)
	for range 2 { // cold, warm
		r := f.get(t, path, "Range", "bytes=0-0")
		assert.Contains(t, []int{http.StatusOK, http.StatusRequestedRangeNotSatisfiable}, r.StatusCode)
		if r.StatusCode == http.StatusRequestedRangeNotSatisfiable {
			ociError(t, r)
		}
		f.settled(t)
	}
	assert.LessOrEqual(t, len(f.up.Log()), 1, "upstream: %s", f.up.Log())
}

// C19.
func TestIfRange(t *testing.T) {
	f := newFace(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 5000, Layers: 2})
	f.up.Push("a", "v1", img)
	path, content := blobPath("a", img.Layers[0].Digest), blobContent(t, img.Layers[0])
	require.Equal(t, 200, f.get(t, path).StatusCode)
	f.settled(t)
	f.up.Reset()
	part := rangeCase{header: "bytes=10-19", from: 10, to: 20, status: http.StatusPartialContent}
	all := rangeCase{header: "bytes=10-19", to: len(content), status: http.StatusOK}
	for value, want := range map[string]rangeCase{
		etag(img.Layers[0].Digest):        part,
		etag(img.Layers[1].Digest):        all,
		"W/" + etag(img.Layers[0].Digest): all, // only strong validators count here
		"Mon, 02 Jan 2006 15:04:05 GMT":   all,
		`"`:                               all,
	} {
		t.Run(value, func(t *testing.T) {
			assertRange(t, f.get(t, path, "Range", "bytes=10-19", "If-Range", value), want, content)
		})
	}
	assert.Empty(t, f.up.Log())
}

func TestRangeOfAColdBlob(t *testing.T) {
	for _, size := range []int64{5000, 2<<20 + 3} {
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: size})
		path, content := blobPath("a", img.Layers[0].Digest), blobContent(t, img.Layers[0])
		for _, c := range rangeCases(len(content)) {
			t.Run(fmt.Sprintf("%s of %d", c.name, size), func(t *testing.T) {
				f := newFace(t, pullthroughtest.Config{}, nil)
				f.up.Push("a", "v1", img)
				f.up.Reset()
				assertRange(t, f.get(t, path, "Range", c.header), c, content)
				f.settled(t)
				assert.Equal(t, []string{upstreamGet(path, 200)}, f.up.Log(), "the range is cut from the one whole download")
				assert.Empty(t, f.up.Requests()[0].Range)

				f.up.Reset()
				r := f.get(t, path)
				assertContent(t, r, img.Layers[0].Digest, octetStream, len(content))
				assertSame(t, content, r.content)
				assert.Empty(t, f.up.Log(), "the whole blob was stored")
			})
		}
	}
}

// stalled is a face whose upstream holds a blob of 4 MiB after 2 MiB, with
// one client that waits for it.
type stalled struct {
	*face
	path    string
	content []byte
	blob    *pullthroughtest.Blob
	release func() // may be called twice
	leader  chan reply
}

func newStalled(t *testing.T, fault pullthroughtest.Fault) *stalled {
	t.Helper()
	s := &stalled{face: newFace(t, pullthroughtest.Config{}, nil), leader: make(chan reply, 1)}
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 4 << 20})
	s.up.Push("a", "v1", img)
	s.blob = img.Layers[0]
	s.path, s.content = blobPath("a", s.blob.Digest), blobContent(t, s.blob)
	ctx, cancel := context.WithCancel(context.Background())
	s.release = cancel
	t.Cleanup(cancel)
	fault.Match, fault.Stall, fault.StallAfter = "GET /v2/a/blobs/*", ctx.Done(), new(int64(2<<20))
	s.up.Fault(fault)
	s.up.Reset()

	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.srv.URL+s.path, nil)
	require.NoError(t, err)
	resp, err := s.srv.Client().Transport.RoundTrip(r)
	require.NoError(t, err, "the header does not wait for the end of the download")
	go func() {
		content, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		s.leader <- reply{resp, content, err}
	}()
	return s
}

func (s *stalled) waitLeader(t *testing.T) reply {
	t.Helper()
	select {
	case r := <-s.leader:
		return r
	case <-time.After(20 * time.Second):
		require.Fail(t, "the first client still waits")
		return reply{}
	}
}

func TestRangeOfARunningBlob(t *testing.T) {
	s := newStalled(t, pullthroughtest.Fault{})
	n := len(s.content)
	first := rangeCase{header: "bytes=0-99", to: 100, status: http.StatusPartialContent}
	assertRange(t, s.get(t, s.path, "Range", first.header), first, s.content) // while the rest is not there

	assertNotModified(t, s.get(t, s.path, "If-None-Match", etag(s.blob.Digest)), s.blob.Digest)
	behind := rangeCase{header: fmt.Sprintf("bytes=%d-", n), status: http.StatusRequestedRangeNotSatisfiable}
	assertRange(t, s.get(t, s.path, "Range", behind.header), behind, s.content)

	type result struct {
		c rangeCase
		r reply
	}
	cases := rangeCases(n)
	results := make(chan result, len(cases))
	for _, c := range cases {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.srv.URL+s.path, nil)
		require.NoError(t, err)
		r.Header.Set("Range", c.header)
		go func() {
			resp, err := s.srv.Client().Transport.RoundTrip(r)
			if !assert.NoError(t, err) {
				results <- result{}
				return
			}
			content, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			results <- result{c, reply{resp, content, err}}
		}()
	}
	s.release()
	for range cases {
		res := <-results
		require.NotNil(t, res.r.Response)
		assertRange(t, res.r, res.c, s.content)
	}
	leader := s.waitLeader(t)
	assert.NoError(t, leader.err)
	assertSame(t, s.content, leader.content)
	s.settled(t)
	assert.Equal(t, []string{upstreamGet(s.path, 200)}, s.up.Log(), "everybody reads the one download")
}

func TestHeadOfARunningBlobReadsTheOneDownload(t *testing.T) {
	s := newStalled(t, pullthroughtest.Fault{})
	for range 2 {
		r := s.ask(t, http.MethodHead, s.path)
		assertContent(t, r, s.blob.Digest, octetStream, len(s.content))
		assert.Empty(t, r.content)
	}
	s.release()
	assertSame(t, s.content, s.waitLeader(t).content)
	s.settled(t)
	assert.Equal(t, []string{upstreamGet(s.path, 200)}, s.up.Log(), "its size is known already")
}

// A part from a running download may be wrong, but never a part of the last
// 64 KiB: a client that resumes would put it behind what it has.
func TestTheTailOfAWrongBlobIsNotAnswered(t *testing.T) {
	s := newStalled(t, pullthroughtest.Fault{Flip: new(int64(100))})
	tail := make(chan reply, 1)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.srv.URL+s.path, nil)
	require.NoError(t, err)
	r.Header.Set("Range", "bytes=-1000")
	go func() {
		resp, err := s.srv.Client().Transport.RoundTrip(r)
		if err != nil {
			tail <- reply{err: err}
			return
		}
		content, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		tail <- reply{resp, content, err}
	}()
	s.release()
	got := <-tail
	if got.err == nil {
		assert.GreaterOrEqual(t, got.StatusCode, 500)
		assert.False(t, bytes.Equal(got.content, s.content[len(s.content)-1000:]))
	} else {
		assert.Empty(t, got.content, "no byte of the tail leaves before the digest was right")
	}
	leader := s.waitLeader(t)
	assert.Error(t, leader.err)
	assert.Less(t, len(leader.content), len(s.content))
	s.settled(t)
	_, err = s.store.Blob(t.Context(), repo("a"), s.blob.Digest)
	assert.Error(t, err)
	assert.Zero(t, s.up.Count("HEAD *"))
	assert.NotZero(t, s.up.Count("GET /v2/a/blobs/* 200"))
}
