package testkit

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// Protocols are the ways in which an answer can say that it was cut short:
// each pulls a path and reads what comes, to its end or to the error. Where
// not even the header came through there is only the error.
var Protocols = map[string]func(*testing.T, http.Handler, string) Reply{
	"HTTP/1.1": func(t *testing.T, h http.Handler, path string) Reply {
		return Fetch(t, Serve(t, h), path)
	},
	"HTTP/1.0": func(t *testing.T, h http.Handler, path string) Reply {
		conn, err := net.Dial("tcp", Serve(t, h).Listener.Addr().String())
		require.NoError(t, err)
		defer func() { assert.NoError(t, conn.Close()) }()
		_, err = io.WriteString(conn, "GET "+path+" HTTP/1.0\r\n\r\n")
		require.NoError(t, err)
		// A close is no error to such a client; only the length tells.
		in := bufio.NewReader(conn)
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return Reply{Err: err}
		}
		r := ReadReply(t, resp)
		assert.NotEmpty(t, resp.Header.Get("Content-Length"), "the length is all that tells a whole from a part")
		rest, _ := io.ReadAll(in)
		assert.Empty(t, rest, "nothing follows an answer that was cut")
		return r
	},
	"HTTP/2": func(t *testing.T, h http.Handler, path string) Reply {
		srv := httptest.NewUnstartedServer(h)
		srv.EnableHTTP2 = true
		srv.StartTLS()
		t.Cleanup(srv.Close)
		r := Fetch(t, srv, path)
		if r.Response != nil {
			assert.Equal(t, 2, r.ProtoMajor)
		}
		return r
	},
}

// Fetch pulls a path and reads what comes, to its end or to the error.
func Fetch(t *testing.T, srv *httptest.Server, path string) Reply {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+path, nil)
	require.NoError(t, err)
	resp, err := srv.Client().Transport.RoundTrip(r)
	if err != nil {
		return Reply{Err: err}
	}
	return ReadReply(t, resp)
}

// AssertBroken checks that the client of a blob was told that it failed.
func AssertBroken(t *testing.T, r Reply, content []byte) {
	t.Helper()
	if r.Response != nil && r.StatusCode != http.StatusOK { // it failed before the header
		AssertOCI(t, r, 502, "UNKNOWN")
		return
	}
	assert.Error(t, r.Err, "the client is told")
	assert.Less(t, len(r.Content), len(content))
	if r.Response != nil {
		assert.Equal(t, strconv.Itoa(len(content)), r.Header.Get("Content-Length"))
		assert.Empty(t, r.TransferEncoding)
	}
}

// BrokenDownloads fail after the header, for good.
var BrokenDownloads = map[string][]pullthroughtest.Fault{
	"first byte wrong":     {{Flip: new(int64(0))}},
	"last byte wrong":      {{Flip: new(int64(-1))}},
	"cut, then gone":       {{Times: 1, CutAfter: new(int64(2 << 20))}, {Status: 404}},
	"reset, then refused":  {{Times: 1, CutAfter: new(int64(2 << 20)), Reset: true}, {Status: 403}},
	"short, then gone":     {{Times: 1, Truncate: 1}, {Status: 404}},
	"close-delimited":      {{Truncate: 1000, CloseDelimited: true}},
	"wrong and of no size": {{Flip: new(int64(5)), NoLength: true}},
}
