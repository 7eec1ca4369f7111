package pullthroughtest_test

import (
	"testing"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A host checks its own Store in one line.
func ExampleTestStore() {
	_ = func(t *testing.T) { // func TestMyStore(t *testing.T)
		pullthroughtest.TestStore(t, func(t *testing.T) pullthrough.Store { return memstore.New() })
	}
	// Output:
}
