package pullthrough_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// row is a line of docs/upstream.md together with the test that proves it.
type row struct {
	id      string // stable, cited by commits: S01, A14, U28, T5
	input   string // what upstream does, as a user would put it
	outcome string // what becomes of it
	test    func(*testing.T)
}

// upstreamTables are the tables of docs/upstream.md, in its order. Each has a
// test of its own that runs its rows.
var upstreamTables = []struct {
	title string
	rows  []row
}{
	{"Scenarios", scenarios},
	{"Scopes and tokens", tokenBehaviours},
	{"Grants and credentials", grantBehaviours},
	{"Realms and redirects", realmBehaviours},
	{"Blobs", blobBehaviours},
	{"Manifests", manifestBehaviours},
	{"Retries, errors and connections", transportBehaviours},
	{"Registries and their quirks", quirks},
	{"Hostile upstreams", hostileUpstreams},
	{"Tenants", tenants},
}

func TestUpstreamScenarios(t *testing.T) { runRows(t, scenarios) }

func runRows(t *testing.T, rows []row) {
	for _, r := range rows {
		t.Run(r.id, r.test)
	}
}

var update = flag.Bool("update", false, "write the tables of docs/upstream.md anew")

const upstreamDoc = "docs/upstream.md"

// TestUpstreamDocument: the tables say what is tested, no more and no less.
func TestUpstreamDocument(t *testing.T) {
	doc := readFile(t, upstreamDoc)
	for _, table := range upstreamTables {
		begin, end := "<!-- "+table.title+" -->\n", "<!-- end -->\n"
		before, rest, ok := strings.Cut(doc, begin)
		require.True(t, ok, "no place for the table %q", table.title)
		got, after, ok := strings.Cut(rest, end)
		require.True(t, ok)
		want := markdown(table.rows)
		if *update {
			doc = before + begin + want + end + after
			continue
		}
		assert.Equal(t, want, got, "go test -run TestUpstreamDocument -update writes it anew")
	}
	if *update {
		require.NoError(t, os.WriteFile(upstreamDoc, []byte(doc), 0o644))
	}
}

func markdown(rows []row) string {
	var b strings.Builder
	b.WriteString("| | When upstream … | … this happens |\n|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", r.id, r.input, r.outcome)
	}
	return b.String()
}
