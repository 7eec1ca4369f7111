package pullthrough_test

import "testing"

// Each table of docs/upstream.md has a test of its own that runs its rows. Those
// about blobs, manifests and connections are proved in the root.
func TestUpstreamScenarios(t *testing.T) { runRows(t, scenarios) }

func TestUpstreamDocument(t *testing.T) {
	checkUpstream(t, []section[row]{
		{"Scenarios", scenarios},
		{"Scopes and tokens", tokenBehaviours},
		{"Grants and credentials", grantBehaviours},
		{"Realms and redirects", realmBehaviours},
	})
	checkUpstream(t, []section[row]{
		{"Hostile upstreams", hostileUpstreams},
		{"Tenants", tenants},
	})
}
