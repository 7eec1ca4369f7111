package pullthrough_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestMain(m *testing.M) { pullthroughtest.Main(m) }

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	return string(b)
}
