package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// bench is one run of the program.
type bench struct {
	dir      string // directory of all files
	fakeecr  string // the program
	self     string // this program
	tiny     bool   // sizes and numbers are a thousandth
	quiet    time.Duration
	programs map[string]string // of the alternatives that run
	missing  map[string]error  // why an alternative that was asked for does not run

	images map[string]*pullthroughtest.Image // by its options; kept, since hashing takes a while
}

// quietTime is how long a server must use no processor time until its work counts as done.
const quietTime = 200 * time.Millisecond

func newBench(ctx context.Context, root string, alternatives []string) (*bench, error) {
	dir, err := os.MkdirTemp("", "pullthrough-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{
		dir: dir, fakeecr: filepath.Join(dir, "fakeecr"), quiet: quietTime,
		programs: make(map[string]string), missing: make(map[string]error),
		images: make(map[string]*pullthroughtest.Image),
	}
	if b.self, err = os.Executable(); err == nil {
		err = build(ctx, root, b.fakeecr, "./cmd/fakeecr")
	}
	if err == nil {
		err = b.findPrograms(ctx, root, alternatives)
	}
	if err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *bench) close() { _ = os.RemoveAll(b.dir) } // a temporary directory

// bytes returns a size, or what stands for it in a tiny run.
func (b *bench) bytes(size int64) int64 {
	if b.tiny {
		return max(size>>10, 1<<10)
	}
	return size
}

// times returns a number, or what stands for it in a tiny run.
func (b *bench) times(n int) int {
	if b.tiny {
		return max(n/1000, min(n, 3))
	}
	return n
}

// image returns an image with layers of that size.
func (b *bench) image(o pullthroughtest.ImageOptions) *pullthroughtest.Image {
	key := fmt.Sprintf("%+v", o)
	img, ok := b.images[key]
	if !ok {
		img = pullthroughtest.NewImage(o)
		b.images[key] = img
	}
	return img
}

// sample is what one round of one contender has shown.
type sample struct {
	took       time.Duration   // of all the work
	first      []time.Duration // until the first byte of each answer
	cpu        float64         // seconds of the server, until it is quiet again
	rest, peak int64           // resident bytes of the server: before the work, and the peak
	requests   int             // to the upstream: all
	blobs      int             // GETs of a blob
	tokens     int
	bytes      float64 // from the upstream, as a multiple of the content's size
	allocs     float64 // for each answer, of a handler in this process
}

// series is the rounds of one contender.
type series struct {
	samples []sample
	err     error // why there are no more
}

// result is the rounds of all contenders of a scenario. A round has the same index in each
// series.
type result struct {
	scenario
	series map[string]*series
}

// measure runs the rounds of a scenario. In each round all contenders do the same work, one
// after the other, and each round has another order. A contender that fails is left out of
// further rounds.
func (b *bench) measure(ctx context.Context, s scenario) (*result, error) {
	g, err := b.newStage(s)
	if err != nil {
		return nil, err
	}
	defer g.up.Close()
	work := s.setup(g)
	r := &result{scenario: s, series: make(map[string]*series)}
	names := b.present(s.contenders)
	for _, name := range names {
		r.series[name] = new(series)
	}
	for n := range s.rounds {
		for i := range names {
			name := names[(i+n)%len(names)]
			to := r.series[name]
			if ctx.Err() != nil {
				return r, ctx.Err()
			}
			if to.err == nil {
				to.add(g.round(ctx, s, work, name))
			}
		}
	}
	return r, nil
}

// present returns the contenders that are on this machine and wanted.
func (b *bench) present(names []string) (present []string) {
	for _, name := range names {
		if isAlternative(name) {
			if _, ok := b.programs[name]; !ok {
				continue
			}
		}
		present = append(present, name)
	}
	return present
}

func (s *series) add(one sample, err error) {
	if err != nil {
		s.err = err
		return
	}
	s.samples = append(s.samples, one)
}

// job is the work of one contender in one round.
type job struct {
	warm func(*task) error // not measured; nil: nothing
	work func(*task) error
}

// task is a job that one contender is doing.
type task struct {
	*stage
	*contender
	ctx  context.Context
	dir  string // the contender's, empty at first
	http *client

	mu sync.Mutex
	sample
}

