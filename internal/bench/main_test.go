package main

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == plainArg { // a contender of a test
		main()
		return
	}
	testkit.Main(m)
}

func tinyBench(t *testing.T) *bench {
	b, err := newBench(t.Context(), "../..", []string{reverseProxy})
	require.NoError(t, err)
	t.Cleanup(b.close)
	b.tiny, b.quiet = true, time.Millisecond
	return b
}

// TestEveryScenarioRuns with sizes that say nothing of speed. What is exact holds all the
// same, and every body has its length.
func TestEveryScenarioRuns(t *testing.T) {
	b := tinyBench(t)
	exact := []string{requests.name, tokens.name, blobGets.name, allocs.name}
	var results []*result
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			s.rounds = 1
			r, err := b.measure(t.Context(), s)
			require.NoError(t, err)
			results = append(results, r)
			for _, name := range b.present(s.contenders) {
				if isAlternative(name) && s.fault != nil {
					continue // it may fail
				}
				assert.NoError(t, r.series[name].err, name)
				assert.Len(t, r.series[name].samples, 1, name)
			}
			for _, g := range s.goals {
				line := g.row(r, nil)
				assert.NotContains(t, line.verdict, "failed")
				if g.than == "" && slices.Contains(exact, g.name) {
					assert.Equal(t, verdict(true), line.verdict, "%s of %s: %s, goal %s", g.name, g.who, line.ours, line.goal)
				}
			}
		})
	}
	var out strings.Builder
	printResults(&out, b, results)
	for _, s := range scenarios {
		assert.Contains(t, out.String(), "| "+s.name+" ")
		assert.Contains(t, out.String(), "- `"+s.name+"`: ")
	}
	assert.Contains(t, out.String(), "not measured: -with distribution")
}

// TestTheDocumentHasEveryScenario that there is.
func TestTheDocumentHasEveryScenario(t *testing.T) {
	document, err := os.ReadFile("../../docs/performance.md")
	require.NoError(t, err)
	for _, s := range scenarios {
		assert.Contains(t, string(document), "`"+s.name+"`")
	}
}

// TestAContenderThatFailsIsALineOfTheTable, and the others are measured.
func TestAContenderThatFailsIsALineOfTheTable(t *testing.T) {
	b := tinyBench(t)
	b.fakeecr = "/does/not/exist"
	s := scenario{name: "cold", rounds: 2, contenders: []string{ours, "copy"}, setup: cold(mib, 1), goals: []goal{
		ratio(ours, cpu, 1, "copy"), asFast("copy", 1, ours), atMost("copy", blobGets, 1),
	}}
	r, err := b.measure(t.Context(), s)
	require.NoError(t, err)
	assert.Len(t, r.series["copy"].samples, 2)
	assert.Contains(t, s.goals[0].row(r, nil).verdict, "not met: fakeecr failed")
	assert.Contains(t, s.goals[1].row(r, nil).verdict, "not measured: fakeecr failed")
	assert.Equal(t, verdict(true), s.goals[2].row(r, nil).verdict)
}

func TestGoals(t *testing.T) {
	rounds := func(took ...time.Duration) *series {
		s := new(series)
		for _, d := range took {
			s.samples = append(s.samples, sample{took: d * time.Millisecond, cpu: d.Seconds(), requests: int(d)})
		}
		return s
	}
	for name, c := range map[string]struct {
		goal        goal
		ours, bound *series
		want        row
	}{
		"the median of the rounds' ratios": {
			ratio(ours, seconds, 1.3, direct), rounds(10, 30, 12), rounds(10, 10, 10),
			row{"12.0 ms", "10.0 ms", "1.20", "≤ 1.3 ×", verdict(true)},
		},
		"as fast": {
			asFast(ours, 0.9, direct), rounds(20, 20, 20), rounds(10, 10, 40),
			row{"20.0 ms", "10.0 ms", "0.50", "≥ 0.9 × as fast", verdict(false)},
		},
		"later": {
			later(ours, seconds, 2*time.Millisecond, direct), rounds(21, 22, 25), rounds(20, 22, 24),
			row{"22.0 ms", "22.0 ms", "+1.0 ms", "≤ + 2 ms", verdict(true)},
		},
		"processor time is added up": {
			ratio(ours, cpu, 1, direct), rounds(0, 0, 3), rounds(1, 1, 1),
			row{"0 ns", "0 ns", "1.00", "≤ 1 ×", verdict(true)},
		},
		"a bound that is too small to measure": {
			ratio(ours, seconds, 1, direct), rounds(1), rounds(0),
			row{"1.0 ms", "0 ns", "-", "≤ 1 ×", "not measured: the bound's is 0"},
		},
		"of counts the worst": {
			atMost(ours, requests, 2), rounds(1, 3, 1), nil,
			row{"3", "-", "-", "≤ 2", verdict(false)},
		},
		"an alternative that was not asked for": {
			asFast(ours, 2, nginx), rounds(1), nil,
			row{"1.0 ms", "-", "-", "≥ 2 × as fast", "not measured: -with nginx"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := &result{series: map[string]*series{ours: c.ours, direct: c.bound}}
			got := c.goal.row(r, nil)
			if c.goal.name == cpu.name {
				got.ours, got.bound = c.want.ours, c.want.bound
			}
			assert.Equal(t, c.want, got)
		})
	}
}

func TestTheOrderOfTheRounds(t *testing.T) {
	var got []string
	for round := range 6 {
		got = append(got, strings.Join(inOrder([]string{"a", "b", "c"}, round), ""))
	}
	assert.Equal(t, []string{"abc", "cba", "bca", "acb", "cab", "bac"}, got)
}

func TestAnErrorIsOneLine(t *testing.T) {
	assert.Equal(t, "one", brief(errors.Join(errors.New("one"), errors.New("two"))))
	assert.Len(t, []rune(brief(errors.New(strings.Repeat("x", 1000)))), 121)
}
