package pullthrough_test

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestTheUpstreamPrefixAndNestedNames(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	w.Rules = pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: w.Up.URL + "/", UpstreamPrefix: "org/team"}}
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("org/team/blobs/manifests", "1", img)
	w.Pull(t, "blobs/manifests", "1", img)
	assert.Equal(t, 1, w.Up.Count("GET /v2/org/team/blobs/manifests/manifests/1 200"))
}

func TestDockerHubBySeveralNames(t *testing.T) {
	for _, spelled := range []string{"registry-1.docker.io", "docker.io", "index.docker.io", "https://docker.io"} {
		var asked string
		p := &pullthrough.Proxy{
			Store: memstore.New(),
			Rules: pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: spelled}},
			Policy: func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
				return pullthrough.Policy{Retries: -1}
			},
			Transport: testkit.RoundTripper(func(r *http.Request) (*http.Response, error) {
				asked = r.URL.String()
				return nil, errors.New("no network here")
			}),
		}
		_, err := p.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("library/alpine"), Ref: "3"})
		assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
		assert.Equal(t, "https://registry-1.docker.io/v2/library/alpine/manifests/3", asked)
	}
}
