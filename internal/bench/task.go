package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"time"
)

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
