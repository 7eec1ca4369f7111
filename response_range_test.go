package pullthrough_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestRangeOfAStoredBlob(t *testing.T) {
	for _, size := range []int64{5000, 2<<20 + 3} {
		t.Run(strconv.FormatInt(size, 10), func(t *testing.T) {
			f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: size})
			f.Up.Push("a", "v1", img)
			path, content := testkit.BlobPath("a", img.Layers[0].Digest), testkit.BlobContent(t, img.Layers[0])
			require.Equal(t, 200, f.Get(t, path).StatusCode)
			f.Settled(t)
			f.Up.Reset()
			for _, c := range testkit.RangeCases(len(content)) {
				t.Run(c.Name, func(t *testing.T) {
					r := f.Get(t, path, "Range", c.Header)
					testkit.AssertRange(t, r, c, content)
					if c.Status < 300 {
						assert.Equal(t, testkit.ETag(img.Layers[0].Digest), r.Header.Get("ETag"))
						assert.Equal(t, img.Layers[0].Digest.String(), r.Header.Get("Docker-Content-Digest"))
						assert.Equal(t, "registry/2.0", r.Header.Get("Docker-Distribution-Api-Version"))
					}
				})
			}
			assert.Empty(t, f.Up.Log(), "a warm pull asks nobody")
		})
	}
}

// RFC 9110, section 14.2, lets a server ignore a header like these or refuse
// the range; it must not answer other bytes.
func TestOddRangeOfAStoredBlob(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 5000})
	f.Up.Push("a", "v1", img)
	path, content := testkit.BlobPath("a", img.Layers[0].Digest), testkit.BlobContent(t, img.Layers[0])
	require.Equal(t, 200, f.Get(t, path).StatusCode)
	f.Settled(t)
	f.Up.Reset()
	for _, header := range []string{
		"bytes=--1", "bytes=", "bytes=-", "bytes=5-2", "bytes=a-b", "bytes=-0", "bytes=0", "bytes", "bytes=+1-+2", "bytes= ", "bytes=,", "",
		"bytes=1-2-3", "bytes=0x0-0x1", "bytes=99999999999999999999-", "bytes=-99999999999999999999", "bytes=0-99999999999999999999",
		"bytes=９-９", "BYTES=0-0", "0-5", "bananas",
	} {
		t.Run(header, func(t *testing.T) {
			r := f.Get(t, path, "Range", header)
			c := testkit.RangeCase{Header: header, To: len(content), Status: r.StatusCode}
			switch r.StatusCode {
			case http.StatusOK:
			case http.StatusRequestedRangeNotSatisfiable: // Content-Range is for ranges that could be read
				code, _ := testkit.OCIError(t, r)
				assert.NotEmpty(t, code)
				return
			case http.StatusPartialContent: // where the header can be read as a range at all
				var first, last, total int
				_, err := fmt.Sscanf(r.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &total)
				require.NoError(t, err)
				c.From, c.To = first, last+1
			default:
				assert.Fail(t, "no answer that RFC 9110 knows", "%d", r.StatusCode)
				return
			}
			testkit.AssertRange(t, r, c, content)
		})
	}
	assert.Empty(t, f.Up.Log())
}

// RFC 9110, section 14.1.1: an end behind the end means the end, however large
// the number is.
func TestRangeWithAHugeEndIsTheRest(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 5000})
	f.Up.Push("a", "v1", img)
	path, content := testkit.BlobPath("a", img.Layers[0].Digest), testkit.BlobContent(t, img.Layers[0])
	require.Equal(t, 200, f.Get(t, path).StatusCode)
	f.Settled(t)
	f.Up.Reset()
	for _, end := range []string{"9223372036854775807", "9223372036854775806"} {
		r := f.Get(t, path, "Range", "bytes=10-"+end)
		testkit.AssertRange(t, r, testkit.RangeCase{Header: end, From: 10, To: len(content), Status: http.StatusPartialContent}, content)
	}
	assert.Empty(t, f.Up.Log())
}

func TestRangeOfAnEmptyBlob(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: -1})
	f.Up.Push("a", "v1", img)
	f.Up.Reset()
	path := testkit.BlobPath("a", img.Layers[0].Digest)
	for range 2 { // cold, warm
		r := f.Get(t, path, "Range", "bytes=0-0")
		assert.Contains(t, []int{http.StatusOK, http.StatusRequestedRangeNotSatisfiable}, r.StatusCode)
		if r.StatusCode == http.StatusRequestedRangeNotSatisfiable {
			testkit.OCIError(t, r)
		}
		f.Settled(t)
	}
	assert.LessOrEqual(t, len(f.Up.Log()), 1, "upstream: %s", f.Up.Log())
}

