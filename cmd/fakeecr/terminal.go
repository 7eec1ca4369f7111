package main

import (
	"io"
	"os"
)

// What a terminal is taken for that does not tell its size.
const (
	usualWidth  = 80
	usualHeight = 24
)

// newConsole writes to stderr. mode, of -progress, says whether downloads are shown
// there: "auto" does so on a terminal that moves its cursor when told to, unless the
// log is for machines.
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
