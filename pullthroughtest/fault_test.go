package pullthroughtest_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// layer is the content of small's first layer, 1 KiB.
func layer(t *testing.T) []byte { return content(t, small.Layers[0]) }

// faulty is a registry of small with one fault.
func faulty(t *testing.T, f pullthroughtest.Fault) *pullthroughtest.Upstream {
	t.Helper()
	up := newUpstream(t, pullthroughtest.Config{})
	up.Fault(f)
	return up
}

// raw is the answer to a GET as it comes over the wire, until the connection closes.
func raw(t *testing.T, up *pullthroughtest.Upstream, path string) string {
	t.Helper()
	conn, err := net.Dial("tcp", up.Host())
	require.NoError(t, err)
	defer func() { assert.NoError(t, conn.Close()) }()
	_, err = io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	require.NoError(t, err)
	data, err := io.ReadAll(conn)
	require.NoError(t, err)
	return string(data)
}

// noting is a test that ends when it is told to, and whose notes are looked at.
type noting struct {
	testing.TB
	notes string
	end   func()
}

func (n *noting) Helper()          {}
func (n *noting) Cleanup(f func()) { n.end = f }
func (n *noting) Logf(format string, args ...any) {
	n.notes += fmt.Sprintf(format, args...) + "\n"
}

// TestAFaultThatNobodyMeetsIsTold: its pattern is wrong, perhaps, and the test proves nothing.
func TestAFaultThatNobodyMeetsIsTold(t *testing.T) {
	n := &noting{TB: t}
	up := pullthroughtest.New(n, pullthroughtest.Config{})
	up.Fault(pullthroughtest.Fault{Match: "GET /v2/", Status: 503})
	up.Fault(pullthroughtest.Fault{Match: "GET /v2/", Skip: 2, Status: 503})
	up.Fault(pullthroughtest.Fault{Match: "GET /v2/mistyped/*", Status: 503})
	up.Fault(pullthroughtest.Fault{Match: "GET /v2/healed/*", Status: 503})()
	get(t, up, "/v2/")
	n.end()
	assert.Equal(t, []string{"GET /v2/ 503"}, up.Log())
	assert.Equal(t, 1, strings.Count(n.notes, `"GET /v2/": compare it with Upstream.Log`), n.notes)
	assert.Contains(t, n.notes, `no request has met the fault of "GET /v2/mistyped/*"`)
	assert.Equal(t, 2, strings.Count(n.notes, "\n"))
}

