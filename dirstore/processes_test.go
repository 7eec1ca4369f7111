//go:build unix

package dirstore_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// pulledImage is what a client got for a tag.
type pulledImage struct {
	repo   pullthrough.Repo
	digest digest.Digest
}

// together has 64 clients pull three tags each from the processes, and returns what
// they got, all of it right.
func together(t *testing.T, processes ...*serving) map[pulledImage]bool {
	t.Helper()
	clients := make([]httpClient, len(processes))
	for i, p := range processes {
		clients[i] = newClient(t, p.url)
	}
	var mu sync.Mutex
	got := make(map[pulledImage]bool)
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for worker := range 64 {
		wg.Go(func() {
			<-begin
			c := clients[worker%len(clients)]
			all := crowd()
			for _, i := range rand.Perm(len(all))[:3] {
				d, err := c.pull(t.Context(), all[i].repo, all[i].tag)
				assert.NoError(t, err)
				mu.Lock()
				got[pulledImage{all[i].repo, d}] = true
				mu.Unlock()
			}
		})
	}
	close(begin)
	wg.Wait()
	return got
}

// TestTwoProcesses under 64 clients: each asks upstream once for a blob, at most,
// and when both have ended a third process has all that they served.
func TestTwoProcesses(t *testing.T) {
	for _, fill := range []pullthrough.FillMode{pullthrough.FillLazy, pullthrough.FillBackground, pullthrough.FillEager} {
		t.Run(fmt.Sprint("fill=", fill), func(t *testing.T) {
			dir, up := scratch(t), newCrowd(t)
			plan := childPlan{Upstream: up.URL, Fill: fill}
			first := serve(t, dir, plan)
			plan.Upstream = otherName(up.URL)
			second := serve(t, dir, plan)
			got := together(t, first, second)
			tags := lastTags(t, second)
			first.end()
			second.end()
			assertAskedOnceEach(t, up)
			up.Close()

			v := &survey{t: t, dir: dir}
			found := files(t, dir)
			v.files(found)
			v.answers(open(t, dir), found)
			third := serve(t, dir, plan)
			c := newClient(t, third.url)
			for tag, want := range tags {
				d, err := c.pull(t.Context(), tag.repo, tag.ref)
				assert.NoError(t, err)
				assert.Equal(t, want, d, "%s is what was served last", tag)
			}
			for img := range got {
				_, err := c.pull(t.Context(), img.repo, img.digest.String())
				assert.NoError(t, err)
			}
			third.end()
			assert.Empty(t, staged(t, dir))
		})
	}
}

// tagOf is a tag of a repository.
type tagOf struct {
	repo pullthrough.Repo
	ref  string
}

// lastTags is what the tags are in the end.
func lastTags(t *testing.T, p *serving) map[tagOf]digest.Digest {
	t.Helper()
	last := make(map[tagOf]digest.Digest)
	c := newClient(t, p.url)
	for _, tag := range crowd() {
		d, err := c.pull(t.Context(), tag.repo, tag.tag)
		require.NoError(t, err)
		last[tagOf{tag.repo, tag.tag}] = d
	}
	return last
}

// assertAskedOnceEach counts by process: each has another name for upstream.
func assertAskedOnceEach(t *testing.T, up *pullthroughtest.Upstream) {
	t.Helper()
	times, hosts := make(map[string]int), make(map[string]bool)
	for _, r := range up.Requests() {
		if hosts[r.Host] = true; strings.Contains(r.Path, "/blobs/") {
			times[r.Host+" "+r.String()]++
		}
	}
	assert.Len(t, hosts, 2)
	require.NotEmpty(t, times)
	for line, n := range times {
		assert.Equal(t, 1, n, line)
	}
}

// TestOneProcessEvictsWhileTheOtherPulls: nobody's pull fails, and what is left is
// whole.
func TestOneProcessEvictsWhileTheOtherPulls(t *testing.T) {
	dir, up := scratch(t), newCrowd(t)
	evicting := serve(t, dir, childPlan{Upstream: up.URL, MaxBytes: 200 << 10, Fill: pullthrough.FillEager})
	pulling := serve(t, dir, childPlan{Upstream: up.URL, Verify: true})
	for range 3 {
		together(t, evicting, pulling, pulling)
	}
	evicting.end()
	pulling.end()
	most, times := 0, make(map[string]int)
	for _, line := range up.Log() {
		if times[line]++; strings.Contains(line, "/blobs/") {
			most = max(most, times[line])
		}
	}
	assert.Greater(t, most, 2, "something was evicted and pulled again")
	v := &survey{t: t, dir: dir, up: up}
	v.check()
}
