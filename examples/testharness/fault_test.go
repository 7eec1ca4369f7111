package main

import (
	"go/parser"
	"go/token"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/fakeecr"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A test with a fault: an upstream registry that cuts a layer off half-way.
func TestALayerThatIsCutOffIsResumed(t *testing.T) {
	ecr := pullthroughtest.NewECR(t, nil, fakeecr.Config{}) // an ECR, and the registry behind its rule docker-hub
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 2 << 20})
	ecr.Upstream.Push("library/app", "1", img)
	ecr.Upstream.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/*", Times: 1, CutAfter: new(int64(1 << 20))})

	status, _ := get(t, ecr.URL+"/v2/docker-hub/library/app/manifests/1") // as on ECR, it makes the repository
	assert.Equal(t, 200, status)
	layer := img.Layers[0].Digest
	_, body := get(t, ecr.URL+"/v2/docker-hub/library/app/blobs/"+layer.String())
	assert.Equal(t, layer, digest.FromString(body), "the client notices nothing")
	assert.Equal(t, 1, ecr.Upstream.Count("GET /v2/library/app/blobs/* 206"), "the rest was asked for by Range")
}

func TestATestWithAFaultTakes20Lines(t *testing.T) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "fault_test.go", nil, parser.SkipObjectResolution)
	require.NoError(t, err)
	f := file.Decls[1]
	assert.LessOrEqual(t, fset.Position(f.End()).Line-fset.Position(f.Pos()).Line+1, 20)
}
