package testkit

import (
	"os"
	"testing"

	"github.com/ecr-pullthrough/pullthrough/internal/doctable"
)

// Line is a line of a table in docs/, together with the test that proves it.
type Line interface {
	Name() string    // of the test
	Cells() []string // one for each column
	Proof() func(*testing.T)
}

// Section is one table of a document, and the rows of one test.
type Section[L Line] struct {
	Title string
	Rows  []L
}

// RunRows runs the tests of the rows, each under its name.
func RunRows[L Line](t *testing.T, rows []L) {
	for _, r := range rows {
		t.Run(r.Name(), r.Proof())
	}
}

// CheckDocument holds the tables of a file in docs/ against the rows that are tested. All have
// the same columns.
func CheckDocument[L Line](t *testing.T, file string, columns []string, sections []Section[L]) {
	t.Helper()
	tables := make([]doctable.Table, len(sections))
	for i, s := range sections {
		tables[i].Title = s.Title
		for _, r := range s.Rows {
			tables[i].Rows = append(tables[i].Rows, doctable.Row{Name: r.Name(), Cells: r.Cells()})
		}
	}
	doctable.Check(t, docs(t)+file, columns, tables)
}

// CheckUpstream holds tables of docs/upstream.md, one after the other there, against
// their rows.
func CheckUpstream[L Line](t *testing.T, tables []Section[L]) {
	t.Helper()
	CheckDocument(t, "upstream.md", []string{"", "When upstream …", "… this happens"}, tables)
}

// docs is the way from the test's directory to docs/.
func docs(t *testing.T) string {
	t.Helper()
	for dir := ""; len(dir) < 20; dir += "../" {
		if _, err := os.Stat(dir + "go.mod"); err == nil {
			return dir + "docs/"
		}
	}
	t.Fatal("this is no package of the module")
	return ""
}
