package pullthroughtest_test

import (
	"net/http"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const leakChild = "PULLTHROUGHTEST_LEAK_CHILD"

func prepareLeakChild() {
	if os.Getenv(leakChild) != "" {
		pullthroughtest.SetLeakGrace(100 * time.Millisecond)
	}
}

// TestChildLeaks is what TestMainFailsOnLeftGoroutines runs in another process; here it does nothing.
func TestChildLeaks(t *testing.T) {
	if os.Getenv(leakChild) == "leak" {
		go func() { select {} }()
	}
}

func TestMainFailsOnLeftGoroutines(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mode string
		code int
	}{{"leak", 1}, {"clean", 0}} {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChildLeaks$")
		child.Env = append(os.Environ(), leakChild+"="+c.mode)
		output, _ := child.CombinedOutput() // the exit code tells
		assert.Equal(t, c.code, child.ProcessState.ExitCode(), string(output))
		if c.code != 0 {
			assert.Contains(t, string(output), "1 goroutines left by the tests")
			assert.Contains(t, string(output), "TestChildLeaks")
		}
	}
}

func TestDialGuard(t *testing.T) {
	for _, address := range []string{"192.0.2.1:80", "example.com:443", "0.0.0.0:80", "[2001:db8::1]:80", "127.0.0.1"} {
		_, err := pullthroughtest.DialLoopback(t.Context(), "tcp", address)
		assert.ErrorContains(t, err, "dial guard")
	}
	_, err := http.DefaultClient.Do(request(t, http.MethodGet, "http://192.0.2.1/"))
	assert.ErrorContains(t, err, "dial guard")
	up := newUpstream(t, pullthroughtest.Config{})
	resp, err := http.DefaultClient.Do(request(t, http.MethodGet, up.URL()+"/v2/"))
	require.NoError(t, err)
	assert.NoError(t, resp.Body.Close())
}
