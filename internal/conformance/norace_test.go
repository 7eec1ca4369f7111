//go:build !race

package conformance_test

var raceFlags []string
