package ecrapi_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

// What Operations says is what an API does.
func TestOperationsAreAnsweredByName(t *testing.T) {
	c, withImages := start(t, &ecrapi.API{}), newRegistry(t, memstore.New(), nil)
	all := ecrapi.Operations()
	assert.True(t, slices.IsSortedFunc(all, func(x, y ecrapi.Operation) int { return strings.Compare(x.Name, y.Name) }))
	known := func(resp *http.Response, body string) bool {
		if parse(t, body)["__type"] != "UnknownOperationException" {
			return true
		}
		assert.Equal(t, http.StatusBadRequest, resp.StatusCode)
		return false
	}
	served := 0
	for _, op := range all {
		resp, body := c.send(t, target+op.Name, "{}")
		assert.Equal(t, op.Served && !op.Images, known(resp, body), op.Name)
		if !op.Served || op.Images {
			assert.Equal(t, op.Name+" is not served here; in a program of your own API.Next may serve it", messageOf(t, body))
		}
		resp, body = withImages.send(t, target+op.Name, "{}")
		assert.Equal(t, op.Served, known(resp, body), op.Name)
		assert.False(t, op.Images && !op.Served, op.Name)
		if op.Served {
			served++
		}
	}
	assert.GreaterOrEqual(t, served, 41)
	resp, body := c.send(t, target+"Nothing", "{}")
	assert.False(t, known(resp, body))
	assert.NotContains(t, body, "Nothing")
}
