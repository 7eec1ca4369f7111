//go:build unix

package spool

import "syscall"

// OpenFileLimit is how many files the process may have open.
func OpenFileLimit() int64 {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 256
	}
	return int64(min(limit.Cur, 1<<20))
}
