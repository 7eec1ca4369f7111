//go:build !darwin && !freebsd && !linux

package main

import "os"

// terminalSize cannot tell what is a terminal here. A user who knows gives
// -progress=always.
func terminalSize(*os.File) (width, height int, ok bool) { return 0, 0, false }
