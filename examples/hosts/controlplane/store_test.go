package controlplane_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/examples/hosts/controlplane"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestStore(t *testing.T) {
	pullthroughtest.TestStore(t, func(t *testing.T) pullthrough.Store {
		e, err := controlplane.New(account, region, nil, nil)
		require.NoError(t, err)
		return e.Store()
	})
}
