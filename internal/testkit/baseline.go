package testkit

import (
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// heapSlack is what a test may leave on the heap: pools and the logs of tests.
const heapSlack = 24 << 20

// Baseline checks at the very end of the test, after all that was cleaned up
// since, that goroutines, descriptors and heap are what they were. It is called
// before anything else.
func Baseline(t *testing.T) {
	t.Helper()
	goroutines, files := runtime.NumGoroutine(), OpenFiles(t)
	if settled.Load() == 0 {
		settled.Store(InUse())
	}
	t.Cleanup(func() {
		if t.Failed() {
			return // what is left then is no news
		}
		assert.Eventually(t, func() bool {
			return runtime.NumGoroutine() <= goroutines+1 && len(OpenFiles(t)) <= len(files) // Eventually has one of its own
		}, 10*time.Second, 5*time.Millisecond, "goroutines or descriptors are left")
		if t.Failed() {
			t.Logf("goroutines %d, before %d; descriptors %q, before %q", runtime.NumGoroutine(), goroutines, OpenFiles(t), files)
		}
		assertSettled(t)
	})
}

// settled is what was in use when that was measured last.
var settled atomic.Uint64

// assertSettled checks what is in use, and measures it only where there is, with garbage, more
// than there may be: with two collections for each test the collector takes most of the time.
func assertSettled(t *testing.T) {
	most := settled.Load() + heapSlack
	if held() < most {
		return
	}
	now := InUse()
	assert.Less(t, now, most, "heap is left by this test, or by those before it")
	settled.Store(now)
}

// OpenFiles are the files and sockets that the process has open.
func OpenFiles(t *testing.T) (open []string) {
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

// InUse is heap and stacks, without garbage.
func InUse() uint64 {
	runtime.GC()
	runtime.GC() // what pools keep goes with the second
	return held()
}

// held is heap and stacks, with garbage.
func held() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// Allocated runs f and returns how much memory that took, garbage included, and the
// upstream's share too.
func Allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
