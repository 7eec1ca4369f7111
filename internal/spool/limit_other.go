//go:build !unix

package spool

// OpenFileLimit is how many files the process may have open.
func OpenFileLimit() int64 { return 512 }

// OpenFiles is how many descriptors the process has open, at least, and how many it
// may have. Here nobody tells.
func OpenFiles() (open, limit int64) { return 0, OpenFileLimit() }

// IsOutOfFiles reports whether something failed since too many files are open. Here
// nobody tells.
func IsOutOfFiles(error) bool { return false }
