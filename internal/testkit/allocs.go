package testkit

import "testing"

// Allocs is how often f allocates, on average and at best: other goroutines allocate, too,
// and with the race detector a [sync.Pool] forgets things at random.
func Allocs(f func()) float64 {
	least := testing.AllocsPerRun(50, f)
	for range 4 {
		least = min(least, testing.AllocsPerRun(50, f))
	}
	return least
}
