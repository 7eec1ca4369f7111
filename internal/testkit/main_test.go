package testkit

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

const leakChild = "TESTKIT_LEAK_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(leakChild) != "" {
		leakGrace = 100 * time.Millisecond // the child is to fail
	}
	Main(m)
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
