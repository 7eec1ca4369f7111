//go:build darwin || freebsd || linux

package main

import (
	"os"
	"syscall"
	"unsafe"
)

// terminalSize returns the size in characters. It is 0 if the terminal does not know. ok
// is false if file is no terminal.
func terminalSize(file *os.File) (width, height int, ok bool) {
	if file == nil {
		return 0, 0, false
	}
	conn, err := file.SyscallConn()
	if err != nil {
		return 0, 0, false
	}
	var size struct{ rows, columns, x, y uint16 }
	err = conn.Control(func(fd uintptr) {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
		ok = errno == 0
	})
	return int(size.columns), int(size.rows), ok && err == nil
}
