//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package dirstore_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestStepsAreLocked against other processes: nobody can be alone while a name is
// made, and nobody can make one while names are removed.
func TestStepsAreLocked(t *testing.T) {
	dir, up := scratch(t), newCrowd(t)
	var mu sync.Mutex
	making, removing := 0, 0
	everyStep(t, dir, up.URL, func(op, name string) error {
		point := crashPoint(op, name)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case strings.HasPrefix(point, "rename "):
			making++
			assert.False(t, couldLock(t, dir, syscall.LOCK_EX), "%s while somebody may remove", point)
		case op == "aside", op == "remove" && strings.HasSuffix(point, " content"):
			removing++
			assert.False(t, couldLock(t, dir, syscall.LOCK_SH), "%s while somebody may commit", point)
		}
		return nil
	})
	require.NotZero(t, making)
	require.NotZero(t, removing)
}

// couldLock reports whether another process could have the lock now.
func couldLock(t *testing.T, dir string, how int) bool {
	f, err := os.Open(filepath.Join(dir, "pullthrough/lock"))
	if !assert.NoError(t, err) {
		return true
	}
	defer func() { _ = f.Close() }()
	err = syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
	if err != nil {
		assert.ErrorIs(t, err, syscall.EWOULDBLOCK)
	}
	return err == nil
}
