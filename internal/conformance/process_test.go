package conformance_test

import (
	"bytes"
	"os/exec"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// How long a process may take to say that it is ready, to end, and to serve
// its test. Generous: they are deadlines, nobody waits for them.
const (
	startTimeout = 30 * time.Second
	stopTimeout  = 30 * time.Second
	serveTimeout = 90 * time.Second
)

// process is a server of ours, running on its own until stop.
type process struct {
	cmd    *exec.Cmd
	out    *watcher
	exited chan struct{} // closed when Wait has returned
	once   sync.Once
}

// start runs bin and returns the first group of ready in what it prints. The
// process is stopped at the end of the test at the latest.
func start(t testing.TB, ready *regexp.Regexp, bin string, args ...string) (*process, string) {
	t.Helper()
	p := &process{
		cmd:    exec.Command(bin, args...),
		out:    &watcher{ready: ready, found: make(chan string, 1)},
		exited: make(chan struct{}),
	}
	// Nothing is traced to a collector, whatever the environment says, and a
	// binary with the race detector ends without its second of sleep.
	p.cmd.Env = append(p.cmd.Environ(), "OTEL_TRACES_EXPORTER=none", "GORACE=atexit_sleep_ms=0")
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	require.NoError(t, p.cmd.Start())
	go func() {
		_ = p.cmd.Wait() // the exit status is read from ProcessState
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.stop(t)
		if t.Failed() {
			t.Logf("output of %s:\n%s", bin, p.out.tail())
		}
	})

	select {
	case addr := <-p.out.found:
		return p, addr
	case <-p.exited:
		require.FailNow(t, "ended before it was ready", "%s %v: %v", bin, args, p.cmd.ProcessState)
	case <-time.After(startTimeout):
		require.FailNow(t, "not ready in time", "%s %v", bin, args)
	}
	return nil, ""
}

// stop sends SIGTERM to this process alone and waits for its end.
func (p *process) stop(t testing.TB) {
	t.Helper()
	p.once.Do(func() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may be gone
		select {
		case <-p.exited:
		case <-time.After(stopTimeout):
			assert.Fail(t, "did not end on SIGTERM", p.cmd.Path)
			_ = p.cmd.Process.Kill()
			<-p.exited
		}
	})
}

// quitAfter ends a process that hangs a client, with its goroutines in its
// output: SIGQUIT is Go's own way to ask for them.
func (p *process) quitAfter(t testing.TB, d time.Duration) {
	t.Helper()
	timer := time.AfterFunc(d, func() { _ = p.cmd.Process.Signal(syscall.SIGQUIT) })
	t.Cleanup(func() { timer.Stop() })
}

// watcher keeps what a process prints and reports the first match of ready.
type watcher struct {
	ready *regexp.Regexp
	found chan string

	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *watcher) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(b)
	if w.ready != nil {
		if m := w.ready.FindSubmatch(w.buf.Bytes()); m != nil {
			w.found <- string(m[1])
			w.ready = nil
		}
	}
	return len(b), nil
}

// tail returns the last 64 KiB.
func (w *watcher) tail() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.buf.Bytes()
	return string(b[max(0, len(b)-64<<10):])
}
