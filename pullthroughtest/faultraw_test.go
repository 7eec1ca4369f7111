package pullthroughtest_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestRaw(t *testing.T) {
	noise := []byte("\x00 noise \r\n")
	want := string(layer(t))
	t.Run("before the answer", func(t *testing.T) {
		got := raw(t, faulty(t, pullthroughtest.Fault{Raw: noise}), layerPath)
		assert.True(t, strings.HasPrefix(got, string(noise)+"HTTP/1.1 200 OK\r\n"))
		assert.True(t, strings.HasSuffix(got, "\r\n\r\n"+want))
	})
	t.Run("before no answer", func(t *testing.T) {
		assert.Equal(t, string(noise), raw(t, faulty(t, pullthroughtest.Fault{Raw: noise, CutAfter: new(int64(-1))}), layerPath))
	})
	for name, at := range map[string]int64{"after the header": 0, "after a byte": 1, "in the middle": 500, "at the end": 1024} {
		t.Run(name, func(t *testing.T) {
			for _, f := range []pullthroughtest.Fault{{}, {CloseDelimited: true}, {Rate: 1 << 20}} {
				f.Raw, f.RawAfter = noise, &at
				up := faulty(t, f)
				_, got, _ := strings.Cut(raw(t, up, layerPath), "\r\n\r\n")
				assert.Equal(t, want[:at]+string(noise)+want[at:], got)
				assert.EqualValues(t, 1024, up.Requests()[0].Bytes, "noise is none of the body")
			}
		})
	}
	t.Run("behind the end", func(t *testing.T) {
		_, got, _ := strings.Cut(raw(t, faulty(t, pullthroughtest.Fault{Raw: noise, RawAfter: new(int64(1025))}), layerPath), "\r\n\r\n")
		assert.Equal(t, want, got)
	})
	t.Run("where it is cut", func(t *testing.T) {
		up := faulty(t, pullthroughtest.Fault{Raw: noise, RawAfter: new(int64(9)), CutAfter: new(int64(9))})
		_, got, _ := strings.Cut(raw(t, up, layerPath), "\r\n\r\n")
		assert.Equal(t, want[:9]+string(noise), got)
	})
	t.Run("inside TLS", func(t *testing.T) {
		up := newUpstream(t, pullthroughtest.Config{TLS: true})
		up.Fault(pullthroughtest.Fault{Raw: []byte("HTTP/1.1 103 Early Hints\r\nX-Hint: 1\r\n\r\n")})
		hints := 0
		trace := &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error { hints++; return nil }}
		r := request(t, http.MethodGet, up.URL+layerPath)
		assert.Equal(t, want, string(body(t, do(t, up, r.WithContext(httptrace.WithClientTrace(t.Context(), trace))))))
		assert.Equal(t, 1, hints)
	})
}

// A frame that is split by another is an error of the connection, and a test that expects an error would not notice.
func TestRawSplitsNoFrame(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{TLS: true, HTTP2: true})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 300_000})
	up.Push("a/b", "latest", img)
	want := content(t, img.Layers[0])
	const ping = "\x00\x00\x08\x06\x01\x00\x00\x00\x00nobodys!" // an answer to a ping that was never sent: to be ignored
	for at := int64(0); at <= 300_000; at += 1021 {
		heal := up.Fault(pullthroughtest.Fault{Raw: []byte(ping), RawAfter: &at})
		resp := get(t, up, "/v2/a/b/blobs/"+img.Layers[0].Digest.String())
		require.Equal(t, 2, resp.ProtoMajor)
		require.True(t, bytes.Equal(want, body(t, resp)), at)
		heal()
	}
}

func TestGoAway(t *testing.T) {
	up := newUpstream(t, pullthroughtest.Config{TLS: true, HTTP2: true})
	connections := 0
	pull := func() (data []byte, err error) {
		trace := &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
			if !c.Reused {
				connections++
			}
		}}
		r := request(t, http.MethodGet, up.URL+layerPath)
		resp := do(t, up, r.WithContext(httptrace.WithClientTrace(t.Context(), trace)))
		return io.ReadAll(resp.Body)
	}
	fault := pullthroughtest.Fault{Times: 1, RawAfter: new(int64(500)), StallAfter: new(int64(500)), Stall: make(chan struct{})}
	fault.Raw = pullthroughtest.GoAway(0, 0)
	up.Fault(fault)
	data, err := pull()
	assert.ErrorContains(t, err, "GOAWAY")
	assert.InDelta(t, 500, len(data), 1)
	assert.Equal(t, layer(t)[:len(data)], data)

	fault.Raw, fault.Stall = pullthroughtest.GoAway(0, 2), make(chan struct{})
	up.Fault(fault)
	_, err = pull()
	assert.ErrorContains(t, err, "INTERNAL_ERROR")

	fault.Raw, fault.Stall = pullthroughtest.GoAway(1, 0), nil
	up.Fault(fault)
	data, err = pull()
	assert.NoError(t, err, "the stream that it names may end")
	assert.Equal(t, layer(t), data)
	_, err = pull()
	assert.NoError(t, err)
	assert.Equal(t, 4, connections)
}

func TestHeaderRate(t *testing.T) {
	for _, c := range []pullthroughtest.Config{{}, {TLS: true}} {
		up := newUpstream(t, c)
		synctest.Test(t, func(t *testing.T) {
			transport := &http.Transport{DialContext: up.DialPipe, TLSClientConfig: &tls.Config{RootCAs: up.Roots()}}
			defer transport.CloseIdleConnections()
			pull := func() (*http.Response, error) {
				return transport.RoundTrip(request(t, http.MethodGet, up.URL+layerPath))
			}
			heal := up.Fault(pullthroughtest.Fault{HeaderRate: 1})
			start := time.Now()
			resp, err := pull()
			require.NoError(t, err)
			assert.Greater(t, time.Since(start), 3*time.Minute)
			assert.Equal(t, layer(t), body(t, resp))
			require.NoError(t, resp.Body.Close())

			transport.ResponseHeaderTimeout = 30 * time.Second
			_, err = pull()
			assert.ErrorContains(t, err, "timeout")
			heal()
			up.Fault(pullthroughtest.Fault{HeaderRate: 1, Status: 500, Body: []byte{}, CloseDelimited: true})
			transport.ResponseHeaderTimeout = 0
			resp, err = pull()
			require.NoError(t, err)
			assert.Equal(t, 500, resp.StatusCode)
			assert.Empty(t, body(t, resp))
			require.NoError(t, resp.Body.Close())
		})
	}
}
