package pullthrough_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// heapSlack is what a test may leave on the heap: pools and the logs of tests.
const heapSlack = 24 << 20

// baseline checks at the very end of the test, after all that was cleaned up
// since, that goroutines, descriptors and heap are what they were. It is called
// before anything else.
func baseline(t *testing.T) {
	t.Helper()
	goroutines, files, heap := runtime.NumGoroutine(), openFiles(t), inUse()
	t.Cleanup(func() {
		if t.Failed() {
			return // what is left then is no news
		}
		assert.Eventually(t, func() bool {
			return runtime.NumGoroutine() <= goroutines+1 && len(openFiles(t)) <= len(files) // Eventually has one of its own
		}, 10*time.Second, 5*time.Millisecond, "goroutines or descriptors are left")
		if t.Failed() {
			t.Logf("goroutines %d, before %d; descriptors %q, before %q", runtime.NumGoroutine(), goroutines, openFiles(t), files)
		}
		assert.Less(t, inUse(), heap+heapSlack, "heap is left")
	})
}

// openFiles are the files and sockets that the process has open.
func openFiles(t *testing.T) (open []string) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil // no such thing here
	}
	for _, e := range entries {
		name, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(name, "anon_inode:") {
			open = append(open, name)
		}
	}
	return open
}

// inUse is heap and stacks, without garbage.
func inUse() uint64 {
	runtime.GC()
	runtime.GC() // what pools keep goes with the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

func assertEmptyDir(t *testing.T, dir string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	assert.NoError(t, err)
	assert.Empty(t, left)
}

// servePiped serves h on connections in memory, for tests in a bubble, and
// returns a transport to it.
func servePiped(t *testing.T, h http.Handler) *http.Transport {
	t.Helper()
	l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	srv := &http.Server{Handler: h}
	go func() { assert.ErrorIs(t, srv.Serve(l), http.ErrServerClosed) }()
	transport := &http.Transport{DialContext: l.dial, DisableCompression: true}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		assert.NoError(t, srv.Close())
	})
	return transport
}

type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.done:
	case <-ctx.Done():
	}
	return nil, net.ErrClosed
}

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipes) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipes) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// sink is a ResponseWriter like net/http's: it takes files by ReadFrom, and
// remembers from what.
type sink struct {
	header  http.Header
	status  int
	body    bytes.Buffer
	sources []string // types that came by ReadFrom
	plain   int64    // bytes that came by Write
	aborted bool
}

func (s *sink) Header() http.Header { return s.header }
func (s *sink) Flush()              {}

func (s *sink) WriteHeader(status int) {
	if s.status == 0 {
		s.status = status
	}
}

func (s *sink) Write(p []byte) (int, error) {
	s.WriteHeader(http.StatusOK)
	s.plain += int64(len(p))
	return s.body.Write(p)
}

func (s *sink) ReadFrom(r io.Reader) (int64, error) {
	s.WriteHeader(http.StatusOK)
	source := "no LimitedReader"
	if l, ok := r.(*io.LimitedReader); ok {
		source = typeName(l.R)
	}
	s.sources = append(s.sources, source)
	return s.body.ReadFrom(r)
}

// serveSink has h answer a GET of path.
func serveSink(ctx context.Context, h http.Handler, path string) (s *sink) {
	s = &sink{header: http.Header{}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://registry.test"+path, nil)
	if err != nil {
		return s
	}
	defer func() {
		if p := recover(); p != nil {
			s.aborted = true
		}
	}()
	h.ServeHTTP(s, r)
	return s
}

// files is a Store with its blobs in files, one by digest.
type files struct {
	*memstore.Store // manifests
	dir             string

	mu     sync.Mutex
	stages []*staged
}

func newFiles(dir string) *files { return &files{Store: memstore.New(), dir: dir} }

func (s *files) path(d digest.Digest) string { return filepath.Join(s.dir, d.Encoded()) }

func (s *files) Blob(_ context.Context, _ pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	f, err := os.Open(s.path(d))
	if err != nil {
		return nil, err
	}
	return &pullthrough.Blob{Body: f}, nil
}

func (s *files) PutBlob(_ context.Context, _ pullthrough.Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	f, err := os.CreateTemp(s.dir, "put-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	err = errors.Join(err, f.Close())
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), s.path(desc.Digest))
}

