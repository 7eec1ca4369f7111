// Package doctable compares the tables of a document in docs/ with the rows that tests
// prove. Only tests import it.
package doctable

import (
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the tables of the documents anew")

// Table is a table of a document. In the document it is between the lines
//
//	<!-- Title -->
//	<!-- end -->
type Table struct {
	Title string
	Rows  []Row
}

// Row is a line of a table.
type Row struct {
	Name  string   // the name of its test, which is one of the cells and unique in the document
	Cells []string // one for each column
}

// Check fails the test unless the file has the tables one after the other, each with
// exactly these columns and rows. With the flag -update it writes the tables first. Two
// packages that share a file must be updated one after the other (-p 1).
func Check(t *testing.T, file string, columns []string, tables []Table) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	doc := string(content)
	checkPlaces(t, doc, tables)
	for _, table := range tables {
		begin, end := "<!-- "+table.Title+" -->\n", "<!-- end -->\n"
		before, rest, ok := strings.Cut(doc, begin)
		got, after, ended := strings.Cut(rest, end)
		if !ok || !ended {
			t.Fatalf("%s: no place for the table %q", file, table.Title)
		}
		want := markdown(t, columns, table.Rows)
		switch {
		case *update:
			doc = before + begin + want + end + after
		case got != want:
			t.Errorf("%s: the table %q lacks\n%sand has\n%sgo test -run %s -update, in the directory of the test, writes it anew",
				file, table.Title, difference(want, got), difference(got, want), t.Name())
		}
	}
	checkNames(t, doc, tables)
	if *update {
		if err := os.WriteFile(file, []byte(doc), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// difference returns the lines of text that other does not have.
func difference(text, other string) (lines string) {
	has := slices.Collect(strings.Lines(other))
	for line := range strings.Lines(text) {
		if !slices.Contains(has, line) {
			lines += line
		}
	}
	return lines
}

// checkPlaces checks that the document has places for exactly these tables, in order. It
// finds a table between them that no test has any more.
func checkPlaces(t *testing.T, doc string, tables []Table) {
	t.Helper()
	var places, titles []string
	for line := range strings.Lines(doc) {
		title, ok := strings.CutPrefix(strings.TrimSuffix(line, " -->\n"), "<!-- ")
		if ok && title != "end" {
			places = append(places, title)
		}
	}
	for _, table := range tables {
		titles = append(titles, table.Title)
	}
	first := max(0, slices.Index(places, titles[0]))
	if got := places[first:min(len(places), first+len(titles))]; !slices.Equal(got, titles) {
		t.Fatalf("the document has places for the tables %q in place of %q", got, titles)
	}
}

// checkNames checks that each row's name is in one line of the document, also among the
// tables of other packages.
func checkNames(t *testing.T, doc string, tables []Table) {
	t.Helper()
	for _, table := range tables {
		for _, row := range table.Rows {
			if n := strings.Count(doc, "| "+row.Name+" |"); n > 1 {
				t.Errorf("%s stands there %d times", row.Name, n)
			}
		}
	}
}

func markdown(t *testing.T, columns []string, rows []Row) string {
	t.Helper()
	text := line(columns) + "|" + strings.Repeat("---|", len(columns)) + "\n"
	for _, row := range rows {
		if len(row.Cells) != len(columns) {
			t.Fatalf("%s has %d cells, not %d", row.Name, len(row.Cells), len(columns))
		}
		for _, cell := range row.Cells {
			if cell == "" || strings.ContainsAny(cell, "|\n") {
				t.Errorf("%s: the cell %q would break the table", row.Name, cell)
			}
		}
		text += line(row.Cells)
	}
	return text
}

func line(cells []string) string {
	return strings.ReplaceAll("| "+strings.Join(cells, " | ")+" |\n", "|  |", "| |")
}
