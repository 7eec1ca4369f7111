package main

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
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
	exit   chan int
	status int // that it must end with

	ending  sync.Once
	mu      sync.Mutex
	signals map[os.Signal]chan<- os.Signal // what it wants to be told of
}

// notify fits program.notify.
func (i *instance) notify(c chan<- os.Signal, sig ...os.Signal) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, s := range sig {
		i.signals[s] = c
	}
}

// signal reports whether the program wants to be told of the signal, and tells it.
func (i *instance) signal(s os.Signal) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.signals[s] != nil {
		i.signals[s] <- s
	}
	return i.signals[s] != nil
}

// end does what a first SIGTERM does.
func (i *instance) end() { i.ending.Do(func() { i.signal(syscall.SIGTERM) }) }

// start returns when the program says that it is ready. It must end with 0,
// at the end of the test at the latest.
func start(t *testing.T, args ...string) *instance {
	t.Helper()
	return startIn(t, nil, args...)
}

// startIn has an environment, too.
func startIn(t *testing.T, env []string, args ...string) *instance {
	t.Helper()
	i := &instance{exit: make(chan int, 1), signals: map[os.Signal]chan<- os.Signal{}}
	r, w := io.Pipe()
	go func() {
		i.exit <- program{append([]string{"-listen", "127.0.0.1:0"}, args...), env, w, &i.stderr, i.notify}.run()
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
	require.Regexp(t, `^https?://127\.0\.0\.1:[1-9][0-9]*$`, url)
	i.url = url
	return i
}

// stop ends the program and waits for its end. Stopping twice is fine.
func (i *instance) stop(t *testing.T) {
	t.Helper()
	i.end()
	code := <-i.exit
	assert.Equal(t, i.status, code, i.stderr.String())
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
