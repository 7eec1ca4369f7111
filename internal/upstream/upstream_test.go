package upstream_test

import (
	"testing"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

// row is a line of docs/upstream.md together with the test that proves it.
type row struct {
	id      string // stable, cited by commits: S01, A14, U28, T5
	input   string // what upstream does, as a user would put it
	outcome string // what becomes of it
	test    func(*testing.T)
}

func (r row) Name() string { return r.id }

func (r row) Cells() []string { return []string{r.id, r.input, r.outcome} }

func (r row) Proof() func(*testing.T) { return r.test }

// Each table of docs/upstream.md has a test of its own that runs its rows. Those
// about blobs, manifests and connections are proved in the root.
func TestUpstreamScenarios(t *testing.T) { testkit.RunRows(t, scenarios) }

func TestUpstreamDocument(t *testing.T) {
	testkit.CheckUpstream(t, []testkit.Section[row]{
		{Title: "Scenarios", Rows: scenarios},
		{Title: "Scopes and tokens", Rows: tokenBehaviours},
		{Title: "Grants and credentials", Rows: grantBehaviours},
		{Title: "Realms and redirects", Rows: realmBehaviours},
	})
	testkit.CheckUpstream(t, []testkit.Section[row]{
		{Title: "Registries and their quirks", Rows: quirks},
		{Title: "Hostile upstreams", Rows: hostileUpstreams},
		{Title: "Tenants", Rows: tenants},
	})
}
