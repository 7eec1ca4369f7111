package jsonstate_test

import (
	"testing"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }
