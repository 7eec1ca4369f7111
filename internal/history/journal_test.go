package history_test

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// lastLines is how many lines of an object, and of the world, a violation shows.
const lastLines = 24

// journal is what happened last to each object, for people.
type journal struct {
	began time.Time
	mu    sync.Mutex
	lines map[string][]string
}

// everything is the key of what concerns no single object.
const everything = ""

func newJournal() *journal { return &journal{began: time.Now(), lines: map[string][]string{}} }

// note adds a line for the object, or for everything.
func (j *journal) note(key, format string, args ...any) {
	line := fmt.Sprintf("%7.3fs  %s", time.Since(j.began).Seconds(), fmt.Sprintf(format, args...))
	j.mu.Lock()
	defer j.mu.Unlock()
	lines := append(j.lines[key], line)
	j.lines[key] = lines[max(0, len(lines)-lastLines):]
}

// last returns what happened last to the object and to everything.
func (j *journal) last(key string) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return fmt.Sprintf("the world:\n  %s\n%s:\n  %s",
		strings.Join(j.lines[everything], "\n  "), key, strings.Join(j.lines[key], "\n  "))
}
