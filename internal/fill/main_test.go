package fill_test

import (
	"testing"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestMain(m *testing.M) { pullthroughtest.Main(m) }
