package pullthrough_test

import (
	"testing"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

// TestUpstreamRows holds docs/upstream.md against the rows that are proved here.
func TestUpstreamRows(t *testing.T) {
	testkit.CheckUpstream(t, []testkit.Section[row]{{Title: "Blobs", Rows: blobBehaviours}})
	testkit.CheckUpstream(t, []testkit.Section[row]{{Title: "Whole images", Rows: importBehaviours}})
	testkit.CheckUpstream(t, []testkit.Section[row]{{Title: "Retries, errors and connections", Rows: transportBehaviours}})
}

// row is a line of docs/upstream.md together with the test that proves it.
type row struct {
	id      string // stable, cited by commits: A14
	input   string // what upstream does, as a user would put it
	outcome string // what becomes of it
	test    func(*testing.T)
}

func (r row) Name() string            { return r.id }
func (r row) Cells() []string         { return []string{r.id, r.input, r.outcome} }
func (r row) Proof() func(*testing.T) { return r.test }
