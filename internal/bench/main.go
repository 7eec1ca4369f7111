// Command bench measures fakeecr beside plain code that bounds its speed, beside the
// upstream itself and, if asked, beside what people use in its place. It prints one table
// with all goals. .ci/bench runs it; docs/performance.md explains the table.
//
// The upstream registry and the clients run in this process. Each server is a process of
// its own, new in each round, with an empty directory. In a round all of them do the same
// work, one after the other. A ratio is the median over the rounds.
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
	if len(args) > 0 && args[0] == plainArg {
		return servePlain(ctx, args[1:], stdout)
	}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	rounds := fs.Int("rounds", 0, "`N` rounds of each scenario; 0: 3 to 7")
	wanted := fs.String("with", "", "`LIST` of alternatives to run beside it: "+strings.Join(alternatives, ","))
	document := fs.String("save", "", "`FILE` in which the saved table is replaced, such as docs/performance.md")
	fs.Usage = func() {
		fmt.Fprintf(fs.Output(), "usage: bench [flags] [SCENARIO]...\n")
		fs.PrintDefaults()
		printScenarios(fs.Output(), scenarios)
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	chosen, err := choose(fs.Args())
	if err != nil {
		return err
	}
	var names []string
	if *wanted != "" {
		names = strings.Split(*wanted, ",")
	}
	b, err := newBench(ctx, ".", names)
	if err != nil {
		return err
	}
	defer b.close()
	results, err := b.measureAll(ctx, chosen, *rounds)
	if len(results) == 0 {
		return err
	}
	var text strings.Builder
	printResults(&text, b, results)
	fmt.Fprint(stdout, text.String())
	if err == nil && *document != "" {
		err = save(*document, text.String())
	}
	return err
}

// The saved table is between these lines of the document.
const saveBegin, saveEnd = "<!-- saved -->\n", "<!-- end -->\n"

func save(document, text string) error {
	content, err := os.ReadFile(document)
	if err != nil {
		return err
	}
	before, rest, begins := strings.Cut(string(content), saveBegin)
	_, after, ends := strings.Cut(rest, saveEnd)
	if !begins || !ends {
		return fmt.Errorf("%s has no place for the table", document)
	}
	return os.WriteFile(document, []byte(before+saveBegin+"\n"+text+"\n"+saveEnd+after), 0o644)
}

func (b *bench) measureAll(ctx context.Context, chosen []scenario, rounds int) (results []*result, err error) {
	for i, s := range chosen {
		if rounds > 0 {
			s.rounds = rounds
		}
		fmt.Fprintf(os.Stderr, "%d of %d: %s\n", i+1, len(chosen), s.name)
		r, err := b.measure(ctx, s)
		if err != nil {
			return results, fmt.Errorf("%s: %w", s.name, err)
		}
		results = append(results, r)
	}
	return results, nil
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
