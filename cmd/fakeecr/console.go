package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
)

// console is standard error. It shows the lines of the log and, on a terminal, the
// running downloads below them. It is safe for concurrent use.
type console struct {
	out  io.Writer
	size func() (width, height int) // of the terminal; nil: there is none, and nothing is shown below

	mu    sync.Mutex
	shown []string // below the log
}

// Escape sequences that every terminal since the VT100 knows.
const (
	cursorUp  = "\x1b[%dA" // by so many lines
	clearLine = "\x1b[K"   // from the cursor to the end of the line
	clearDown = "\x1b[J"   // and all that is below
)

// Write writes whole lines of the log, above what is shown below it.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.shown) == 0 {
		return c.out.Write(p)
	}
	text := c.upLocked() + clearDown + string(p) + below(c.shown)
	if _, err := io.WriteString(c.out, text); err != nil {
		return 0, err
	}
	return len(p), nil
}

// show puts lines below the log in place of those that are there. They are narrower
// than the terminal.
func (c *console) show(lines []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Equal(lines, c.shown) {
		return
	}
	text := c.upLocked() + below(lines) + clearDown
	c.shown = slices.Clone(lines)
	_, _ = io.WriteString(c.out, text) // nobody looks at a terminal that was closed
}

// upLocked returns what moves the cursor to the first line that is shown. If the terminal
// has become narrower since then, the lines take more rows.
func (c *console) upLocked() string {
	if len(c.shown) == 0 {
		return ""
	}
	width, _ := c.size()
	rows := 0
	for _, line := range c.shown {
		rows += max(1, (len(line)+width-1)/width)
	}
	return "\r" + fmt.Sprintf(cursorUp, rows)
}

// below returns what writes lines over those that are shown. That flickers less than
// clearing them first.
func below(lines []string) string {
	var b strings.Builder
	for _, line := range lines {
		b.WriteString(line + clearLine + "\n")
	}
	return b.String()
}
