package pullthrough_test

import (
	"context"
	"errors"
	"net/http"
	"net/url"
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

// With Policy.Library Docker Hub's official images have two names. Without it a client whose
// image is not to be had reads what to write.
func TestOfficialImages(t *testing.T) {
	hub := func(prefix, upstreamPrefix string) pullthrough.Rule {
		return pullthrough.Rule{Prefix: prefix, UpstreamURL: "docker.io", UpstreamPrefix: upstreamPrefix}
	}
	quay := pullthrough.Rule{Prefix: "hub", UpstreamURL: "quay.io"}
	for name, c := range map[string]struct {
		rule            pullthrough.Rule
		asked           string // the repository
		as, withLibrary string // its name upstream
		advice          string
	}{
		"official":                {hub("hub", ""), "hub/alpine", "alpine", "library/alpine", "hub/library/alpine"},
		"official, with library":  {hub("hub", ""), "hub/library/alpine", "library/alpine", "library/alpine", ""},
		"somebody's":              {hub("hub", ""), "hub/grafana/grafana", "grafana/grafana", "grafana/grafana", ""},
		"below ROOT":              {hub("ROOT", "ROOT"), "alpine", "alpine", "library/alpine", "library/alpine"},
		"below a longer prefix":   {hub("team/hub/", ""), "team/hub/alpine", "alpine", "library/alpine", "team/hub/library/alpine"},
		"below library itself":    {hub("hub", "library"), "hub/alpine", "library/alpine", "library/alpine", ""},
		"below a team's":          {hub("hub", "grafana"), "hub/grafana", "grafana/grafana", "grafana/grafana", ""},
		"of another registry":     {quay, "hub/alpine", "alpine", "alpine", ""},
		"prefix like the image's": {hub("alpine", ""), "alpine/alpine", "alpine", "library/alpine", "alpine/library/alpine"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, library := range []bool{false, true} {
				want, advice := c.as, c.advice
				if library {
					want, advice = c.withLibrary, ""
				}
				f := testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
					at := testkit.MustURL(t, p.Rules.(pullthrough.StaticRules)[0].UpstreamURL)
					p.Rules = pullthrough.StaticRules{c.rule}
					p.Endpoint = func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) { return at, nil }
					testkit.WithPolicy(pullthrough.Policy{Library: library, UpstreamTags: true})(p)
				})
				img := testkit.Image(1)
				f.Up.Push(want, "1", img)
				f.FetchImage(t, pullthrough.Repo{Name: c.asked}, "1", img)
				assert.Equal(t, 1, f.Up.Count("GET /v2/"+want+"/manifests/1 200"))
				assert.JSONEq(t, `{"name":"`+c.asked+`","tags":["1"]}`, string(f.Get(t, "/v2/"+c.asked+"/tags/list").Content))
				says := testkit.SayNotFound
				if advice != "" {
					says += ". Docker Hub has its official images below library/: ask for '" + advice + "'."
				}
				for range 2 { // the second one is not asked for upstream
					assert.Equal(t, says, testkit.AssertOCI(t, f.Get(t, "/v2/"+c.asked+"/manifests/2"), 404, "MANIFEST_UNKNOWN"))
				}
				assert.Equal(t, 1, f.Up.Count("GET /v2/"+want+"/manifests/2 404"))
			}
		})
	}
}

// Docker Hub denies what it does not have. What our own callers may not do is no reason for
// advice.
func TestAdviceOnOfficialImages(t *testing.T) {
	door := new(testkit.Door)
	f := testkit.NewFace(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, func(p *pullthrough.Proxy) {
		at := testkit.MustURL(t, p.Rules.(pullthrough.StaticRules)[0].UpstreamURL)
		p.Rules = pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: "registry-1.docker.io"}}
		p.Endpoint = func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) { return at, nil }
		p.Authorize = door.Authorize
	})
	f.Up.Fault(pullthroughtest.Fault{Match: "GET /v2/alpine/*", Status: 401})
	const advice = "Docker Hub has its official images below library/: ask for 'hub/library/alpine'."
	message := testkit.AssertOCI(t, f.Get(t, testkit.ManifestPath("alpine", "1")), 403, "DENIED")
	assert.Equal(t, testkit.SayDenied+" "+advice, message)
	_, err := f.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("alpine"), Ref: "1"})
	_, code, says := pullthrough.AWS(err, "BatchGetImage")
	assert.Equal(t, []string{"UpstreamAccessDenied", testkit.SayDenied + " " + advice}, []string{code, says})
	for action, status := range map[pullthrough.Action]int{pullthrough.ActionPull: 403, pullthrough.ActionImport: 404} {
		door.Set(map[pullthrough.Action]error{action: errors.New("not for you")})
		r := f.Get(t, testkit.ManifestPath("alpine", "1"))
		assert.Equal(t, status, r.StatusCode)
		assert.NotContains(t, string(r.Content), "library")
	}
}
