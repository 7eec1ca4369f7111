//go:build unix

package pullthrough_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// Variables that tell a process which a test has started where its images are.
const (
	childDir      = "PULLTHROUGH_TEST_DIR"
	childUpstream = "PULLTHROUGH_TEST_UPSTREAM"
)

// fewFiles is how many descriptors that process may have.
const fewFiles = 256

// 300 clients under 256 descriptors ask for a layer and never read.
func TestClientsThatNeverReadShutNobodyOut(t *testing.T) {
	for name, stored := range map[string]bool{"stored": true, "cold": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := pullthroughtest.New(t, pullthroughtest.Config{})
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 32 << 20})
			up.Push("a", "v1", img)
			up.Reset()
			addr := startChild(t, up)
			path := testkit.BlobPath("a", img.Layers[0].Digest)
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
			pull := func(path string, size int64) {
				resp, err := client.Get("http://" + addr + path)
				require.NoError(t, err)
				assert.Equal(t, http.StatusOK, resp.StatusCode)
				n, err := io.Copy(io.Discard, resp.Body)
				assert.NoError(t, err)
				assert.Equal(t, size, n)
				assert.NoError(t, resp.Body.Close())
			}
			manifest := testkit.ManifestPath("a", "v1")
			pull(manifest, int64(len(img.Content))) // a blob comes after its manifest
			if stored {
				pull(path, img.Layers[0].Size)
			}
			pull("/idle", 0)
			for range fewFiles + 44 {
				c, err := net.Dial("tcp", addr)
				require.NoError(t, err)
				t.Cleanup(func() { _ = c.Close() })
				_, err = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
				require.NoError(t, err)
			}
			start := time.Now()
			for range 5 {
				pull(path, img.Layers[0].Size)
			}
			assert.Less(t, time.Since(start), 40*time.Second)
			if stored {
				assert.Equal(t, []string{testkit.UpstreamGet(manifest, 200), testkit.UpstreamGet(path, 200)}, up.Log())
			}
			assert.LessOrEqual(t, up.Count(testkit.UpstreamGet(path, 200)), 6, "without a descriptor nothing can be stored, and each pull may have to fetch")
		})
	}
}

// startChild starts a proxy in a process of its own and returns its address.
func startChild(t *testing.T, up *pullthroughtest.Upstream) (addr string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestChildWithFewFiles$", "-test.count=1")
	cmd.Env = append(os.Environ(), childDir+"="+t.TempDir(), childUpstream+"="+up.URL, "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		assert.NoError(t, in.Close())
		assert.NoError(t, cmd.Wait())
	})
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	require.NoError(t, err)
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	return strings.TrimSpace(line)
}

// TestChildWithFewFiles is the other process of a test, and nothing by itself.
func TestChildWithFewFiles(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		return
	}
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: fewFiles, Max: fewFiles}))
	store, err := dirstore.Open(dir)
	require.NoError(t, err)
	p := &pullthrough.Proxy{Store: store, Rules: pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: os.Getenv(childUpstream)}}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/v2/", p)
	mux.HandleFunc("/idle", func(_ http.ResponseWriter, r *http.Request) { assert.NoError(t, p.Idle(r.Context())) })
	srv := &http.Server{Handler: mux}
	go func() { assert.ErrorIs(t, srv.Serve(l), http.ErrServerClosed) }()
	fmt.Println(l.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	require.NoError(t, srv.Close())
	assert.NoError(t, p.Shutdown(context.Background()))
	assert.NoError(t, store.Close())
}
