//go:build unix

package dirstore_test

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// killedPull is what a child is to pull before it kills itself.
type killedPull struct {
	Upstream, Digest string
	Until            int64 // so many bytes, then it is over
}

// TestChildThatIsKilledInAPull is the other process of a test, and nothing by itself.
func TestChildThatIsKilledInAPull(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		return
	}
	var plan killedPull
	require.NoError(t, json.Unmarshal([]byte(os.Getenv(childPlanVar)), &plan))
	p := newProxy(open(t, dir), plan.Upstream, pullthrough.FillLazy, pullthrough.Policy{BlobsFirst: true})
	b, err := p.Blob(t.Context(), pullthrough.Request{Repo: repo, Ref: plan.Digest})
	require.NoError(t, err)
	_, err = io.CopyN(io.Discard, b.Body, plan.Until)
	require.NoError(t, err)
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// killPull has a process pull until n bytes have come, and be killed. Upstream sends no more.
func killPull(t *testing.T, dir string, up *pullthroughtest.Upstream, layer *pullthroughtest.Blob, n int64) {
	t.Helper()
	from := int64(0)
	for _, s := range noted(t, dir) {
		from = max(from, s)
	}
	heal := up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/* 2*", Stall: t.Context().Done(), StallAfter: new(n - from)})
	defer heal()
	plan, err := json.Marshal(killedPull{up.URL, layer.Digest.String(), n})
	require.NoError(t, err)
	cmd := childOf(t, "TestChildThatIsKilledInAPull", dir)
	cmd.Env = append(cmd.Env, childPlanVar+"="+string(plan))
	out, err := cmd.CombinedOutput()
	exit, ok := err.(*exec.ExitError)
	require.True(t, ok, "%v: %s", err, out)
	require.Equal(t, syscall.SIGKILL, exit.Sys().(syscall.WaitStatus).Signal(), "%s", out)
}

// noted are the ends of the stretches that have been noted.
func noted(t *testing.T, dir string) (ends []int64) {
	t.Helper()
	notes, err := filepath.Glob(filepath.Join(dir, "pullthrough/partial/*/note"))
	require.NoError(t, err)
	for _, name := range notes {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		for line := range strings.Lines(string(text)) {
			var from, n int64
			if k, _ := fmt.Sscanf(line, "%d %d\n", &from, &n); k == 2 {
				ends = append(ends, from+n)
			}
		}
	}
	return ends
}

// TestPullsThatAreKilled cost upstream next to nothing: with three of them a blob is sent
// once, and a MiB for each.
func TestPullsThatAreKilled(t *testing.T) {
	size := int64(24 << 20)
	if gib := os.Getenv("KILLED_PULL_BYTES"); gib != "" { // such as 1073741824
		_, err := fmt.Sscan(gib, &size)
		require.NoError(t, err)
	}
	dir, up := scratch(t), pullthroughtest.New(t, pullthroughtest.Config{})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1, LayerSize: size})
	up.Push(upstreamName(repo), "1", img)
	layer := img.Layers[0]
	for i := range int64(3) {
		n := size/4*(i+1) + 12345*i
		killPull(t, dir, up, layer, n)
		require.NotEmpty(t, noted(t, dir))
	}
	s := open(t, dir)
	p := newProxy(s, up.URL, pullthrough.FillLazy, pullthrough.Policy{BlobsFirst: true})
	require.NoError(t, pullBlob(t.Context(), p, repo, layer.Digest))
	require.NoError(t, shutDown(t.Context(), p))
	var sent int64
	for i, r := range up.Requests() {
		sent += r.Bytes
		assert.Equal(t, i > 0, r.Range != "", "%s", r.Range)
	}
	t.Logf("upstream has sent %d bytes of %d: %.4f", sent, size, float64(sent)/float64(size))
	assert.LessOrEqual(t, sent, size+3<<20)
	assert.Empty(t, noted(t, dir))
	b, err := s.Blob(t.Context(), repo, layer.Digest)
	require.NoError(t, err)
	require.NoError(t, readWhole(b, layer.Digest))
	assertSound(t, dir)
	assert.Empty(t, staged(t, dir))
}

