package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// figure is something that a round shows.
type figure struct {
	name string
	of   func(sample) float64
	show func(float64) string
	over func([]float64) float64 // the rounds
}

var (
	seconds   = figure{"time", func(s sample) float64 { return s.took.Seconds() }, showTime, median}
	eachTime  = figure{"time of each", func(s sample) float64 { return s.took.Seconds() / float64(max(1, len(s.first))) }, showTime, median}
	firstByte = figure{"first byte", func(s sample) float64 { return percentile(s.first, 50) }, showTime, median}
	first99   = figure{"first byte, p99", func(s sample) float64 { return percentile(s.first, 99) }, showTime, median}
	slowest   = figure{"slowest answer", func(s sample) float64 { return percentile(s.first, 100) }, showTime, worst}
	cpu       = figure{"CPU", func(s sample) float64 { return s.cpu }, showTime, mean}
	peak      = figure{"peak RSS", func(s sample) float64 { return float64(s.peak) }, showSize, worst}
	growth    = figure{"growth of RSS", func(s sample) float64 { return float64(s.peak - s.rest) }, showSize, worst}
	requests  = figure{"upstream requests", func(s sample) float64 { return float64(s.requests) }, showCount, worst}
	tokens    = figure{"tokens", func(s sample) float64 { return float64(s.tokens) }, showCount, worst}
	blobGets  = figure{"upstream GETs", func(s sample) float64 { return float64(s.blobs) }, showCount, worst}
	bytesFrom = figure{"upstream bytes", func(s sample) float64 { return s.bytes }, showMultiple, worst}
	allocs    = figure{"allocations", func(s sample) float64 { return s.allocs }, showCount, worst}
)

// figures are those of the second table. cpu, peak and growth need a process.
var figures = []figure{seconds, firstByte, first99, cpu, peak, growth, requests, bytesFrom}

// goal is what a figure should be: at most a limit by itself, or beside another contender.
type goal struct {
	figure
	who   string // contender
	than  string // the contender that bounds it; "": the figure by itself is at most the limit
	how   comparison
	limit float64
}

type comparison int

const (
	times  comparison = iota // at most limit times the bound
	faster                   // at least limit times as fast as the bound
	beyond                   // at most limit more than the bound
)

func atMost(who string, f figure, limit float64) goal { return goal{figure: f, who: who, limit: limit} }

func ratio(who string, f figure, limit float64, than string) goal {
	return goal{f, who, than, times, limit}
}

func asFast(who string, limit float64, than string) goal {
	return goal{seconds, who, than, faster, limit}
}

func later(who string, f figure, limit time.Duration, than string) goal {
	return goal{f, who, than, beyond, limit.Seconds()}
}

// of returns the figure's value in each round, and over all rounds.
func (f figure) values(s *series) (each []float64, all float64) {
	for _, one := range s.samples {
		each = append(each, f.of(one))
	}
	return each, f.over(each)
}

// row is a goal's line of the table.
type row struct{ ours, bound, compared, goal, verdict string }

func (g goal) row(r *result, missing map[string]error) row {
	line := row{ours: "-", bound: "-", compared: "-", goal: g.words()}
	s := r.series[g.who]
	if s == nil || s.err != nil || len(s.samples) == 0 {
		line.verdict = "not met: " + reason(g.who, s, missing)
		return line
	}
	each, all := g.values(s)
	line.ours = g.show(all)
	if g.than == "" {
		line.verdict = verdict(all <= g.limit)
		return line
	}
	than := r.series[g.than]
	if than == nil || len(than.samples) == 0 {
		line.verdict = unmeasured + ": " + reason(g.than, than, missing)
		return line
	}
	eachBound, bound := g.values(than)
	line.bound = g.show(bound)
	got, met := g.compare(each, eachBound)
	if math.IsNaN(got) || math.IsInf(got, 0) {
		line.verdict = unmeasured + ": the bound's is 0"
		return line
	}
	line.compared, line.verdict = g.showCompared(got), verdict(met)
	return line
}

// compare compares the rounds that both have, one by one, and returns the median. For the
// processor time, of which a round may have few ticks, it compares the sums.
func (g goal) compare(ours, bound []float64) (got float64, met bool) {
	var all []float64
	for i := range min(len(ours), len(bound)) {
		switch g.how {
		case times:
			all = append(all, ours[i]/bound[i])
		case faster:
			all = append(all, bound[i]/ours[i])
		case beyond:
			all = append(all, ours[i]-bound[i])
		}
	}
	got = median(all)
	if g.name == cpu.name {
		got = mean(ours[:len(all)]) / mean(bound[:len(all)])
	}
	if g.how == faster {
		return got, got >= g.limit
	}
	return got, got <= g.limit
}

func (g goal) showCompared(got float64) string {
	if g.how == beyond {
		return fmt.Sprintf("%+.1f ms", got*1000)
	}
	return fmt.Sprintf("%.2f", got)
}

// words returns the goal as the table has it.
func (g goal) words() string {
	switch {
	case g.than == "":
		return "≤ " + g.show(g.limit)
	case g.how == times:
		return fmt.Sprintf("≤ %.4g ×", g.limit)
	case g.how == faster:
		return fmt.Sprintf("≥ %.4g × as fast", g.limit)
	}
	return fmt.Sprintf("≤ + %.4g ms", g.limit*1000)
}

// unmeasured begins the verdict of a goal whose bound is not there.
const unmeasured = "not measured"

// reason says why a contender has shown nothing.
func reason(who string, s *series, missing map[string]error) string {
	switch {
	case s != nil && s.err != nil:
		return who + " failed: " + brief(s.err)
	case missing[who] != nil:
		return fmt.Sprintf("no %s: %v", who, missing[who])
	case isAlternative(who):
		return "-with " + who
	}
	return "no " + who
}

// brief is the beginning of the first line of an error.
func brief(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	if len(line) > 120 {
		line = line[:120] + "…"
	}
	return line
}

func isAlternative(name string) bool { return slices.Contains(alternatives, name) }

func verdict(met bool) string {
	if met {
		return "met"
	}
	return "**not met**"
}

func median(of []float64) float64 {
	if len(of) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}

func worst(of []float64) float64 {
	if len(of) == 0 {
		return 0
	}
	return slices.Max(of)
}

func mean(of []float64) (mean float64) {
	for _, one := range of {
		mean += one / float64(len(of))
	}
	return mean
}

// percentile returns, in seconds, what p % of the durations do not exceed.
func percentile(of []time.Duration, p int) float64 {
	if len(of) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(of))
	return sorted[min(len(sorted)-1, len(sorted)*p/100)].Seconds()
}

func showTime(s float64) string {
	switch {
	case s >= 1:
		return fmt.Sprintf("%.2f s", s)
	case s >= 0.001:
		return fmt.Sprintf("%.1f ms", s*1000)
	case s >= 0.00001:
		return fmt.Sprintf("%.2f ms", s*1000)
	}
	return fmt.Sprintf("%.0f ns", s*1e9)
}

func showSize(n float64) string     { return fmt.Sprintf("%.1f MiB", n/(1<<20)) }
func showCount(n float64) string    { return fmt.Sprintf("%.4g", n) }
func showMultiple(n float64) string { return fmt.Sprintf("%.3f ×", n) }
