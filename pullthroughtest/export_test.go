package pullthroughtest

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
)

// MatchPattern is tested by itself, since a wrong pattern makes other tests pass.
var MatchPattern = matchPattern

// StoreChecks are the names of all checks of TestStore.
func StoreChecks() (names []string) {
	for _, c := range storeChecks() {
		names = append(names, c.name)
	}
	return names
}

// CheckStore runs one check of TestStore, and returns what it complains about.
func CheckStore(t *testing.T, name string, store pullthrough.Store, patience time.Duration) []string {
	t.Helper()
	for _, c := range storeChecks() {
		if c.name != name {
			continue
		}
		if c.needs != "" && !storeHas(store, c.needs) {
			t.Fatalf("the check %q needs a %s", name, c.needs)
		}
		r := &recordingReporter{T: t}
		var wg sync.WaitGroup
		wg.Go(func() { c.run(&storeTest{reporter: r, store: store, patience: patience, rule: c.rule}) })
		wg.Wait()
		return r.complaints
	}
	t.Fatalf("there is no check %q", name)
	return nil
}

// recordingReporter keeps failures to itself. A Fatalf ends the goroutine.
type recordingReporter struct {
	*testing.T

	mu         sync.Mutex
	complaints []string
}

func (r *recordingReporter) Logf(string, ...any) {}

func (r *recordingReporter) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.complaints = append(r.complaints, fmt.Sprintf(format, args...))
}

func (r *recordingReporter) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}