// TestWhatIsKeptCountsInMaxBytes, and has a tenth of it at most.
func TestWhatIsKeptCountsInMaxBytes(t *testing.T) {
	for _, c := range []struct {
		max  int64
		left int
	}{{0, 1}, {100 << 20, 1}, {50 << 20, 0}} {
		t.Run(fmt.Sprint(c.max), func(t *testing.T) {
			dir := scratch(t)
			s := open(t, dir)
			s.MaxBytes = c.max
			require.NoError(t, s.Sweep(t.Context()))
			content := noise(3, 6<<20)
			d := descriptor(content).Digest
			stage, err := s.StageBlob(t.Context(), repo, d)
			require.NoError(t, err)
			stage.(interface{ KeepAs(string, int64) }).KeepAs("k", 12<<20)
			for off := int64(0); off < int64(len(content)); off += 100_000 {
				_, err = stage.WriteAt(content[off:min(off+100_000, int64(len(content)))], off)
				require.NoError(t, err)
			}
			require.NoError(t, stage.(interface{ Keep() error }).Keep())
			s.WaitForSweep()
			assert.Len(t, files(t, filepath.Join(dir, "pullthrough/partial")), 2*c.left)
			require.NoError(t, s.Sweep(t.Context()))
			assert.Equal(t, int64(c.left*(6<<20)), countedIn(t, dir))
			if c.left == 0 {
				return
			}
			again, err := s.ResumeBlob(t.Context(), repo, d, "k")
			require.NoError(t, err)
			assert.Equal(t, int64(0), countedIn(t, dir))
			size, have := again.(interface{ Have() (int64, [][2]int64) }).Have()
			assert.EqualValues(t, 12<<20, size)
			assert.Equal(t, [][2]int64{{0, 6 << 20}}, have)
			require.NoError(t, again.Abort())
			assert.Empty(t, files(t, filepath.Join(dir, "pullthrough/partial")))
			assert.Empty(t, staged(t, dir))
		})
	}
}

// TestOpenTidiesWhatIsKept: what is too old or too much, or is nothing whole.
func TestOpenTidiesWhatIsKept(t *testing.T) {
	dir := scratch(t)
	write(t, "half", filepath.Join(dir, "pullthrough/partial/DEAD/data"))
	s, err := dirstore.Open(dir)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	assert.Empty(t, files(t, filepath.Join(dir, "pullthrough/partial")))
}

// TestWhatAKilledProcessLeftWasNotCounted, and so is not taken off when it is resumed.
func TestWhatAKilledProcessLeftWasNotCounted(t *testing.T) {
	dir := scratch(t)
	s := open(t, dir)
	s.MaxBytes = 200 << 20
	require.NoError(t, s.Sweep(t.Context()))
	putBlob(t, s, repo, noise(4, 1000))
	before := countedIn(t, dir)
	assert.Positive(t, before)
	content := noise(3, 6<<20)
	d := descriptor(content).Digest
	stage, err := s.StageBlob(t.Context(), repo, d)
	require.NoError(t, err)
	stage.(interface{ KeepAs(string, int64) }).KeepAs("k", 12<<20)
	for off := 0; off < len(content); off += 1 << 20 {
		fill(t, stage, content, off, off+1<<20)
	}
	killed := filepath.Join(scratch(t), "copy") // as the directory is when the process is killed now
	require.NoError(t, os.CopyFS(killed, os.DirFS(dir)))
	require.NoError(t, stage.Abort())

	again, err := open(t, killed).ResumeBlob(t.Context(), repo, d, "k")
	require.NoError(t, err)
	assert.Equal(t, before, countedIn(t, killed))
	require.NoError(t, again.Abort())
}

// countedIn is what the directory's Stores have counted.
func countedIn(t *testing.T, dir string) int64 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "pullthrough/size"))
	require.NoError(t, err)
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	require.NoError(t, err)
	return n
}
