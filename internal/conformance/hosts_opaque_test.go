package conformance_test

import (
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	ggcrregistry "github.com/google/go-containerregistry/pkg/registry"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/examples/hosts/wrapped"
)

func newQuietRegistry() http.Handler {
	return ggcrregistry.New(ggcrregistry.Logger(log.New(io.Discard, "", 0)))
}

// The example of docs/embedding.md, examples/hosts/wrapped, around
// go-containerregistry's registry: what crane pulls through is in it afterwards.
func TestTheWrappedExampleAroundGoContainerRegistry(t *testing.T) {
	t.Parallel()
	up := startRecorder(t, newQuietRegistry())
	inner := newQuietRegistry()
	handler, proxy := wrapped.Wrap(inner, pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: up.url()}})
	host, bare := httptest.NewServer(handler), httptest.NewServer(inner)
	t.Cleanup(func() {
		host.Close()
		bare.Close()
		assert.NoError(t, proxy.Shutdown(context.Background()))
	})
	at := func(server *httptest.Server, repo, tag string) ref {
		return ref{host: strings.TrimPrefix(server.URL, "http://"), repo: repo, tag: tag}
	}
	for _, img := range []*image{single, multiArch} {
		img.push(t, at(up.server, img.repo, img.tag))
		want := cranePull(t, at(up.server, img.repo, img.tag), img)
		up.take()
		assert.Equal(t, want, cranePull(t, at(host, "hub/"+img.repo, img.tag), img))
		_, err := proxy.Import(t.Context(), pullthrough.Request{Repo: pullthrough.Repo{Name: "hub/" + img.repo}, Ref: img.tag}, pullthrough.ImportOptions{})
		require.NoError(t, err)

		seen := map[string]bool{}
		for _, line := range up.take() {
			assert.False(t, seen[line], "%s: once is enough", line)
			seen[line] = true
		}
		assert.Len(t, seen, len(want.Manifests)+len(want.Blobs))
		assert.Equal(t, want, cranePull(t, at(host, "hub/"+img.repo, img.tag), img))
		assert.Equal(t, want, cranePull(t, at(bare, "hub/"+img.repo, img.tag), img), "the registry has it")
		assert.Empty(t, up.take())
	}
	pushImage(t, at(host, "team/app", "v1"), ociImage(t, 7, 5000))
	cranePull(t, at(host, "team/app", "v1"), single)
	assert.Empty(t, up.take(), "what no rule covers is the registry's own affair")
}
