package ecrapi_test

import (
	"testing"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A Catalog takes nothing from the Store that it stands around.
func TestStore(t *testing.T) {
	pullthroughtest.TestStore(t, func(*testing.T) pullthrough.Store {
		return new(ecrapi.Catalog).Around(memstore.New())
	})
}
