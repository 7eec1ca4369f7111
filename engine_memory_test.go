package pullthrough_test

import (
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// What is remembered of a request for something that is not there is its name, not the
// query that came with it.
func TestLongQueriesAreNotKept(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
	query := "?" + strings.Repeat("q", 500<<10)
	before := testkit.InUse()
	for i := range 100 {
		path := testkit.ManifestPath("a", fmt.Sprint("none", i))
		assert.Equal(t, http.StatusNotFound, f.Get(t, path+query).StatusCode)
		assert.Equal(t, http.StatusNotFound, f.Get(t, path).StatusCode)
	}
	f.Settled(t)
	assert.Equal(t, 100, f.Up.Count("GET *"), "each is remembered")
	assert.Less(t, testkit.InUse(), before+10<<20)
	runtime.KeepAlive(f)
}
