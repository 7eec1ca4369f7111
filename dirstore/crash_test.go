//go:build unix

package dirstore_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

// crashes is how often the tests below kill a process: at random moments, and at
// points of [crashPoints], chosen at random, each of them at least once where tests may
// be long. CRASHES says another number, such as 500, and CRASH_SEED repeats the choices
// of the run that printed it.
func crashes(t *testing.T) (n int, r *rand.Rand) {
	t.Helper()
	number := func(name string, usual uint64) uint64 {
		given := os.Getenv(name)
		if given == "" {
			return usual
		}
		n, err := strconv.ParseUint(given, 10, 64)
		require.NoError(t, err)
		return n
	}
	seed := number("CRASH_SEED", rand.Uint64())
	t.Logf("CRASH_SEED=%d", seed)
	usual := uint64(16)
	if testkit.Long() {
		usual = max(50, uint64(len(crashPoints)))
	}
	return int(number("CRASHES", usual)), rand.New(rand.NewPCG(seed, 0))
}

// childPlan is what a child is to do with the directory.
type childPlan struct {
	Upstream string
	Seed     uint64
	Fill     pullthrough.FillMode
	MaxBytes int64
	Verify   bool
	Damaged  bool   // the directory has been spoiled
	Point    string // where it kills itself; "": it pulls at random until it is killed
	Times    int    // at the how manieth time that it comes there
}

const childPlanVar = "DIRSTORE_TEST_PLAN"

// TestChildThatCrashes is the other process of a test, and nothing by itself.
func TestChildThatCrashes(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		return
	}
	var plan childPlan
	require.NoError(t, json.Unmarshal([]byte(os.Getenv(childPlanVar)), &plan))
	fmt.Println("ready")
	fuse := &fuse{point: plan.Point, n: plan.Times}
	switch {
	case plan.Damaged:
		pullSteps(t, dir, plan.Upstream, 0, fuse.probe)
		return
	case plan.Point != "":
		everyStep(t, dir, plan.Upstream, fuse.probe)
		return
	}
	s := open(t, dir)
	s.MaxBytes, s.VerifyBlobs = plan.MaxBytes, plan.Verify
	pullAtRandom(plan, s)
}

// child is a process that shall be killed.
type child struct {
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan struct{} // closed when all that it says has been read
}

// startChild returns when the process is about to open the directory.
func startChild(t *testing.T, dir string, plan childPlan) *child {
	t.Helper()
	text, err := json.Marshal(plan)
	require.NoError(t, err)
	c := &child{cmd: childOf(t, "TestChildThatCrashes", dir), done: make(chan struct{})}
	c.cmd.Env = append(c.cmd.Env, childPlanVar+"="+string(text))
	out, err := c.cmd.StdoutPipe()
	require.NoError(t, err)
	c.cmd.Stderr = c.cmd.Stdout
	require.NoError(t, c.cmd.Start())
	said := bufio.NewReader(out)
	line, err := said.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ready\n", line)
	go func() {
		defer close(c.done)
		_, _ = said.WriteTo(&c.out)
	}()
	return c
}

