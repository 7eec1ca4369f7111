// Command bench compares fakeecr with plain code that bounds its speed. .ci/bench runs it
// and explains the table.
//
// The upstream registry and the clients run in this process, and fakeecr in a second one.
// The plain server (a map, http.ServeContent, a copy with a sha256) is this program in a
// third process. In each round both servers do the same work, one after the other. The
// ratio is the median over the rounds.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fakeecr := fs.String("fakeecr", "", "`PROGRAM`, the built fakeecr")
	rounds := fs.Int("rounds", 0, "`N` rounds of each scenario; 0: 7, 3 of the long ones")
	plain := fs.String("plain", "", "`DIR`; be the plain server with this directory, and nothing else")
	fs.Usage = func() {
		fmt.Fprintf(fs.Output(), "usage: bench -fakeecr PROGRAM [-rounds N] [%s]...\n", strings.Join(names(), "|"))
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *plain != "" {
		return servePlain(ctx, *plain, stdout)
	}
	chosen, err := choose(fs.Args())
	if err != nil {
		return err
	}
	if *fakeecr == "" {
		return errors.New("-fakeecr is missing")
	}
	b, err := newBench(ctx, *fakeecr)
	if err != nil {
		return err
	}
	defer b.close()
	printHeader(stdout, b)
	results, err := b.measureAll(ctx, chosen, *rounds)
	printTable(stdout, results)
	return err
}

func names() []string {
	var all []string
	for _, s := range scenarios {
		all = append(all, s.name)
	}
	return all
}

// choose returns the scenarios with these names, or all scenarios if there are no names.
func choose(names []string) ([]scenario, error) {
	if len(names) == 0 {
		return scenarios, nil
	}
	var chosen []scenario
	for _, name := range names {
		i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no scenario %q", name)
		}
		chosen = append(chosen, scenarios[i])
	}
	return chosen, nil
}

func printHeader(w io.Writer, b *bench) {
	store := "memory: peak RSS holds all that was pulled"
	if b.data {
		store = "-data, a directory below " + b.dir
	}
	fmt.Fprintf(w, "store: %s\n\n", store)
}

func printTable(w io.Writer, results []*result) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "scenario\trounds\tours\tbound\tratio\trequests\tbytes\tCPU s\tbound's\tratio\tpeak MiB\tgrowth\t")
	for _, r := range results {
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%.2f\t%d\t%.3f ×\t%s\t%s\t%s\t%s\t%s\t\n",
			r.name, len(r.ratios), short(median(r.ours)), short(median(r.bound)), median(r.ratios),
			median(r.requests), median(r.bytes), seconds(r.cpu), seconds(r.boundCPU), cpuRatio(r),
			mebibytes(r.peak), mebibytes(r.peak-r.rest))
	}
	_ = t.Flush() // to standard output
	fmt.Fprintln(w)
	for _, r := range results {
		fmt.Fprintf(w, "%s: %s; bound: %s\n", r.name, r.what, r.boundIs)
	}
}

func short(d time.Duration) string { return d.Round(100 * time.Microsecond).String() }

func seconds(s float64) string {
	if s <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", s)
}

func cpuRatio(r *result) string {
	if r.cpu <= 0 || r.boundCPU <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", r.cpu/r.boundCPU)
}

func mebibytes(n int64) string {
	if n <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f", float64(n)/(1<<20))
}

func median[T int | int64 | float64 | time.Duration](of []T) T {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}
