package testkit

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// RangeCase is a Range header and what RFC 9110, section 14, makes of it.
type RangeCase struct {
	Name, Header string
	From, To     int // of the bytes wanted, to excluded
	Status       int
	Parts        []RangeCase // several ranges in one answer; nil: there is one, or all
}

// RangeCases are of an object of n bytes, n > 1000.
func RangeCases(n int) []RangeCase {
	many := strings.TrimSuffix(strings.Repeat("0-0,", 1000), ",")
	part := http.StatusPartialContent
	cases := []RangeCase{
		{"first byte", "bytes=0-0", 0, 1, part, nil},
		{"middle", "bytes=300-399", 300, 400, part, nil},
		{"last byte", fmt.Sprintf("bytes=%d-%[1]d", n-1), n - 1, n, part, nil},
		{"suffix", "bytes=-7", n - 7, n, part, nil},
		{"suffix longer than all", fmt.Sprintf("bytes=-%d", n+5), 0, n, part, nil},
		{"open", fmt.Sprintf("bytes=%d-", n-10), n - 10, n, part, nil},
		{"all of it", "bytes=0-", 0, n, part, nil},
		{"end behind the end", fmt.Sprintf("bytes=%d-%d", n-10, n+10), n - 10, n, part, nil},
		{"behind the end", fmt.Sprintf("bytes=%d-", n), 0, 0, http.StatusRequestedRangeNotSatisfiable, nil},
		{"far behind the end", "bytes=9000000000000-9000000000001", 0, 0, http.StatusRequestedRangeNotSatisfiable, nil},
		{"overlapping ranges", "bytes=0-100,50-150,60-", 0, n, http.StatusOK, nil},
		{"1000 ranges", "bytes=" + many, 0, n, http.StatusOK, nil},
		{"another unit", "items=0-5", 0, n, http.StatusOK, nil},
		{"garbage unit", "b%n@n@s=0-5", 0, n, http.StatusOK, nil},
		{"ranges that go back", "bytes=5-6,0-1", 0, n, http.StatusOK, nil},
		{"17 ranges", "bytes=" + ascending(17), 0, n, http.StatusOK, nil},
		{"two ranges, one behind the end", fmt.Sprintf("bytes=0-1,%d-", n), 0, n, http.StatusOK, nil},
	}
	sixteen := make([]RangeCase, 16)
	for i := range sixteen {
		sixteen[i] = RangeCase{From: 20 * i, To: 20*i + 3}
	}
	return append(cases,
		RangeCase{"two ranges", "bytes=0-1,5-6", 0, 0, part, []RangeCase{{From: 0, To: 2}, {From: 5, To: 7}}},
		RangeCase{"three of all kinds", fmt.Sprintf("bytes=7-9, 300-399,-%d", n-900), 0, 0, part, []RangeCase{{From: 7, To: 10}, {From: 300, To: 400}, {From: 900, To: n}}},
		RangeCase{"16 ranges", "bytes=" + ascending(16), 0, 0, part, sixteen},
	)
}

// ascending are n ranges of three bytes, each 20 bytes behind the one before.
func ascending(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("%d-%d", 20*i, 20*i+2))
	}
	return strings.Join(all, ",")
}

// AssertRange checks the answer to a Range of the content.
func AssertRange(t *testing.T, r Reply, c RangeCase, content []byte) {
	t.Helper()
	assert.NoError(t, r.Err)
	if !assert.Equal(t, c.Status, r.StatusCode, "%s: %.200q", c.Header, r.Content) {
		return
	}
	assert.Empty(t, r.TransferEncoding, "nothing is chunked")
	assert.Empty(t, r.Header.Values("Content-Encoding"))
	if c.Parts != nil {
		assertParts(t, r, c, content)
		return
	}
	total := strconv.Itoa(len(content))
	switch c.Status {
	case http.StatusRequestedRangeNotSatisfiable:
		assert.Equal(t, "bytes */"+total, r.Header.Get("Content-Range"))
		code, _ := OCIError(t, r)
		assert.NotEmpty(t, code)
		return
	case http.StatusPartialContent:
		assert.Equal(t, fmt.Sprintf("bytes %d-%d/%s", c.From, c.To-1, total), r.Header.Get("Content-Range"))
	default:
		assert.Empty(t, r.Header.Values("Content-Range"))
	}
	assert.Equal(t, OctetStream, r.Header.Get("Content-Type"))
	assert.Equal(t, int64(c.To-c.From), r.ContentLength)
	AssertSame(t, content[c.From:c.To], r.Content)
}

// assertParts checks an answer of several parts (RFC 9110, section 14.6).
func assertParts(t *testing.T, r Reply, c RangeCase, content []byte) {
	t.Helper()
	assert.Empty(t, r.Header.Values("Content-Range"))
	assert.Equal(t, int64(len(r.Content)), r.ContentLength)
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	require.NoError(t, err)
	assert.Equal(t, "multipart/byteranges", kind)
	parts := multipart.NewReader(bytes.NewReader(r.Content), params["boundary"])
	for _, want := range c.Parts {
		p, err := parts.NextPart()
		require.NoError(t, err)
		assert.Equal(t, fmt.Sprintf("bytes %d-%d/%d", want.From, want.To-1, len(content)), p.Header.Get("Content-Range"))
		assert.Equal(t, OctetStream, p.Header.Get("Content-Type"))
		got, err := io.ReadAll(p)
		require.NoError(t, err)
		AssertSame(t, content[want.From:want.To], got)
	}
	_, err = parts.NextPart()
	assert.Equal(t, io.EOF, err)
}

// Stalled is a face whose upstream holds a blob of 4 MiB after 2 MiB, with
// one client that waits for it.
type Stalled struct {
	*Face
	Path    string
	Content []byte
	Blob    *pullthroughtest.Blob
	Release func() // may be called twice
	leader  chan Reply
}

// NewStalled returns one whose fault is on top of the stall.
func NewStalled(t *testing.T, fault pullthroughtest.Fault) *Stalled {
	t.Helper()
	s := &Stalled{Face: NewFace(t, pullthroughtest.Config{}, nil), leader: make(chan Reply, 1)}
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 4 << 20})
	s.Up.Push("a", "v1", img)
	s.Blob = img.Layers[0]
	s.Path, s.Content = BlobPath("a", s.Blob.Digest), BlobContent(t, s.Blob)
	ctx, cancel := context.WithCancel(context.Background())
	s.Release = cancel
	t.Cleanup(cancel)
	fault.Match, fault.Stall, fault.StallAfter = "GET /v2/a/blobs/*", ctx.Done(), new(int64(2<<20))
	s.Up.Fault(fault)
	s.Up.Reset()

	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.Server.URL+s.Path, nil)
	require.NoError(t, err)
	resp, err := s.Server.Client().Transport.RoundTrip(r)
	require.NoError(t, err, "the header does not wait for the end of the download")
	go func() {
		content, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		s.leader <- Reply{resp, content, err}
	}()
	return s
}

// WaitLeader returns what the first client got.
func (s *Stalled) WaitLeader(t *testing.T) Reply {
	t.Helper()
	select {
	case r := <-s.leader:
		return r
	case <-time.After(20 * time.Second):
		require.Fail(t, "the first client still waits")
		return Reply{}
	}
}
