package conformance_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	s3driver "github.com/distribution/distribution/v3/registry/storage/driver/s3-aws"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// How long the server may take. Deadlines: nobody waits for them.
const (
	startTimeout = 20 * time.Second
	stopTimeout  = 20 * time.Second
	startTries   = 5
)

// server is versitygw, an S3 server over a directory, running on its own.
type server struct {
	addr        string
	access, key string
	dir         string // the buckets are its directories
	cmd         *exec.Cmd
	out         *output
	exited      chan struct{} // closed when Wait has returned
}

// output is what a process has printed, safe for concurrent use.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// scratch is a directory in memory where there is such a thing.
func scratch(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "diststore")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// startServer starts a server with keys of its own, and stops it when the test
// ends.
func startServer(t testing.TB) *server {
	t.Helper()
	s := &server{access: rand.Text(), key: rand.Text(), dir: scratch(t)}
	require.NoError(t, os.Mkdir(filepath.Join(s.dir, "buckets"), 0o700))
	require.NoError(t, os.Mkdir(filepath.Join(s.dir, "metadata"), 0o700))
	for try := 1; ; try++ {
		if s.start(t) {
			break
		}
		require.Less(t, try, startTries, "the S3 server does not start: %s", s.out)
	}
	t.Cleanup(func() {
		s.stop(t)
		if t.Failed() {
			t.Logf("output of versitygw:\n%s", s.out)
		}
	})
	return s
}

// start reports whether the server answers. It cannot choose a port itself, so
// another process may have taken ours.
func (s *server) start(t testing.TB) bool {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s.addr, s.out, s.exited = l.Addr().String(), &output{}, make(chan struct{})
	require.NoError(t, l.Close())
	s.cmd = exec.Command(versitygw, "--port", s.addr, "--keep-alive", "--quiet",
		"posix", "--sidecar", filepath.Join(s.dir, "metadata"), filepath.Join(s.dir, "buckets"))
	s.cmd.Env = []string{"ROOT_ACCESS_KEY=" + s.access, "ROOT_SECRET_KEY=" + s.key, "HOME=" + s.dir, "PATH=" + os.Getenv("PATH")}
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	require.NoError(t, s.cmd.Start())
	go func() {
		_ = s.cmd.Wait() // the exit status is read from ProcessState
		close(s.exited)
	}()
	if s.ready() {
		return true
	}
	s.stop(t)
	return false
}

func (s *server) ready() bool {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-s.exited:
			return false
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		if resp, err := http.Get("http://" + s.addr + "/"); err == nil {
			_ = resp.Body.Close()
			return resp.Header.Get("Server") == "VERSITYGW"
		}
	}
}

// stop sends SIGTERM to this process alone and waits for its end.
func (s *server) stop(t testing.TB) {
	t.Helper()
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may be gone
	select {
	case <-s.exited:
	case <-time.After(stopTimeout):
		assert.Fail(t, "did not end on SIGTERM", s.cmd.Path)
		_ = s.cmd.Process.Kill()
		<-s.exited
	}
}

// bucket makes a bucket and returns what a configuration says of it.
func (s *server) bucket(t testing.TB, name string) map[string]any {
	t.Helper()
	require.NoError(t, os.Mkdir(filepath.Join(s.dir, "buckets", name), 0o700))
	return s.parameters(name)
}

func (s *server) parameters(bucket string) map[string]any {
	return map[string]any{
		"bucket": bucket, "region": "us-east-1", "regionendpoint": "http://" + s.addr, "forcepathstyle": true,
		"accesskey": s.access, "secretkey": s.key, "secure": false, "chunksize": 5 << 20,
	}
}

// open returns a driver of its own.
func open(t testing.TB, parameters map[string]any) storagedriver.StorageDriver {
	t.Helper()
	driver, err := s3driver.FromParameters(context.Background(), parameters)
	require.NoError(t, err)
	return driver
}
