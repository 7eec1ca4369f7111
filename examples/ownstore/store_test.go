package ownstore_test

import (
	"bufio"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/examples/ownstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// This is what a host writes to know that its Store is right.
func TestStore(t *testing.T) {
	pullthroughtest.TestStore(t, func(*testing.T) pullthrough.Store { return &ownstore.Store{} })
}

func TestTheStoreTakes100Lines(t *testing.T) {
	f, err := os.Open("store.go")
	require.NoError(t, err)
	defer f.Close()
	lines := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		lines++
	}
	assert.Greater(t, lines, 50, "this counts something else")
	assert.LessOrEqual(t, lines, 100)
}