// round does a job in a new directory, with a new process.
func (g *stage) round(ctx context.Context, s scenario, j job, name string) (sample, error) {
	dir, err := os.MkdirTemp(g.bench.dir, "round-")
	if err != nil {
		return sample{}, err
	}
	if !s.manyFiles {
		defer os.RemoveAll(dir) // a temporary directory
	}
	t := &task{stage: g, ctx: ctx, dir: dir, http: newClient()}
	if g.up.Roots() != nil && name == direct {
		t.http.Client = g.up.Client()
	}
	defer t.http.CloseIdleConnections()
	if t.contender, err = g.start(ctx, name, dir); err != nil {
		return sample{}, err
	}
	if t.process != nil {
		defer context.AfterFunc(ctx, func() { t.end() })() // what it is doing fails then
		defer func() { t.end() }()
	}
	if j.warm != nil {
		if err := j.warm(t); err != nil {
			return sample{}, fmt.Errorf("before the work: %w", err)
		}
	}
	err = t.measure(s, j)
	return t.sample, err
}

func (t *task) measure(s scenario, j job) error {
	t.settle()
	t.sample = sample{}
	var before float64
	if t.process != nil {
		t.resetPeak()
		t.rest, before = t.process.peak(), t.process.cpu()
	}
	t.up.Reset()
	if s.fault != nil {
		defer t.up.Fault(s.fault(t.bench))()
	}
	t.delay.Store(int64(s.delay))
	defer t.delay.Store(0)
	start := time.Now()
	err := j.work(t)
	if t.took == 0 {
		t.took = time.Since(start)
	}
	t.settle()
	if t.process != nil {
		t.sample.cpu, t.sample.peak = t.process.cpu()-before, t.process.peak()
	}
	t.count()
	return err
}

// settle waits until the server uses no processor time, for a minute at most.
func (t *task) settle() {
	if t.process == nil {
		return
	}
	before := t.process.cpu()
	for end := time.Now().Add(time.Minute); time.Now().Before(end) && t.ctx.Err() == nil; {
		time.Sleep(t.quiet)
		now := t.process.cpu()
		if now == before {
			return
		}
		before = now
	}
}

// count reads the upstream's log.
func (t *task) count() {
	var bytes int64
	for _, q := range t.up.Requests() {
		bytes += q.Bytes
		t.requests++
		switch {
		case strings.HasPrefix(q.Path, "/token"):
			t.tokens++
		case q.Method == http.MethodGet && strings.Contains(q.Path, "/blobs/") && q.Status < 300:
			t.blobs++
		}
	}
	if t.size > 0 {
		t.bytes = float64(bytes) / float64(t.size)
	}
}

// as returns a client that may pull a repository.
func (t *task) as(repo string) *client {
	if !t.token {
		return t.http
	}
	return &client{t.http.Client, t.up.IssueToken(time.Hour, "repository:"+repo+":pull")}
}

// get downloads an object, discards it, and notes how long its first byte took.
func (t *task) get(repo, object string, size int64) error {
	return t.fetch(t.as(repo), fetch{url: t.base + repo + object, size: size})
}

// getRange is get of a range.
func (t *task) getRange(repo, object string, from, to int64) error {
	return t.fetch(t.as(repo), fetch{url: t.base + repo + object, bytes: fmt.Sprintf("%d-%d", from, to), size: to - from + 1})
}

func (t *task) fetch(c *client, f fetch) error {
	if t.name == "discard" {
		f.size = 0
	}
	first, err := c.get(f)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.first = append(t.first, first)
	return err
}

// verify downloads an object and checks its sha256.
func (t *task) verify(repo, object, want string, size int64) error {
	sum := sha256.New()
	if err := t.fetch(t.as(repo), fetch{url: t.base + repo + object, size: size, into: sum}); err != nil {
		return err
	}
	if got := fmt.Sprintf("%x", sum.Sum(nil)); got != want && t.name != "discard" {
		return fmt.Errorf("%s of %s has the sha256 %s", object, repo, got)
	}
	return nil
}

// crash kills the server and starts it again with what it has on the disk.
func (t *task) crash() error {
	t.kill()
	c, err := t.start(t.ctx, t.name, t.dir)
	if err != nil {
		return errors.Join(errors.New("after it was killed"), err)
	}
	*t.contender = *c
	return nil
}

// mallocs returns how many objects this process has allocated.
func mallocs() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
}