// killed waits for the end, and reports whether it was SIGKILL.
func (c *child) killed() bool {
	<-c.done
	_ = c.cmd.Wait()
	status, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// TestCrashAtEachPoint kills processes at the points between two steps on the disk.
func TestCrashAtEachPoint(t *testing.T) {
	n, r := crashes(t)
	good, damaged := census(t)
	var found []string
	for point := range damaged {
		found = append(found, point)
	}
	for point := range good {
		if damaged[point] == 0 {
			found = append(found, point)
		}
	}
	found = slices.DeleteFunc(found, func(point string) bool { return slices.Contains(rarePoints, point) })
	require.ElementsMatch(t, crashPoints, found, "each step on the disk has a name, and each name is a step")

	var mu sync.Mutex
	kills, objects, violations := 0, 0, 0
	t.Run("at", func(t *testing.T) {
		points := slices.Clone(crashPoints)
		r.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
		for i := range n {
			plan := childPlan{Point: points[i%len(points)]}
			plan.Damaged = good[plan.Point] == 0
			// Rather early ones: they are quick, and leave more to be done.
			plan.Times = 1 + r.IntN(1+r.IntN(max(good[plan.Point], damaged[plan.Point])))
			t.Run(fmt.Sprint(plan.Point, " ", plan.Times), func(t *testing.T) {
				t.Parallel()
				v := crashAt(t, plan)
				mu.Lock()
				defer mu.Unlock()
				kills, objects, violations = kills+1, objects+v.objects, violations+v.violations
			})
		}
	})
	t.Logf("%d points, %d kills, %d objects checked, %d violations", min(n, len(crashPoints)), kills, objects, violations)
}

// census counts how often a process comes to each point, in a good directory and in
// one that has been spoiled.
func census(t *testing.T) (good, damaged map[string]int) {
	t.Helper()
	up := newCrowd(t)
	var inGood, inDamaged fuse
	dir := scratch(t)
	plantStaging(t, dir)
	everyStep(t, dir, up.URL, inGood.probe)
	dir = scratch(t)
	plantDamage(t, dir, up.URL)
	pullSteps(t, dir, up.URL, 0, inDamaged.probe)
	return inGood.seen, inDamaged.seen
}

func crashAt(t *testing.T, plan childPlan) *survey {
	t.Helper()
	v := &survey{t: t, dir: scratch(t), up: newCrowd(t)}
	plan.Upstream = v.up.URL
	// No two runs take the very same steps, so the last time may not come.
	for ; plan.Times > 0; plan.Times /= 2 {
		require.NoError(t, os.RemoveAll(v.dir))
		plantStaging(t, v.dir)
		if v.damaged = plan.Damaged; plan.Damaged {
			plantDamage(t, v.dir, v.up.URL)
		}
		c := startChild(t, v.dir, plan)
		if c.killed() {
			v.check()
			return v
		}
		require.True(t, c.cmd.ProcessState.Success(), "%s", c.out.String())
		if plan.Times == 1 && !plan.Damaged { // the census was there by chance: two pulls had stored the same thing
			plan.Damaged, plan.Times = true, 2
		}
	}
	require.Fail(t, "no process came to that point")
	return v
}

// TestCrashAtAnyMoment kills processes under load, one or two in a directory, at
// random moments from the very beginning on.
func TestCrashAtAnyMoment(t *testing.T) {
	n, r := crashes(t)
	v := &survey{t: t, dir: scratch(t), up: newCrowd(t)}
	kills := 0
	for kills < n && !t.Failed() {
		if r.IntN(3) == 0 { // all is to be stored anew
			require.NoError(t, os.RemoveAll(v.dir))
		}
		var running []*child
		for range 1 + r.IntN(2) {
			wait(r, 40*time.Millisecond)
			running = append(running, startChild(t, v.dir, childPlan{
				Upstream: v.up.URL, Seed: r.Uint64(), Verify: r.IntN(2) == 0,
				Fill:     []pullthrough.FillMode{pullthrough.FillLazy, pullthrough.FillBackground, pullthrough.FillEager}[r.IntN(3)],
				MaxBytes: []int64{0, 300 << 10, 1800 << 10}[r.IntN(3)],
			}))
		}
		for _, c := range running { // the second one may live for a while without the first
			wait(r, 120*time.Millisecond)
			require.NoError(t, c.cmd.Process.Kill())
			v.expect(c.killed(), "a process ended by itself: %v: %s", c.cmd.ProcessState, c.out.String())
			kills++
		}
		v.check()
		if r.IntN(2) == 0 { // something is to be stored anew
			evictSome(t, v.dir, r)
		}
	}
	t.Logf("%d kills, %d objects checked, %d violations", kills, v.objects, v.violations)
}

// wait makes the next moment any one.
func wait(r *rand.Rand, most time.Duration) { <-time.After(time.Duration(r.Int64N(int64(most)))) }

// evictSome leaves some of the images, with none of their uses known.
func evictSome(t *testing.T, dir string, r *rand.Rand) {
	t.Helper()
	s, err := dirstore.Open(dir)
	require.NoError(t, err)
	s.MaxBytes = 1 + r.Int64N(contentBytes(t, dir))
	require.NoError(t, s.Sweep(t.Context()))
	require.NoError(t, s.Close())
}
