package pullthrough_test

import "testing"

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

// upstreamTables are the tables of docs/upstream.md, in its order. Each has a
// test of its own that runs its rows.
var upstreamTables = []section[row]{
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

func TestUpstreamDocument(t *testing.T) {
	checkDocument(t, "docs/upstream.md", []string{"", "When upstream …", "… this happens"}, upstreamTables)
}