func TestFaultsApplyInOrder(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{})
	var got []int
	script := func(n int) []int {
		got = nil
		for range n {
			got = append(got, get(t, up, layerPath).StatusCode)
		}
		return got
	}
	up.Fault(pullthroughtest.Fault{Match: "HEAD *", Status: 500})
	up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/*", Times: 2, Status: 503})
	up.Fault(pullthroughtest.Fault{Skip: 1, Times: 1, Status: 429})
	heal := up.Fault(pullthroughtest.Fault{Match: "* 200", Skip: 2, Status: 404})
	assert.Equal(t, []int{503, 503, 200, 429, 200, 404, 404}, script(7))
	assert.Equal(t, []string{"GET " + layerPath + " 503"}, up.Log()[:1], "the log has what was answered")
	heal()
	heal()
	assert.Equal(t, []int{200}, script(1))
	up.Fault(pullthroughtest.Fault{Status: 500})
	up.Fault(pullthroughtest.Fault{Status: 501})
	assert.Equal(t, []int{500}, script(1))
	up.Heal()
	assert.Equal(t, []int{200}, script(1))
}

func TestFaultsCanLeaveTheChallengeAlone(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/* 200", Times: 1, Status: 503})
	assert.Equal(t, 401, get(t, up, layerPath).StatusCode)
	authorization := "Bearer " + up.IssueToken(0, pullScope)
	assert.Equal(t, 503, get(t, up, layerPath, "Authorization", authorization).StatusCode)
	assert.Equal(t, 200, get(t, up, layerPath, "Authorization", authorization).StatusCode)
}

func TestFaultyStatus(t *testing.T) {
	for _, c := range []struct {
		name   string
		f      pullthroughtest.Fault
		status int
		body   string
		typ    string
	}{
		{"an error document by itself", pullthroughtest.Fault{Status: 429}, 429,
			`{"errors":[{"code":"TOOMANYREQUESTS","message":"injected fault"}]}`, "application/json"},
		{"a body of one's own", pullthroughtest.Fault{Status: 502, Body: []byte("<html>oops"),
			Header: http.Header{"content-type": {"text/html"}}}, 502, "<html>oops", "text/html"},
		{"no body", pullthroughtest.Fault{Status: 500, Body: []byte{}}, 500, "", ""},
		{"the real body", pullthroughtest.Fault{Status: 203}, 203, string(layer(t)), "application/octet-stream"},
		{"another body", pullthroughtest.Fault{Body: []byte("other")}, 200, "other", "application/octet-stream"},
		{"not modified", pullthroughtest.Fault{Status: 304}, 304, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			up := faulty(t, c.f)
			resp := get(t, up, layerPath)
			assert.Equal(t, c.status, resp.StatusCode)
			assert.Equal(t, c.body, string(body(t, resp)))
			assert.Equal(t, c.typ, resp.Header.Get("Content-Type"))
			assert.Equal(t, c.status < 300, resp.Header.Get("Docker-Content-Digest") != "")
			assert.Equal(t, int64(len(c.body)), up.Requests()[0].Bytes)
			head := do(t, up, request(t, http.MethodHead, up.URL+layerPath))
			assert.Equal(t, c.status, head.StatusCode)
		})
	}
}

func TestFaulty401HasTheChallenge(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	up.Fault(pullthroughtest.Fault{Match: "* 200", Status: 401})
	resp := get(t, up, layerPath, "Authorization", "Bearer "+up.IssueToken(0, pullScope))
	assert.Equal(t, 401, resp.StatusCode)
	assert.Equal(t, get(t, up, layerPath).Header["Www-Authenticate"], resp.Header["Www-Authenticate"])
}

func TestFaultyHeaders(t *testing.T) {
	up := faulty(t, pullthroughtest.Fault{Header: http.Header{
		"Docker-Content-Digest": {""},
		"etag":                  nil,
		"Content-Type":          {},
		"X-Two":                 {"1", "2"},
	}})
	resp := get(t, up, manifestPath)
	assert.Equal(t, string(small.Content), string(body(t, resp)))
	assert.NotContains(t, resp.Header, "Docker-Content-Digest")
	assert.NotContains(t, resp.Header, "Etag")
	assert.NotContains(t, resp.Header, "Content-Type")
	assert.Equal(t, []string{"1", "2"}, resp.Header["X-Two"])
	assert.Equal(t, int64(len(small.Content)), resp.ContentLength)
}

func TestRedirect(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{})
	cdn := newUpstream(t, pullthroughtest.Config{})
	up.Fault(pullthroughtest.Fault{Match: "* /v2/*/blobs/*", Times: 1, Redirect: cdn.URL + "{path}?sig=1"})
	up.Fault(pullthroughtest.Fault{Match: "* /v2/*/blobs/*", Redirect: "/x", Status: 302})
	resp, err := up.Client().Get(up.URL + layerPath)
	require.NoError(t, err)
	assert.Equal(t, layer(t), body(t, resp))
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, []string{"GET " + layerPath + " 307"}, up.Log())
	assert.Equal(t, "sig=1", cdn.Requests()[0].Query)
	resp = get(t, up, layerPath)
	assert.Equal(t, 302, resp.StatusCode)
	assert.Equal(t, "/x", resp.Header.Get("Location"))
	assert.Empty(t, body(t, resp))
}

func TestLengths(t *testing.T) {
	want := layer(t)
	t.Run("chunked", func(t *testing.T) {
		resp := get(t, faulty(t, pullthroughtest.Fault{NoLength: true}), layerPath)
		assert.Equal(t, int64(-1), resp.ContentLength)
		assert.Equal(t, []string{"chunked"}, resp.TransferEncoding)
		assert.Equal(t, want, body(t, resp))
	})
	t.Run("close-delimited", func(t *testing.T) {
		up := faulty(t, pullthroughtest.Fault{CloseDelimited: true})
		header, rest, _ := strings.Cut(raw(t, up, layerPath), "\r\n\r\n")
		assert.True(t, strings.HasPrefix(header, "HTTP/1.0 200 OK\r\n"), header)
		assert.NotContains(t, header, "Content-Length")
		assert.NotContains(t, header, "chunked")
		assert.Equal(t, string(want), rest)
		assert.Equal(t, want, body(t, get(t, up, layerPath)))
	})
	t.Run("close-delimited and short looks complete", func(t *testing.T) {
		up := faulty(t, pullthroughtest.Fault{CloseDelimited: true, Truncate: 24})
		assert.Equal(t, want[:1000], body(t, get(t, up, layerPath)))
	})
	t.Run("declared too long", func(t *testing.T) {
		up := faulty(t, pullthroughtest.Fault{Header: http.Header{"Content-Length": {"2000"}}})
		resp := get(t, up, layerPath)
		assert.Equal(t, int64(2000), resp.ContentLength)
		got, err := io.ReadAll(resp.Body)
		assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
		assert.Equal(t, want, got)
	})
	t.Run("declared too short", func(t *testing.T) {
		up := faulty(t, pullthroughtest.Fault{Header: http.Header{"Content-Length": {"10"}}})
		assert.Equal(t, want[:10], body(t, get(t, up, layerPath)))
		assert.True(t, strings.HasSuffix(raw(t, up, layerPath), string(want)))
	})
	t.Run("declared twice", func(t *testing.T) {
		up := faulty(t, pullthroughtest.Fault{Header: http.Header{"Content-Length": {"10", "20"}}})
		_, err := up.Client().Transport.RoundTrip(request(t, http.MethodGet, up.URL+layerPath))
		assert.Error(t, err)
	})
	t.Run("truncated", func(t *testing.T) {
		resp := get(t, faulty(t, pullthroughtest.Fault{Truncate: 24}), layerPath)
		assert.Equal(t, int64(1024), resp.ContentLength)
		got, err := io.ReadAll(resp.Body)
		assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
		assert.Equal(t, want[:1000], got)
	})
	t.Run("truncated and chunked looks complete", func(t *testing.T) {
		resp := get(t, faulty(t, pullthroughtest.Fault{Truncate: 5000, NoLength: true}), layerPath)
		assert.Empty(t, body(t, resp))
	})
	t.Run("extended", func(t *testing.T) {
		up := faulty(t, pullthroughtest.Fault{Extend: 100_000})
		_, rest, _ := strings.Cut(raw(t, up, layerPath), "\r\n\r\n")
		assert.Equal(t, string(want)+strings.Repeat("\x00", 100_000), rest)
		assert.Equal(t, want, body(t, get(t, up, layerPath)))
	})
	t.Run("extended and chunked", func(t *testing.T) {
		resp := get(t, faulty(t, pullthroughtest.Fault{Extend: 3, NoLength: true}), layerPath)
		assert.Equal(t, string(want)+"\x00\x00\x00", string(body(t, resp)))
	})
	t.Run("without end", func(t *testing.T) {
		up := faulty(t, pullthroughtest.Fault{Extend: math.MaxInt64, NoLength: true})
		n, err := io.CopyN(io.Discard, get(t, up, layerPath).Body, 10<<20)
		assert.NoError(t, err)
		assert.Equal(t, int64(10<<20), n)
	})
}

func TestCuts(t *testing.T) {
	want := layer(t)
	for _, c := range []struct {
		name string
		f    pullthroughtest.Fault
		n    int
	}{
		{"in the middle", pullthroughtest.Fault{CutAfter: new(int64(500))}, 500},
		{"after the header", pullthroughtest.Fault{CutAfter: new(int64(0))}, 0},
		{"chunked", pullthroughtest.Fault{CutAfter: new(int64(500)), NoLength: true}, 500},
		{"before the last chunk", pullthroughtest.Fault{CutAfter: new(int64(1024)), NoLength: true}, 1024},
		{"in a body of the fault's", pullthroughtest.Fault{CutAfter: new(int64(2)), Body: []byte("abc")}, 2},
		{"in raw answers", pullthroughtest.Fault{CutAfter: new(int64(9)), Header: http.Header{"Content-Length": {"99"}}}, 9},
	} {
		t.Run(c.name, func(t *testing.T) {
			up := faulty(t, c.f)
			got, err := io.ReadAll(get(t, up, layerPath).Body)
			assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
			assert.Len(t, got, c.n)
			assert.Equal(t, int64(c.n), up.Requests()[0].Bytes)
			if c.f.Body == nil {
				assert.Equal(t, want[:c.n], got)
			}
		})
	}
	t.Run("behind the end", func(t *testing.T) {
		assert.Equal(t, want, body(t, get(t, faulty(t, pullthroughtest.Fault{CutAfter: new(int64(1025))}), layerPath)))
	})
	t.Run("relative to a range", func(t *testing.T) {
		up := faulty(t, pullthroughtest.Fault{CutAfter: new(int64(10))})
		got, err := io.ReadAll(get(t, up, layerPath, "Range", "bytes=100-").Body)
		assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
		assert.Equal(t, want[100:110], got)
	})
	t.Run("before the answer", func(t *testing.T) {
		up := faulty(t, pullthroughtest.Fault{CutAfter: new(int64(-1))})
		_, err := up.Client().Transport.RoundTrip(request(t, http.MethodGet, up.URL+layerPath))
		assert.ErrorIs(t, err, io.EOF)
		require.NoError(t, up.Wait(t.Context(), "", 1))
	})
	t.Run("head", func(t *testing.T) {
		up := faulty(t, pullthroughtest.Fault{CutAfter: new(int64(0)), Status: 500})
		assert.Equal(t, 500, do(t, up, request(t, http.MethodHead, up.URL+layerPath)).StatusCode)
	})
}

func TestResets(t *testing.T) {
	for _, tls := range []bool{false, true} {
		up := newUpstream(t, pullthroughtest.Config{TLS: tls})
		up.Fault(pullthroughtest.Fault{CutAfter: new(int64(500)), Reset: true, Times: 1})
		up.Fault(pullthroughtest.Fault{CutAfter: new(int64(-1)), Reset: true, Times: 1})
		_, err := io.ReadAll(get(t, up, layerPath).Body)
		assert.ErrorIs(t, err, syscall.ECONNRESET)
		_, err = up.Client().Transport.RoundTrip(request(t, http.MethodGet, up.URL+layerPath))
		assert.ErrorIs(t, err, syscall.ECONNRESET)
	}
}

func TestCutsOnHTTP2(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{TLS: true, HTTP2: true})
	for _, f := range []pullthroughtest.Fault{
		{CutAfter: new(int64(500))},
		{CutAfter: new(int64(500)), Reset: true},
		{CutAfter: new(int64(500)), CloseDelimited: true},
	} {
		f.Times = 1
		up.Fault(f)
		resp := get(t, up, layerPath)
		assert.Equal(t, 2, resp.ProtoMajor)
		_, err := io.ReadAll(resp.Body)
		assert.Error(t, err)
		assert.Equal(t, layer(t), body(t, get(t, up, layerPath)))
	}
}

func TestFlips(t *testing.T) {
	for offset, at := range map[int64]int{0: 0, 1023: 1023, -1: 1023, -1024: 0, 1024: -1, -1025: -1} {
		got := body(t, get(t, faulty(t, pullthroughtest.Fault{Flip: new(offset)}), layerPath))
		want := bytes.Clone(layer(t))
		if at >= 0 {
			want[at] ^= 1
		}
		assert.Equal(t, want, got, offset)
	}
	up := faulty(t, pullthroughtest.Fault{Flip: new(int64(-1)), Times: 1})
	assert.NotEqual(t, small.Content, body(t, get(t, up, manifestPath)))
	assert.Equal(t, small.Content, body(t, get(t, up, manifestPath)), "the fault has changed the content itself")
}

func TestStallBetweenBytes(t *testing.T) {
	for _, raw := range []bool{false, true} {
		stall := make(chan struct{})
		up := faulty(t, pullthroughtest.Fault{Stall: stall, StallAfter: new(int64(100)), CloseDelimited: raw})
		resp := get(t, up, layerPath)
		part := make([]byte, 100)
		_, err := io.ReadFull(resp.Body, part)
		require.NoError(t, err)
		assert.Equal(t, int64(100), up.Requests()[0].Bytes)
		close(stall)
		assert.Equal(t, layer(t), append(part, body(t, resp)...))
	}
}

func TestStallAtTheEndAndHead(t *testing.T) {
	stall := make(chan struct{})
	up := faulty(t, pullthroughtest.Fault{Stall: stall, StallAfter: new(int64(1024)), NoLength: true})
	resp := get(t, up, layerPath)
	_, err := io.ReadFull(resp.Body, make([]byte, 1024))
	require.NoError(t, err)
	close(stall)
	assert.Empty(t, body(t, resp))
	assert.Equal(t, 200, do(t, up, request(t, http.MethodHead, up.URL+layerPath)).StatusCode)
}

// A stall must end with the client, or handlers would pile up, and with the registry, or tests would hang.
func TestStallsEnd(t *testing.T) {
	for _, f := range []pullthroughtest.Fault{
		{},
		{StallAfter: new(int64(100))},
		{StallAfter: new(int64(100)), CloseDelimited: true},
		{Rate: 1},
	} {
		if f.Rate == 0 {
			f.Stall = make(chan struct{}) // never closed
		}
		for _, how := range []string{"client goes", "registry closes"} {
			t.Run(how, func(t *testing.T) {
				answered := make(chan struct{})
				f.Match = "GET /v2/*"
				up := newUpstream(t, pullthroughtest.Config{Handler: handlerEnds(answered)})
				up.Fault(f)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				failed := make(chan struct{})
				go func() {
					defer close(failed)
					r, _ := http.NewRequestWithContext(ctx, http.MethodGet, up.URL+"/v2/x", nil)
					resp, err := up.Client().Do(r)
					if err == nil {
						_, err = io.Copy(io.Discard, resp.Body)
						assert.NoError(t, resp.Body.Close())
					}
					// A close-delimited body may end without an error, as such bodies do.
					assert.True(t, err != nil || f.CloseDelimited)
				}()
				require.NoError(t, up.Wait(t.Context(), "GET /v2/x", 1))
				if how == "client goes" {
					cancel()
				} else {
					up.Close()
				}
				soon(t, failed)
				soon(t, answered)
			})
		}
	}
}

// handlerEnds answers everything with 200 bytes and tells when it has returned, normally or not.
func handlerEnds(answered chan<- struct{}) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		defer close(answered)
		w.Header().Set("Content-Length", "200")
		_, _ = w.Write(make([]byte, 200))
		return true
	}
}

func TestRate(t *testing.T) {
	up := faulty(t, pullthroughtest.Fault{Rate: 4 << 10})
	start := time.Now()
	resp := get(t, up, layerPath)
	assert.Equal(t, layer(t), body(t, resp))
	assert.GreaterOrEqual(t, time.Since(start), 190*time.Millisecond)
}
