package pullthrough_test

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// line is a line of a table in docs/, together with the test that proves it.
type line interface {
	name() string    // of the test
	cells() []string // one for each column
	proof() func(*testing.T)
}

// section is one table of a document, and the rows of one test.
type section[L line] struct {
	title string
	rows  []L
}

func runRows[L line](t *testing.T, rows []L) {
	for _, r := range rows {
		t.Run(r.name(), r.proof())
	}
}

var update = flag.Bool("update", false, "write the tables of the documents anew")

// checkDocument holds the tables of a file against the rows that are tested, no
// more and no less. All have the same columns.
func checkDocument[L line](t *testing.T, file string, columns []string, sections []section[L]) {
	t.Helper()
	doc := readFile(t, file)
	seen := map[string]bool{}
	for _, s := range sections {
		for _, r := range s.rows {
			assert.False(t, seen[r.name()], "%s stands there twice", r.name())
			seen[r.name()] = true
		}
		begin, end := "<!-- "+s.title+" -->\n", "<!-- end -->\n"
		before, rest, ok := strings.Cut(doc, begin)
		require.True(t, ok, "no place for the table %q", s.title)
		got, after, ok := strings.Cut(rest, end)
		require.True(t, ok)
		want := markdown(t, columns, s.rows)
		if *update {
			doc = before + begin + want + end + after
			continue
		}
		assert.Equal(t, want, got, "go test -run %s -update writes it anew", t.Name())
	}
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(doc), 0o644))
	}
}

func markdown[L line](t *testing.T, columns []string, rows []L) string {
	t.Helper()
	text := tableLine(columns) + "|" + strings.Repeat("---|", len(columns)) + "\n"
	for _, r := range rows {
		cells := r.cells()
		require.Len(t, cells, len(columns), "%s", r.name())
		for _, cell := range cells {
			assert.NotEmpty(t, cell, "%s", r.name())
			assert.False(t, strings.ContainsAny(cell, "|\n"), "%s would break the table", r.name())
		}
		text += tableLine(cells)
	}
	return text
}

func tableLine(cells []string) string {
	return strings.ReplaceAll("| "+strings.Join(cells, " | ")+" |\n", "|  |", "| |")
}
