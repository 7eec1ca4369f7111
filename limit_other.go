//go:build !unix

package pullthrough

// openFileLimit is how many files the process may have open.
func openFileLimit() int64 { return 512 }
