//go:build unix

package pullthrough

import "syscall"

// openFileLimit is how many files the process may have open.
func openFileLimit() int64 {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 256
	}
	return int64(min(limit.Cur, 1<<20))
}
