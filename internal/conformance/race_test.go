//go:build race

package conformance_test

// raceFlags has fakeecr built with the race detector when the tests are, so
// that a race in it fails its exit status.
var raceFlags = []string{"-race"}