func TestIfRange(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 5000, Layers: 2})
	f.Up.Push("a", "v1", img)
	path, content := testkit.BlobPath("a", img.Layers[0].Digest), testkit.BlobContent(t, img.Layers[0])
	require.Equal(t, 200, f.Get(t, path).StatusCode)
	f.Settled(t)
	f.Up.Reset()
	part := testkit.RangeCase{Header: "bytes=10-19", From: 10, To: 20, Status: http.StatusPartialContent}
	all := testkit.RangeCase{Header: "bytes=10-19", To: len(content), Status: http.StatusOK}
	for value, want := range map[string]testkit.RangeCase{
		testkit.ETag(img.Layers[0].Digest):        part,
		testkit.ETag(img.Layers[1].Digest):        all,
		"W/" + testkit.ETag(img.Layers[0].Digest): all, // only strong validators count here
		"Mon, 02 Jan 2006 15:04:05 GMT":           all,
		`"`:                                       all,
	} {
		t.Run(value, func(t *testing.T) {
			testkit.AssertRange(t, f.Get(t, path, "Range", "bytes=10-19", "If-Range", value), want, content)
		})
	}
	assert.Empty(t, f.Up.Log())
}

func TestRangeOfAColdBlob(t *testing.T) {
	for _, size := range []int64{5000, 2<<20 + 3} {
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: size})
		path, content := testkit.BlobPath("a", img.Layers[0].Digest), testkit.BlobContent(t, img.Layers[0])
		for _, c := range testkit.RangeCases(len(content)) {
			t.Run(fmt.Sprintf("%s of %d", c.Name, size), func(t *testing.T) {
				f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
				f.Up.Push("a", "v1", img)
				f.Up.Reset()
				testkit.AssertRange(t, f.Get(t, path, "Range", c.Header), c, content)
				f.Settled(t)
				windows := f.Up.Count(testkit.UpstreamGet(path, 206))
				if c.From > 1<<20 {
					assert.LessOrEqual(t, windows, 1, "what is far ahead may be fetched at once")
				} else {
					assert.Zero(t, windows, "the range is cut from the one whole download")
				}
				assert.Equal(t, 1, f.Up.Count(testkit.UpstreamGet(path, 200)))
				behind := f.Up.Count(testkit.UpstreamGet(path, 416)) // asked for while nobody knows the size
				assert.LessOrEqual(t, behind, 1)
				assert.Len(t, f.Up.Log(), 1+windows+behind)

				f.Up.Reset()
				r := f.Get(t, path)
				testkit.AssertContent(t, r, img.Layers[0].Digest, testkit.OctetStream, len(content))
				testkit.AssertSame(t, content, r.Content)
				assert.Empty(t, f.Up.Log(), "the whole blob was stored")
			})
		}
	}
}

func TestRangeOfARunningBlob(t *testing.T) {
	s := testkit.NewStalled(t, pullthroughtest.Fault{})
	n := len(s.Content)
	first := testkit.RangeCase{Header: "bytes=0-99", To: 100, Status: http.StatusPartialContent}
	testkit.AssertRange(t, s.Get(t, s.Path, "Range", first.Header), first, s.Content) // while the rest is not there

	assertNotModified(t, s.Get(t, s.Path, "If-None-Match", testkit.ETag(s.Blob.Digest)), s.Blob.Digest)
	behind := testkit.RangeCase{Header: fmt.Sprintf("bytes=%d-", n), Status: http.StatusRequestedRangeNotSatisfiable}
	testkit.AssertRange(t, s.Get(t, s.Path, "Range", behind.Header), behind, s.Content)

	type result struct {
		c testkit.RangeCase
		r testkit.Reply
	}
	cases := testkit.RangeCases(n)
	results := make(chan result, len(cases))
	for _, c := range cases {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.Server.URL+s.Path, nil)
		require.NoError(t, err)
		r.Header.Set("Range", c.Header)
		go func() {
			resp, err := s.Server.Client().Transport.RoundTrip(r)
			if !assert.NoError(t, err) {
				results <- result{}
				return
			}
			content, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			results <- result{c, testkit.Reply{Response: resp, Content: content, Err: err}}
		}()
	}
	s.Release()
	for range cases {
		res := <-results
		require.NotNil(t, res.r.Response)
		testkit.AssertRange(t, res.r, res.c, s.Content)
	}
	leader := s.WaitLeader(t)
	assert.NoError(t, leader.Err)
	testkit.AssertSame(t, s.Content, leader.Content)
	s.Settled(t)
	assert.Equal(t, 1, s.Up.Count(testkit.UpstreamGet(s.Path, 200)), "everybody reads the one download")
	assert.Len(t, s.Up.Log(), 1+s.Up.Count(testkit.UpstreamGet(s.Path, 206)))
}

