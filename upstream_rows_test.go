package pullthrough_test

import "testing"

// TestUpstreamRows holds docs/upstream.md against the rows that are proved here.
func TestUpstreamRows(t *testing.T) {
	checkUpstream(t, []section[row]{
		{"Blobs", blobBehaviours},
		{"Manifests", manifestBehaviours},
		{"Retries, errors and connections", transportBehaviours},
		{"Registries and their quirks", quirks},
	})
}
