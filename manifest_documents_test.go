package pullthrough_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A manifest of testdata/manifests is passed on and kept byte for byte, or not at all.
func TestDocumentsArePassedOnAsTheyAre(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{})
	p := &pullthrough.Proxy{
		Store:    memstore.New(),
		Rules:    pullthrough.StaticRules{{Prefix: "mirror", UpstreamURL: up.URL}},
		SpoolDir: t.TempDir(),
	}
	t.Cleanup(func() { assert.NoError(t, p.Shutdown(context.Background())) })
	for _, folder := range []string{"accepted", "refused"} {
		files, err := filepath.Glob(filepath.Join("testdata", "manifests", folder, "*.json"))
		require.NoError(t, err)
		require.NotEmpty(t, files)
		for _, file := range files {
			t.Run(folder+"/"+filepath.Base(file), func(t *testing.T) {
				content, err := os.ReadFile(file)
				require.NoError(t, err)
				name := strings.TrimSuffix(filepath.Base(file), ".json")
				up.Push(name, "1", &pullthroughtest.Image{MediaType: "application/octet-stream", Content: content})
				r := pullthrough.Request{Repo: pullthrough.Repo{Name: "mirror/" + name}, Ref: "1"}
				m, err := p.Manifest(t.Context(), r)
				require.NoError(t, p.Idle(context.Background()))
				stored, storeErr := p.Store.Manifest(t.Context(), r.Repo, r.Ref)
				if folder == "refused" {
					assert.Error(t, err)
					assert.Error(t, storeErr)
					return
				}
				require.NoError(t, err)
				require.NoError(t, storeErr)
				assert.Equal(t, string(content), string(m.Content))
				assert.Equal(t, string(content), string(stored.Content))
			})
		}
	}
}
