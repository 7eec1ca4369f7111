//go:build !unix

package spool

// OpenFileLimit is how many files the process may have open.
func OpenFileLimit() int64 { return 512 }
