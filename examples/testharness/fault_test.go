package main

import (
	"go/parser"
	"go/token"
	"net/http/httptest"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A test with a fault: an upstream registry that cuts a layer off half-way.
func TestALayerThatIsCutOffIsResumed(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 2 << 20})
	up.Push("app", "1", img)
	up.Fault(pullthroughtest.Fault{Match: "GET /v2/app/blobs/*", Times: 1, CutAfter: new(int64(1 << 20))})

	proxy := &pullthrough.Proxy{
		Store: memstore.New(),
		Rules: pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: up.URL}},
	}
	registry := httptest.NewServer(proxy)
	defer registry.Close()

	layer := img.Layers[0].Digest
	_, body := get(t, registry.URL+"/v2/hub/app/blobs/"+layer.String())
	assert.Equal(t, layer, digest.FromString(body), "the client notices nothing")
	assert.Equal(t, 1, up.Count("GET /v2/app/blobs/* 206"), "the rest was asked for by Range")
}

func TestATestWithAFaultTakes20Lines(t *testing.T) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "fault_test.go", nil, parser.SkipObjectResolution)
	require.NoError(t, err)
	f := file.Decls[1]
	assert.LessOrEqual(t, fset.Position(f.End()).Line-fset.Position(f.Pos()).Line+1, 20)
}
