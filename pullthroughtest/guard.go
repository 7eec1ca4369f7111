package pullthroughtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// connKey is the context key of a request's connection.
type connKey struct{}

func withConn(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, conn)
}

// DialLoopback dials like a zero net.Dialer, but only literal loopback addresses and localhost. Tests use it as the
// DialContext of a transport. It is safe for concurrent use.
func DialLoopback(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial guard: %w", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && !ip.IsLoopback() {
		return nil, fmt.Errorf("dial guard: %s is not a loopback address", address)
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, network, address)
}

// leakGrace is how long goroutines have to end after the last test.
var leakGrace = 5 * time.Second

// Main runs a package's tests and exits. Call it from TestMain. It first restricts http.DefaultTransport to loopback
// addresses. When the tests have passed, it fails the run if goroutines that they started are still there 5 s later.
func Main(m *testing.M) {
	if transport, ok := http.DefaultTransport.(*http.Transport); ok {
		transport.DialContext = DialLoopback
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
