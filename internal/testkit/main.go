package testkit

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// leakGrace is how long goroutines have to end after the last test.
var leakGrace = 5 * time.Second

// Main runs a package's tests and exits. Call it from TestMain. It first restricts http.DefaultTransport to loopback
// addresses. When the tests have passed, it fails the run if goroutines that they started are still there 5 s later.
func Main(m *testing.M) {
	if transport, ok := http.DefaultTransport.(*http.Transport); ok {
		transport.DialContext = pullthroughtest.DialLoopback
		transport.Proxy = nil
	}
	before := goroutines()
	code := m.Run()
	if code == 0 {
		code = checkLeaks(before)
	}
	os.Exit(code)
}

func checkLeaks(before map[string]string) (code int) {
	if transport, ok := http.DefaultTransport.(*http.Transport); ok {
		transport.CloseIdleConnections()
	}
	deadline := time.Now().Add(leakGrace)
	for {
		leaked := newSince(before)
		if len(leaked) == 0 {
			return 0
		}
		if time.Now().After(deadline) {
			fmt.Fprintf(os.Stderr, "%d goroutines left by the tests:\n\n%s\n", len(leaked), strings.Join(leaked, "\n\n"))
			return 1
		}
		runtime.Gosched()
		time.Sleep(time.Millisecond)
	}
}

// newSince returns the stacks of goroutines that were not there before and do not belong to the testing machinery.
func newSince(before map[string]string) []string {
	var stacks []string
	for id, stack := range goroutines() {
		if _, ok := before[id]; !ok && !isRuntimeOwned(stack) {
			stacks = append(stacks, stack)
		}
	}
	return stacks
}

// isRuntimeOwned reports whether the goroutine belongs to signal handling (testing under -fuzz), profiling, finalizers
// or the test runner. These start late and stay.
func isRuntimeOwned(stack string) bool {
	for _, owner := range []string{
		"\nos/signal.", "\nruntime/pprof.", "\nruntime/trace.", "\ntesting.", "created by runtime",
		"created by os/signal", "created by testing.",
	} {
		if strings.Contains(stack, owner) {
			return true
		}
	}
	return false
}

// goroutines returns the stacks of all goroutines. The keys are their ids, like "goroutine 7".
func goroutines() map[string]string {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	stacks := map[string]string{}
	for stack := range bytes.SplitSeq(buf, []byte("\n\n")) {
		id, _, _ := strings.Cut(string(stack), " [")
		stacks[id] = strings.TrimSpace(string(stack))
	}
	return stacks
}
