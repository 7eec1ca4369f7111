package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
)

// terminal is one that is as tall as it needs to be. It knows what the console makes
// use of, and nothing else.
type terminal struct {
	t      *testing.T
	mu     sync.Mutex
	width  int
	rows   []string
	row    int
	column int
	writes int
}

func (m *terminal) size() (width, height int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.width, 24
}

func (m *terminal) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	for text := string(p); text != ""; {
		if rest, ok := strings.CutPrefix(text, "\x1b["); ok {
			n := strings.IndexAny(rest, "AJK")
			if n < 0 {
				assert.Fail(m.t, "unknown sequence", "%q", text)
				return len(p), nil
			}
			m.command(rest[n], rest[:n])
			text = rest[n+1:]
			continue
		}
		m.put(text[0])
		text = text[1:]
	}
	return len(p), nil
}

func (m *terminal) command(letter byte, number string) {
	m.grow()
	switch letter {
	case 'A':
		n, err := strconv.Atoi(number)
		assert.NoError(m.t, err)
		m.row -= n
		assert.GreaterOrEqual(m.t, m.row, 0, "above the screen")
	case 'K':
		m.rows[m.row] = m.rows[m.row][:min(m.column, len(m.rows[m.row]))]
	case 'J':
		assert.Zero(m.t, m.column)
		m.rows = append(m.rows[:m.row], "")
	}
}

func (m *terminal) put(c byte) {
	m.grow()
	switch c {
	case '\r':
		m.column = 0
	case '\n':
		m.row, m.column = m.row+1, 0
	default:
		line := []byte(fmt.Sprintf("%-*s", m.column+1, m.rows[m.row]))
		line[m.column] = c
		m.rows[m.row] = string(line)
		m.column++
	}
	m.grow()
}

func (m *terminal) grow() {
	for len(m.rows) <= m.row {
		m.rows = append(m.rows, "")
	}
}

func (m *terminal) screen() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Split(strings.TrimRight(strings.Join(m.rows, "\n"), "\n"), "\n")
}

func newTerminal(t *testing.T) (*console, *terminal) {
	m := &terminal{t: t, width: 80}
	return &console{out: m, size: m.size}, m
}

func TestTheLogScrollsAboveTheProgress(t *testing.T) {
	c, m := newTerminal(t)
	fmt.Fprintln(c, "first")
	c.show([]string{"one [===>    ]", "two [=>      ]"})
	fmt.Fprintln(c, "second")
	fmt.Fprintln(c, "third, which is longer than what was there")
	assert.Equal(t, []string{"first", "second", "third, which is longer than what was there", "one [===>    ]", "two [=>      ]"}, m.screen())
	c.show([]string{"one [=>]"})
	assert.Equal(t, []string{"first", "second", "third, which is longer than what was there", "one [=>]"}, m.screen())
	writes := m.writes
	c.show([]string{"one [=>]"})
	assert.Equal(t, writes, m.writes, "nothing is written when nothing has changed")
	c.show(nil)
	fmt.Fprintln(c, "last")
	assert.Equal(t, []string{"first", "second", "third, which is longer than what was there", "last"}, m.screen())
}

// A terminal that has become narrower has broken our lines.
func TestAWindowThatShrinks(t *testing.T) {
	c, m := newTerminal(t)
	fmt.Fprintln(c, "log")
	c.show([]string{strings.Repeat("x", 70)})
	m.width = 40
	m.rows = []string{"log", strings.Repeat("x", 40), strings.Repeat("x", 30), ""} // as terminals do
	m.row = 3
	c.show([]string{"y"})
	assert.Equal(t, []string{"log", "y"}, m.screen())
}

// The loop draws five times a second, cleans up at its end and has then ended.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := newTerminal(t)
		var began, asked atomic.Int64 // nanoseconds, times
		began.Store(time.Now().UnixNano())
		end := c.start(func() []pullthrough.Download {
			asked.Add(1)
			since := time.Unix(0, began.Load())
			d := alpine(int64(time.Since(since).Seconds()*mib), 4*mib)
			d.Began = since
			return []pullthrough.Download{d}
		})
		fmt.Fprintln(c, "log")
		time.Sleep(2 * time.Second) // of the bubble's clock
		synctest.Wait()
		assert.InDelta(t, 10, asked.Load(), 1)
		screen := m.screen()
		require.Len(t, screen, 2, screen)
		assert.Equal(t, "log", screen[0])
		assert.Regexp(t, `^docker-hub/library/alpine@4abcf2064abc +\[=+> +\] +(45|50)% +1.0 MiB/s$`, screen[1])
		time.Sleep(2500 * time.Millisecond)
		synctest.Wait()
		assert.Equal(t, []string{"log"}, m.screen(), "it has ended")
		began.Store(time.Now().UnixNano())
		time.Sleep(time.Second)
		synctest.Wait()
		assert.Len(t, m.screen(), 2)
		end()
		fmt.Fprintln(c, "end")
		assert.Equal(t, []string{"log", "end"}, m.screen())
	})
}

// Without a terminal nothing but the log is written.
func TestNoTerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	file, err := os.Create(t.TempDir() + "/log")
	require.NoError(t, err)
	defer file.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer null.Close()
	var out buffer
	assert.Nil(t, newConsole(file, "auto", false).size)
	assert.Nil(t, newConsole(null, "auto", false).size)
	assert.Nil(t, newConsole(&out, "auto", false).size)
	assert.Nil(t, newConsole(&out, "never", false).size)
	width, height := newConsole(&out, "always", true).size()
	assert.Equal(t, []int{80, 24}, []int{width, height})
	newConsole(&out, "auto", false).start(func() []pullthrough.Download { panic("asked") })()
	assert.Empty(t, out.String())
}