// A client that reads a layer lazily begins at its end, and does not wait for the rest.
func TestRangeFarAheadOfARunningBlob(t *testing.T) {
	s := testkit.NewStalled(t, pullthroughtest.Fault{})
	n := len(s.Content)
	for _, c := range []testkit.RangeCase{
		{Header: "bytes=3900000-3900099", From: 3_900_000, To: 3_900_100, Status: http.StatusPartialContent},
		{Header: "bytes=-51", From: n - 51, To: n, Status: http.StatusPartialContent},
		{Header: "bytes=0-9,3900000-3900099,-51", Status: http.StatusPartialContent, Parts: []testkit.RangeCase{{From: 0, To: 10}, {From: 3_900_000, To: 3_900_100}, {From: n - 51, To: n}}},
	} {
		testkit.AssertRange(t, s.Get(t, s.Path, "Range", c.Header), c, s.Content)
	}
	s.Release()
	testkit.AssertSame(t, s.Content, s.WaitLeader(t).Content)
	s.Settled(t)
	assert.Equal(t, []string{testkit.UpstreamGet(s.Path, 200), testkit.UpstreamGet(s.Path, 206)}, s.Up.Log())
	assert.Equal(t, fmt.Sprintf("bytes=3900000-%d", n-1), s.Up.Requests()[1].Range)
}

func TestHeadOfARunningBlobReadsTheOneDownload(t *testing.T) {
	s := testkit.NewStalled(t, pullthroughtest.Fault{})
	for range 2 {
		r := s.Ask(t, http.MethodHead, s.Path)
		testkit.AssertContent(t, r, s.Blob.Digest, testkit.OctetStream, len(s.Content))
		assert.Empty(t, r.Content)
	}
	s.Release()
	testkit.AssertSame(t, s.Content, s.WaitLeader(t).Content)
	s.Settled(t)
	assert.Equal(t, []string{testkit.UpstreamGet(s.Path, 200)}, s.Up.Log(), "its size is known already")
}

// A part from a running download may be wrong, but an open part never reaches into the
// last 64 KiB: a client that resumes would put it behind what it has.
func TestTheTailOfAWrongBlobIsNotAnswered(t *testing.T) {
	s := testkit.NewStalled(t, pullthroughtest.Fault{Flip: new(int64(100))})
	tail := make(chan testkit.Reply, 1)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.Server.URL+s.Path, nil)
	require.NoError(t, err)
	r.Header.Set("Range", fmt.Sprintf("bytes=%d-", len(s.Content)-1000))
	go func() {
		resp, err := s.Server.Client().Transport.RoundTrip(r)
		if err != nil {
			tail <- testkit.Reply{Err: err}
			return
		}
		content, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		tail <- testkit.Reply{Response: resp, Content: content, Err: err}
	}()
	s.Release()
	got := <-tail
	if got.Err == nil {
		assert.GreaterOrEqual(t, got.StatusCode, 500)
		assert.False(t, bytes.Equal(got.Content, s.Content[len(s.Content)-1000:]))
	} else {
		assert.Empty(t, got.Content, "no byte of the tail leaves before the digest was right")
	}
	leader := s.WaitLeader(t)
	assert.Error(t, leader.Err)
	assert.Less(t, len(leader.Content), len(s.Content))
	s.Settled(t)
	_, err = s.Mem.Blob(t.Context(), testkit.Repo("a"), s.Blob.Digest)
	assert.Error(t, err)
	assert.Zero(t, s.Up.Count("HEAD *"))
	assert.NotZero(t, s.Up.Count("GET /v2/a/blobs/* 200"))
}