// leftovers are the files in dir that are no blobs.
func (s *files) leftovers(t *testing.T) []string {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(s.dir, "*-*"))
	assert.NoError(t, err)
	return left
}

// stager is files that lends its directory to downloads.
type stager struct{ *files }

func (s stager) StageBlob(context.Context, pullthrough.Repo, digest.Digest) (pullthrough.Stage, error) {
	return s.stage()
}

func (s *files) stage() (*staged, error) {
	f, err := os.CreateTemp(s.dir, "stage-*")
	if err != nil {
		return nil, err
	}
	st := &staged{store: s, f: f}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stages = append(s.stages, st)
	return st, nil
}

// staged is a Stage as plain as can be: a file that Commit renames. After
// Commit and Abort it is closed and its name is gone, as a Stage may.
type staged struct {
	store           *files
	f               *os.File
	commits, aborts atomic.Int32
}

func (s *staged) WriteAt(p []byte, off int64) (int, error) { return s.f.WriteAt(p, off) }
func (s *staged) ReadAt(p []byte, off int64) (int, error)  { return s.f.ReadAt(p, off) }
func (s *staged) Open() (*os.File, error)                  { return os.Open(s.f.Name()) }

func (s *staged) Commit(_ context.Context, desc ocispec.Descriptor) error {
	s.commits.Add(1)
	return errors.Join(s.f.Close(), os.Rename(s.f.Name(), s.store.path(desc.Digest)))
}

func (s *staged) Abort() error {
	s.aborts.Add(1)
	return s.discard()
}

func (s *staged) discard() error { return errors.Join(s.f.Close(), os.Remove(s.f.Name())) }

// assertEnded checks that every stage had exactly one of Commit and Abort.
func (s *files) assertEnded(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.stages {
		assert.EqualValues(t, 1, st.commits.Load()+st.aborts.Load(), "%d commits, %d aborts", st.commits.Load(), st.aborts.Load())
	}
}

// events remembers what the proxy told.
type events struct {
	mu  sync.Mutex
	all []pullthrough.Event
}

func (e *events) on(_ context.Context, event pullthrough.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, event)
}

// storeFailures are the errors of the Store that were told.
func (e *events) storeFailures() (errs []error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, event := range e.all {
		if event.Kind == pullthrough.EventStoreFailed {
			errs = append(errs, event.Err)
		}
	}
	return errs
}

// gate is a stall that is over for good once it is opened.
type gate struct {
	c    chan struct{}
	once sync.Once
}

func newGate(t *testing.T) *gate {
	g := &gate{c: make(chan struct{})}
	t.Cleanup(g.open)
	return g
}

func (g *gate) open() { g.once.Do(func() { close(g.c) }) }

// stall holds the layer's first answers after so many bytes.
func (w *world) stall(g *gate, layer *pullthroughtest.Blob, after int64) {
	w.up.Fault(pullthroughtest.Fault{Match: blobs + layer.Digest.Encoded() + " 200", Stall: g.c, StallAfter: &after})
}

// whole reads a blob as one client does, and says what was wrong with it.
func (w *world) whole(ctx context.Context, d digest.Digest) error {
	b, err := w.open(ctx, d)
	if err != nil {
		return err
	}
	defer func() { _ = b.Body.Close() }()
	v := d.Verifier()
	n, err := io.Copy(v, b.Body)
	if err == nil && (n != b.Descriptor.Size || !v.Verified()) {
		err = errors.New("the content is wrong, and no error says so")
	}
	return err
}

func requireRead(t *testing.T, r io.Reader, n int64) []byte {
	t.Helper()
	p := make([]byte, n)
	_, err := io.ReadFull(r, p)
	require.NoError(t, err)
	return p
}

func typeName(v any) string { return reflect.TypeOf(v).String() }
