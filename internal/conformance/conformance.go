// Package conformance tests the built binary of cmd/fakeecr with real clients, which pull
// real images from real registries. It has tests only and nothing to import.
package conformance
