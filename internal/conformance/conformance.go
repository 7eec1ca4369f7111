// Package conformance pulls real images from real registries through the
// built binary of cmd/fakeecr with real clients. It has no code of its
// own to import: everything is in its tests.
package conformance
