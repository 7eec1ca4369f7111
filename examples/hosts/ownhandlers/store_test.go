package ownhandlers_test

import (
	"testing"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/examples/hosts/ownhandlers"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestStore(t *testing.T) {
	pullthroughtest.TestStore(t, func(*testing.T) pullthrough.Store {
		return ownhandlers.New(account, region, nil).Store()
	})
}
