package main

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"
)

// printResults prints the goals, then what each contender did, and what the scenarios are,
// in Markdown.
func printResults(w io.Writer, b *bench, results []*result) {
	fmt.Fprintf(w, "Measured on %s with %s on %s/%s, %d processors.\n\n",
		time.Now().Format(time.DateOnly), runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	goals := table{{"scenario", "who", "figure", "ours", "bound", "its figure", "ratio", "goal", "verdict"}}
	met, all := 0, 0
	for _, r := range results {
		for _, g := range r.goals {
			line := g.row(r, b.missing)
			goals = append(goals, []string{r.name, g.who, g.name, line.ours, g.than, line.bound, line.compared, line.goal, line.verdict})
			switch {
			case line.verdict == verdict(true):
				met++
				fallthrough
			case !strings.HasPrefix(line.verdict, unmeasured):
				all++
			}
		}
	}
	goals.print(w)
	fmt.Fprintf(w, "\n%d of %d goals are met.\n\n", met, all)
	printFigures(w, b, results)
	fmt.Fprintln(w)
	var chosen []scenario
	for _, r := range results {
		chosen = append(chosen, r.scenario)
	}
	printScenarios(w, chosen)
}

// printFigures prints what each contender did.
func printFigures(w io.Writer, b *bench, results []*result) {
	each := table{{"scenario", "who", "rounds"}}
	for _, f := range figures {
		each[0] = append(each[0], f.name)
	}
	for _, r := range results {
		for _, name := range b.present(r.contenders) {
			each = append(each, r.line(name))
		}
	}
	each.print(w)
}

// line is what a contender did.
func (r *result) line(name string) []string {
	s := r.series[name]
	line := []string{r.name, name, fmt.Sprint(len(s.samples))}
	if s.err != nil {
		return append(line, "failed: "+brief(s.err))
	}
	for _, f := range figures {
		_, all := f.values(s)
		if all <= 0 {
			line = append(line, "-")
			continue
		}
		line = append(line, f.show(all))
	}
	return line
}

func printScenarios(w io.Writer, all []scenario) {
	for _, s := range all {
		fmt.Fprintf(w, "- `%s`: %s\n", s.name, s.what)
	}
}

// table is the head and the lines of a table.
type table [][]string

// print prints the table in Markdown, with columns of one width.
func (t table) print(w io.Writer) {
	widths := make([]int, len(t[0]))
	for _, line := range t {
		for i, cell := range line {
			if i < len(line)-1 { // the last one may be a sentence
				widths[i] = max(widths[i], len([]rune(cell)))
			}
		}
	}
	for i, line := range t {
		for j := range t[0] {
			cell := ""
			if j < len(line) {
				cell = strings.ReplaceAll(line[j], "|", "/")
			}
			fmt.Fprintf(w, "| %s%s ", cell, strings.Repeat(" ", max(0, widths[j]-len([]rune(cell)))))
		}
		fmt.Fprintln(w, "|")
		if i == 0 {
			fmt.Fprintln(w, strings.Repeat("|---", len(t[0]))+"|")
		}
	}
}
