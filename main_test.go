package pullthrough_test

import (
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	return string(b)
}

// heldPuts gives w a Store whose PutManifest waits between hold and release. release may
// be called twice.
func heldPuts(w *testkit.World) (hold func() (release func())) {
	var mu sync.Mutex
	var gate chan struct{}
	w.Store = &testkit.FaultyStore{Store: w.Mem, OnPutManifest: func() error {
		mu.Lock()
		g := gate
		mu.Unlock()
		if g != nil {
			<-g
		}
		return nil
	}}
	return func() func() {
		mu.Lock()
		defer mu.Unlock()
		g := make(chan struct{})
		gate = g
		return sync.OnceFunc(func() {
			mu.Lock()
			gate = nil
			mu.Unlock()
			close(g)
		})
	}
}
