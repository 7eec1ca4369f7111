//go:build linux

package dirstore_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
)

// calls counts what the store asks of the system from now on. "find" are the calls that
// open or stat something, those on the way to it as well; where nothing is there, the way may
// have been shorter.
func calls(s *dirstore.Store) map[string]int {
	n := make(map[string]int)
	var mu sync.Mutex
	s.Record(func(step dirstore.Step) error {
		mu.Lock()
		defer mu.Unlock()
		n["find"] += step.Walks
		switch step.Op {
		case "open", "stat", "look", "create", "lock", "count", "syncdir":
			n["find"]++
		}
		n[step.Op]++
		return nil
	})
	return n
}

// TestTheCallsOfAPut are few: the directories on the way are kept open.
func TestTheCallsOfAPut(t *testing.T) {
	s := open(t, scratch(t))
	put(t, s, other, manifestOf(image(1), "v1"))
	for i, tc := range []struct {
		name  string
		repo  pullthrough.Repo
		most  int // calls that open or stat
		syncs int // of files and directories
	}{
		{"a new repository", repo, 75, 16},
		{"a known repository", repo, 36, 11},
		{"a known repository, once more", repo, 36, 11},
	} {
		t.Run(tc.name, func(t *testing.T) {
			img := image(int64(10 + i))
			n := calls(s)
			put(t, s, tc.repo, manifestOf(img, fmt.Sprint("v", i)))
			s.SetProbe(nil)
			t.Log(n)
			assert.LessOrEqual(t, n["find"], tc.most)
			assert.LessOrEqual(t, n["sync"]+n["syncdir"], tc.syncs)
			assert.Equal(t, 3, n["rename"], "content, revision, tag")
			assert.Equal(t, 5, n["create"], "content; a link and a sidecar each of revision and tag")
		})
	}
	t.Run("an image of which all is stored but the manifest", func(t *testing.T) {
		img := image(20)
		for _, blob := range img.Blobs() {
			putBlob(t, s, repo, bytesOf(t, blob))
		}
		n := calls(s)
		put(t, s, repo, manifestOf(img, "stored"))
		s.SetProbe(nil)
		t.Log(n)
		assert.LessOrEqual(t, n["find"], 36)
	})
}

// TestTheSystemCallsOfAPut counts what the system sees, where strace can tell.
func TestTheSystemCallsOfAPut(t *testing.T) {
	trace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip(err)
	}
	log := filepath.Join(t.TempDir(), "log")
	child := childOf(t, "TestChildThatPuts", scratch(t))
	cmd := exec.CommandContext(t.Context(), trace, append([]string{"-f", "-e", "trace=file,desc", "-o", log}, child.Args...)...)
	cmd.Env = child.Env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("strace may not trace: %v: %s", err, out)
	}
	content, err := os.ReadFile(log)
	require.NoError(t, err)
	_, content, _ = bytes.Cut(content, []byte(mark+"0"))
	content, _, found := bytes.Cut(content, []byte(mark+"1"))
	require.True(t, found)
	finds := regexp.MustCompile(`(?m)^\d+ +(openat|newfstatat|fstat|statx|stat|open)\(`).FindAll(content, -1)
	assert.NotEmpty(t, finds)
	assert.LessOrEqual(t, len(finds)-1, 40, "%s", content) // the last one is the mark
}

const mark = "/nothing is here "

// TestChildThatPuts is the other process of a test, and nothing by itself.
func TestChildThatPuts(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		return
	}
	s := open(t, dir)
	put(t, s, repo, manifestOf(image(1), "v1"))
	_, _ = os.Stat(mark + "0")
	put(t, s, repo, manifestOf(image(2), "v2"))
	_, _ = os.Stat(mark + "1")
}
