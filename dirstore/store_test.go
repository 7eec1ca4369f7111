package dirstore_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestStore(t *testing.T) {
	pullthroughtest.TestStore(t, func(t *testing.T) pullthrough.Store {
		store, err := dirstore.Open(scratch(t))
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, store.Close()) })
		return store
	})
}
