package repeat_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/repeat"
)

// journal is a log whose lines have no time, and the clock of its handler.
type journal struct {
	bytes.Buffer
	*slog.Logger
	now time.Time
}

func newJournal(names ...string) *journal {
	j := &journal{now: time.Unix(1_700_000_000, 0)}
	text := slog.NewTextHandler(&j.Buffer, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	j.Logger = slog.New(repeat.New(text, func() time.Time { return j.now }, names...))
	return j
}

// take returns the lines since it was called last.
func (j *journal) take() []string {
	defer j.Reset()
	return strings.FieldsFunc(j.String(), func(r rune) bool { return r == '\n' })
}

func TestACauseIsLoggedOnceAMinuteWithItsNumber(t *testing.T) {
	j := newJournal("host")
	for i := range 5 {
		j.Warn("failed", "host", "a.test", "name", i)
		j.now = j.now.Add(time.Second)
	}
	assert.Equal(t, []string{"level=WARN msg=failed host=a.test name=0"}, j.take())
	j.now = j.now.Add(repeat.Pause)
	j.Warn("failed", "host", "a.test", "name", 5)
	j.Warn("failed", "host", "a.test", "name", 6)
	assert.Equal(t, []string{"level=WARN msg=failed host=a.test name=5 repeats=4"}, j.take())
	j.now = j.now.Add(repeat.Pause)
	j.Warn("failed", "host", "a.test")
	j.now = j.now.Add(repeat.Pause)
	j.Warn("failed", "host", "a.test")
	assert.Equal(t, []string{"level=WARN msg=failed host=a.test repeats=1", "level=WARN msg=failed host=a.test"}, j.take())
}

func TestAnotherCauseHasItsOwnLine(t *testing.T) {
	j := newJournal("host", "status")
	j.Warn("failed", "host", "a.test", "status", 500)
	j.Warn("failed", "host", "b.test", "status", 500)
	j.Warn("failed", "host", "a.test", "status", 502)
	j.Warn("failed again", "host", "a.test", "status", 500)
	j.Error("failed", "host", "a.test", "status", 500)
	j.With("by", "me").Error("failed", "host", "a.test", "status", 500)
	j.WithGroup("g").Error("failed", "host", "a.test", "status", 500)
	assert.Len(t, j.take(), 5)
}

func TestAClockThatWasSetBackSilencesNothing(t *testing.T) {
	j := newJournal()
	j.Warn("failed")
	j.now = j.now.Add(-time.Hour)
	j.Warn("failed")
	assert.Len(t, j.take(), 2)
}

func TestCausesWithoutEndAreForgotten(t *testing.T) {
	j := newJournal("host")
	for i := range 2000 {
		j.Warn("failed", "host", fmt.Sprint(i))
	}
	assert.Len(t, j.take(), 2000)
	j.Warn("failed", "host", "1999")
	assert.Empty(t, j.take())
	j.Warn("failed", "host", "0")
	assert.Len(t, j.take(), 1, "it was forgotten")
}

func TestManyLogAtOnce(t *testing.T) {
	j := newJournal()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				j.Warn("failed")
			}
		})
	}
	all.Wait()
	assert.Len(t, j.take(), 1)
	j.now = j.now.Add(repeat.Pause)
	j.Warn("failed")
	assert.Equal(t, []string{"level=WARN msg=failed repeats=799"}, j.take())
	assert.False(t, j.Enabled(context.Background(), slog.LevelDebug), "the next handler says what is enabled")
}
