package pullthrough_test

import (
	"os"
	"testing"

	"github.com/ecr-pullthrough/pullthrough/internal/doctable"
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

// checkDocument holds the tables of a file in docs/ against the rows that are tested. All have
// the same columns.
func checkDocument[L line](t *testing.T, file string, columns []string, sections []section[L]) {
	t.Helper()
	tables := make([]doctable.Table, len(sections))
	for i, s := range sections {
		tables[i].Title = s.title
		for _, r := range s.rows {
			tables[i].Rows = append(tables[i].Rows, doctable.Row{Name: r.name(), Cells: r.cells()})
		}
	}
	doctable.Check(t, docs(t)+file, columns, tables)
}

// checkUpstream holds tables of docs/upstream.md, one after the other there, against
// their rows.
func checkUpstream[L line](t *testing.T, tables []section[L]) {
	t.Helper()
	checkDocument(t, "upstream.md", []string{"", "When upstream …", "… this happens"}, tables)
}

// row is a line of docs/upstream.md together with the test that proves it.
type row struct {
	id      string // stable, cited by commits: S01, A14, U28, T5
	input   string // what upstream does, as a user would put it
	outcome string // what becomes of it
	test    func(*testing.T)
}

func (r row) name() string            { return r.id }
func (r row) cells() []string         { return []string{r.id, r.input, r.outcome} }
func (r row) proof() func(*testing.T) { return r.test }

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
