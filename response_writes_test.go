package pullthrough_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// mounts are the ways in which a host may mount a proxy.
func mounts(p *pullthrough.Proxy) map[string]http.Handler {
	return map[string]http.Handler{
		"ServeHTTP": p,
		"Handler":   p.Handler(nil),
		"WriteBlob": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, d, _ := strings.Cut(r.URL.Path, "/blobs/")
			b, err := p.Blob(r.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: d})
			if err != nil {
				pullthrough.WriteError(w, err)
				return
			}
			pullthrough.WriteBlob(w, r, b)
		}),
	}
}

// A client that asks for a blob and never reads it is ended, when it is stored and
// while it is downloaded, and another one is served meanwhile and later.
func TestAClientThatReadsNoBlobIsEnded(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 3 << 20})
	path := testkit.BlobPath("a", img.Layers[0].Digest)
	for _, entrance := range []string{"ServeHTTP", "Handler", "WriteBlob"} {
		for name, stored := range map[string]bool{"stored": true, "cold": false} {
			t.Run(entrance+", "+name, func(t *testing.T) {
				up, enter := testkit.Piped(t, pullthroughtest.Config{})
				up.Push("a", "v1", img)
				up.Reset()
				synctest.Test(t, func(t *testing.T) {
					w := enter(t)
					w.MaxSilence = 3 * time.Minute
					log := new(strings.Builder)
					w.Logger = testkit.TextLogger(log)
					pipes := testkit.NewPipes()
					srv := &http.Server{Handler: mounts(w.Proxy)[entrance]}
					go func() { assert.ErrorIs(t, srv.Serve(pipes), http.ErrServerClosed) }()
					defer func() { assert.NoError(t, srv.Close()) }()
					if stored {
						w.PullBlob(t, "a", img.Layers[0].Digest)
						w.Settled(t)
					}
					silent := dial(t, pipes, path)
					time.Sleep(3*time.Minute - time.Second)
					assert.NotContains(t, log.String(), "reads nothing")
					assertWholeOver(t, dial(t, pipes, path), img.Layers[0].Size)
					time.Sleep(2 * time.Second)
					synctest.Wait()
					assert.Contains(t, log.String(), "reads nothing")
					_, err := io.Copy(io.Discard, silent)
					assert.NoError(t, err, "it is closed, not reset")
					assertWholeOver(t, dial(t, pipes, path), img.Layers[0].Size)
					assert.Equal(t, 1, strings.Count(log.String(), "reads nothing"))
					w.Settled(t)
					assert.Empty(t, w.Downloads(), "no reader of the spool is left")
					assert.Equal(t, []string{testkit.UpstreamGet(path, 200)}, up.Log())
				})
			})
		}
	}
}

// WriteManifest knows no Proxy: it is ten minutes.
func TestAClientThatReadsNoManifestIsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := testkit.LocalManifest("v1")
		m.Content = append(m.Content, make([]byte, 3<<20)...)
		pipes := testkit.NewPipes()
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { pullthrough.WriteManifest(w, r, m) })}
		go func() { assert.ErrorIs(t, srv.Serve(pipes), http.ErrServerClosed) }()
		defer func() { assert.NoError(t, srv.Close()) }()
		c := dial(t, pipes, "/")
		time.Sleep(10*time.Minute + time.Second)
		n, err := io.Copy(io.Discard, c)
		assert.NoError(t, err)
		assert.Zero(t, n)
		assertWholeOver(t, dial(t, pipes, "/"), int64(len(m.Content)))
	})
}

// dial opens a connection and sends a request, and reads nothing.
func dial(t *testing.T, pipes *testkit.Pipes, path string) net.Conn {
	t.Helper()
	c, err := pipes.Dial(t.Context(), "", "")
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_, err = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path)
	require.NoError(t, err)
	return c
}

// assertWholeOver reads the answer to its end.
func assertWholeOver(t *testing.T, c net.Conn, size int64) {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, resp.StatusCode)
	n, err := io.Copy(io.Discard, resp.Body)
	assert.NoError(t, err)
	assert.Equal(t, size, n)
}
