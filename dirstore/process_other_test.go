//go:build !unix

package dirstore_test

// processRows are none: this system has neither the limit nor the signal.
func processRows() []storageRow { return nil }
