package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
		for _, name := range inOrder(names, n) {
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

// inOrder returns the names in the order of a round: every second one is the one before,
// backwards, and nobody is always the first.
func inOrder(names []string, round int) []string {
	at := round / 2 % len(names)
	ordered := slices.Concat(names[at:], names[:at])
	if round%2 == 1 {
		slices.Reverse(ordered)
	}
	return ordered
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
