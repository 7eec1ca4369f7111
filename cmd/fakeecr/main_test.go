package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const secret = "s3cret:with:colons" // "user:…" in -credential

func newImage() *pullthroughtest.Image {
	return pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 3, LayerSize: 2 << 20})
}

// newUpstream wants tokens, and "me" with the secret to give one.
func newUpstream(t *testing.T) *pullthroughtest.Upstream {
	return pullthroughtest.New(t, pullthroughtest.Config{
		Auth:  pullthroughtest.Bearer,
		Users: map[string]string{"me": secret},
	})
}

// instance is run, at work.
type instance struct {
	url    string
	stderr buffer
	end    context.CancelFunc // what a signal does
	exit   chan int
}

// start returns when the program says that it is ready. It must end with 0,
// at the end of the test at the latest.
func start(t *testing.T, args ...string) *instance {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	i := &instance{end: cancel, exit: make(chan int, 1)}
	r, w := io.Pipe()
	go func() {
		i.exit <- run(ctx, append([]string{"-listen", "127.0.0.1:0"}, args...), w, &i.stderr)
		_ = w.Close()
	}()
	t.Cleanup(func() {
		i.stop(t)
		if t.Failed() {
			t.Log(i.stderr.String())
		}
	})
	line, err := bufio.NewReader(r).ReadString('\n')
	require.NoError(t, err, i.stderr.String())
	url, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	require.True(t, ok, line)
	require.Regexp(t, `^http://127\.0\.0\.1:[1-9][0-9]*$`, url)
	i.url = url
	return i
}

// stop ends the program and waits for its end. Stopping twice is fine.
func (i *instance) stop(t *testing.T) {
	t.Helper()
	i.end()
	code := <-i.exit
	assert.Equal(t, exitOK, code, i.stderr.String())
	i.exit <- code
}

// get returns an answer, its body read to the end.
func (i *instance) get(t *testing.T, path string) (*http.Response, []byte) {
	t.Helper()
	resp, err := http.Get(i.url + path)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return resp, body
}

// pull gets the image's manifest by tag, then all its blobs, and compares each
// with what was pushed.
func (i *instance) pull(t *testing.T, repo, tag string, img *pullthroughtest.Image) {
	t.Helper()
	resp, body := i.get(t, "/v2/"+repo+"/manifests/"+tag)
	require.Equal(t, 200, resp.StatusCode, string(body))
	assert.Equal(t, img.Content, body)
	assert.Equal(t, img.Descriptor().Digest.String(), resp.Header.Get("Docker-Content-Digest"))
	for _, blob := range img.Blobs() {
		resp, body := i.get(t, "/v2/"+repo+"/blobs/"+blob.Digest.String())
		require.Equal(t, 200, resp.StatusCode, string(body))
		assert.Equal(t, blob.Digest, blob.Digest.Algorithm().FromBytes(body))
	}
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
