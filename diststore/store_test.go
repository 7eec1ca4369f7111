package diststore_test

import (
	"testing"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/diststore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestStore(t *testing.T) {
	for name, open := range drivers {
		t.Run(name, func(t *testing.T) {
			pullthroughtest.TestStore(t, func(t *testing.T) pullthrough.Store {
				s := diststore.New(open(t))
				s.Account, s.Region = "111122223333", "us-east-1"
				return s
			})
		})
	}
}
