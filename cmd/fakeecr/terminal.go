package main

import (
	"io"
	"os"
)

// The size of a terminal that does not tell its size.
const (
	usualWidth  = 80
	usualHeight = 24
)

// newConsole returns a console that writes to stderr. mode is the value of -progress, and
// says whether downloads are shown: "auto" shows them on a terminal that can move its
// cursor, unless the log is JSON.
func newConsole(stderr io.Writer, mode string, jsonLog bool) *console {
	c := &console{out: stderr}
	file, _ := stderr.(*os.File)
	if mode == "always" || mode == "auto" && !jsonLog && isTerminal(file) {
		c.size = func() (width, height int) {
			if width, height, ok := terminalSize(file); ok && width > 0 && height > 0 {
				return width, height
			}
			return usualWidth, usualHeight
		}
	}
	return c
}

func isTerminal(file *os.File) bool {
	if term := os.Getenv("TERM"); file == nil || term == "" || term == "dumb" {
		return false
	}
	info, err := file.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	_, _, ok := terminalSize(file) // /dev/null is a character device, too
	return ok
}
