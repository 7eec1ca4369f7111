package testkit

import (
	"os"
	"testing"
)

// longVar is the one variable that asks for what takes long. .ci/run sets it.
const longVar = "PULLTHROUGH_LONG"

// Long reports whether the tests may take long: more rounds, larger sizes.
func Long() bool { return os.Getenv(longVar) != "" }

// OnlyLong skips a test that takes long, unless such tests are asked for.
func OnlyLong(t testing.TB) {
	t.Helper()
	if !Long() {
		t.Skip("this takes long: " + longVar + "=1 runs it")
	}
}
