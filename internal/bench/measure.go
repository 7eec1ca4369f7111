package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// settleTime is how long a round waits for work that goes on after the last byte, so that
// it is measured too.
const settleTime = 200 * time.Millisecond

// bench is one run of the program.
type bench struct {
	fakeecr string
	data    bool   // fakeecr supports -data
	dir     string // directory of all files
	up      *pullthroughtest.Upstream
	delay   atomic.Int64                     // delay of each answer of up, a time.Duration
	images  map[int64]*pullthroughtest.Image // by the size of their layer
}

func newBench(ctx context.Context, fakeecr string) (*bench, error) {
	dir, err := os.MkdirTemp("", "pullthrough-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{fakeecr: fakeecr, dir: dir, images: map[int64]*pullthroughtest.Image{}}
	b.up, err = pullthroughtest.Start(pullthroughtest.Config{Auth: pullthroughtest.Bearer, Handler: b.delayAnswer})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	b.data = true
	if p, err := b.startOurs(ctx); err == nil {
		p.end()
	} else {
		b.data = false
	}
	return b, nil
}

func (b *bench) close() {
	b.up.Close()
	_ = os.RemoveAll(b.dir) // a temporary directory
}

// delayAnswer delays an answer of the upstream. It does not answer itself.
func (b *bench) delayAnswer(_ http.ResponseWriter, r *http.Request) bool {
	if delay := time.Duration(b.delay.Load()); delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
		}
	}
	return false
}

// startOurs starts a fakeecr with an empty store.
func (b *bench) startOurs(ctx context.Context) (*process, error) {
	args := []string{"-listen", "127.0.0.1:0", "-rule", prefix + "=" + b.up.URL()}
	if b.data {
		dir, err := os.MkdirTemp(b.dir, "data-")
		if err != nil {
			return nil, err
		}
		args = append(args, "-data", dir)
	}
	return start(ctx, b.fakeecr, args...)
}

func (b *bench) startPlain(ctx context.Context) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return start(ctx, self, "-plain", b.dir)
}

// result is the result of a scenario. ours, bound and ratios have one value for each
// round.
type result struct {
	scenario
	ours, bound   []time.Duration
	ratios        []float64 // of the times
	requests      []int     // requests that ours made to the upstream
	bytes         []float64 // bytes from the upstream to ours, as a multiple of the content's size
	cpu, boundCPU float64   // seconds per round; 0: unknown, or no process
	rest, peak    int64     // resident bytes of ours: before the rounds, and the peak
}

func (b *bench) measureAll(ctx context.Context, chosen []scenario, rounds int) ([]*result, error) {
	var results []*result
	for _, s := range chosen {
		if rounds > 0 {
			s.rounds = rounds
		}
		r, err := b.measure(ctx, s)
		if err != nil {
			return results, fmt.Errorf("%s: %w", s.name, err)
		}
		results = append(results, r)
	}
	return results, nil
}

// rig is the servers and the client of a scenario.
type rig struct {
	*bench
	client *client
	ours   *process
	plain  *process
	size   int64 // bytes that a round gets from the upstream if nothing is stored
}

// repo returns the URL under which ours serves one of the upstream's repositories.
func (g *rig) repo(name string) string { return g.ours.url + "/v2/" + prefix + "/" + name }

func (b *bench) measure(ctx context.Context, s scenario) (_ *result, err error) {
	b.delay.Store(int64(s.delay))
	g := &rig{bench: b, client: newClient("")}
	defer g.client.CloseIdleConnections()
	if g.plain, err = b.startPlain(ctx); err != nil {
		return nil, err
	}
	defer g.plain.end()
	if g.ours, err = b.startOurs(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if g.ours != nil {
			g.ours.end()
		}
	}()
	job, err := s.prepare(g)
	if err != nil {
		return nil, err
	}
	time.Sleep(settleTime)
	g.ours.resetPeak()
	r := &result{scenario: s, rest: g.ours.peak()}
	for n := range s.rounds {
		if s.fresh && n > 0 {
			g.ours.end()
			if g.ours, err = b.startOurs(ctx); err != nil {
				return nil, err
			}
		}
		if err := r.round(ctx, g, job, n); err != nil {
			return nil, err
		}
	}
	r.cpu /= float64(s.rounds)
	r.boundCPU /= float64(s.rounds)
	return r, nil
}

// round measures ours and the bound. Their order alternates between rounds.
func (r *result) round(ctx context.Context, g *rig, job job, n int) error {
	if job.before != nil {
		job.before(n)
	}
	for i := range 2 {
		if err := ctx.Err(); err != nil {
			return err
		}
		if (i+n)%2 == 0 {
			if err := r.roundOfOurs(g, job, n); err != nil {
				return err
			}
			continue
		}
		before := g.plain.cpu()
		start := time.Now()
		if err := job.bound(n); err != nil {
			return fmt.Errorf("bound: %w", err)
		}
		r.bound = append(r.bound, time.Since(start))
		if job.plain {
			r.boundCPU += g.plain.cpu() - before
		}
	}
	r.ratios = append(r.ratios, r.ours[n].Seconds()/r.bound[n].Seconds())
	return nil
}

func (r *result) roundOfOurs(g *rig, job job, n int) error {
	g.up.Reset()
	before := g.ours.cpu()
	start := time.Now()
	if err := job.ours(n); err != nil {
		return err
	}
	r.ours = append(r.ours, time.Since(start))
	time.Sleep(settleTime)
	r.cpu += g.ours.cpu() - before
	r.peak = max(r.peak, g.ours.peak())
	requests := g.up.Requests()
	var bytes int64
	for _, q := range requests {
		bytes += q.Bytes
	}
	r.requests = append(r.requests, len(requests))
	r.bytes = append(r.bytes, float64(bytes)/float64(g.size))
	return nil
}
