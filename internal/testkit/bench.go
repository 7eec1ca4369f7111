package testkit

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Each benchmark runs beside the plain thing that bounds it, by turns. The
// figures that mean the same everywhere are the ratios, named "x-" and
// what the bound is; 1 is as fast as that, 2 takes twice as long. Time and
// allocations are ours alone. "x-cpu" is the ratio of processor time, of client,
// server and upstream together.

// Beside runs ours and bound by turns and reports the median of the ratios of
// their times. What returns an error ends the benchmark.
func Beside(b *testing.B, bound string, ours, plain func() error) {
	b.Helper()
	var ratios []float64
	var cpu [2]int64
	for b.Loop() {
		var took [2]time.Duration
		for i := range took {
			// Who goes first changes, since the second may find caches warm.
			which := (i + len(ratios)) % 2
			if which == 0 {
				took[0], cpu[0] = timed(b, ours, cpu[0])
				continue
			}
			b.StopTimer()
			took[1], cpu[1] = timed(b, plain, cpu[1])
			b.StartTimer()
		}
		ratios = append(ratios, took[0].Seconds()/took[1].Seconds())
	}
	b.ReportMetric(Median(ratios), "x-"+bound)
	if enough := int64(50); cpu[1] >= enough { // ticks: fewer say nothing
		b.ReportMetric(float64(cpu[0])/float64(cpu[1]), "x-cpu")
	}
}

// Most is n, which is the most of something that a benchmark has, and with -short a sixteenth
// of it: then the benchmark only shows that it runs.
func Most[N int | int64](n N) N {
	if testing.Short() {
		return n / 16
	}
	return n
}

// timed returns how long f took, and cpu with the ticks that it used on top.
func timed(b *testing.B, f func() error, cpu int64) (time.Duration, int64) {
	b.Helper()
	before := CPUTicks()
	start := time.Now()
	if err := f(); err != nil {
		b.Fatal(err)
	}
	took := time.Since(start)
	return took, cpu + CPUTicks() - before
}

// Median is the 50th percentile.
func Median[T int64 | float64 | time.Duration](of []T) T { return Percentile(of, 50) }

// Percentile is the value that p % of the values do not exceed.
func Percentile[T int64 | float64 | time.Duration](of []T, p int) T {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}

// CPUTicks is the processor time of this process, in ticks; 0 where only Linux
// tells.
func CPUTicks() int64 {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(stat), ") ") // behind the name
	fields := strings.Fields(rest)
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return user + system
}
