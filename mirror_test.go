package pullthrough_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// mirror is a proxy of several upstream registries, each with a host name of its own.
type mirror struct {
	*testkit.Face
	ups  map[string]*pullthroughtest.Upstream // by host
	door *testkit.Door
	told testkit.Events
}

// newMirror returns a mirror by these rules. Rules that name a host without an upstream lead nowhere.
func newMirror(t *testing.T, change func(*pullthrough.Proxy), rules ...pullthrough.Rule) *mirror {
	t.Helper()
	m := &mirror{ups: map[string]*pullthroughtest.Upstream{}, door: new(testkit.Door)}
	for _, host := range []string{"registry-1.docker.io", "quay.io", "quay.io:8443"} {
		m.ups[host] = pullthroughtest.New(t, pullthroughtest.Config{})
	}
	m.Face = testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Mirror, p.Rules, p.Authorize, p.OnEvent = true, pullthrough.StaticRules(rules), m.door.Authorize, m.told.On
		p.Endpoint = func(_ context.Context, _ pullthrough.Repo, rule pullthrough.Rule) (*url.URL, error) {
			host := strings.TrimPrefix(rule.UpstreamURL, "https://")
			if host == "docker.io" {
				host = "registry-1.docker.io"
			}
			if up := m.ups[host]; up != nil {
				return url.Parse(up.URL)
			}
			return nil, errors.New("no such upstream")
		}
		if change != nil {
			change(p)
		}
	})
	return m
}

func (m *mirror) take() (log []string) {
	for host, up := range m.ups {
		for _, line := range up.Log() {
			log = append(log, host+" "+line)
		}
		up.Reset()
	}
	return log
}

var (
	hubRule  = pullthrough.Rule{Prefix: "hub", UpstreamURL: "registry-1.docker.io"}
	quayRule = pullthrough.Rule{Prefix: "quay", UpstreamURL: "https://quay.io"}
)

func TestWhatAMirrorMeans(t *testing.T) {
	ruled := func(prefix, upstream, upstreamPrefix string) pullthrough.Rule {
		return pullthrough.Rule{Prefix: prefix, UpstreamURL: upstream, UpstreamPrefix: upstreamPrefix}
	}
	both := []pullthrough.Rule{hubRule, quayRule}
	for name, c := range map[string]struct {
		rules    []pullthrough.Rule
		asked    string // NAME?QUERY
		means    string // the repository; "": 404
		upstream string // the host that is asked for the same name
	}{
		"its own name":                            {both, "library/alpine?ns=docker.io", "hub/library/alpine", "registry-1.docker.io"},
		"its index's name":                        {both, "library/alpine?ns=index.docker.io", "hub/library/alpine", "registry-1.docker.io"},
		"its registry's name":                     {both, "library/alpine?ns=registry-1.docker.io", "hub/library/alpine", "registry-1.docker.io"},
		"another rule's":                          {both, "library/alpine?ns=quay.io", "quay/library/alpine", "quay.io"},
		"upper case":                              {both, "library/alpine?ns=Docker.IO", "hub/library/alpine", "registry-1.docker.io"},
		"the port of https":                       {both, "library/alpine?ns=quay.io:443", "quay/library/alpine", "quay.io"},
		"Docker Hub with a port":                  {both, "library/alpine?ns=docker.io:443", "hub/library/alpine", "registry-1.docker.io"},
		"a rule with the port of https":           {[]pullthrough.Rule{ruled("quay", "https://quay.io:443", "")}, "org/app?ns=quay.io", "quay/org/app", ""},
		"a port that is not the rule's":           {both, "library/alpine?ns=quay.io:8443", "", ""},
		"the port of http, of an https rule":      {both, "library/alpine?ns=quay.io:80", "", ""},
		"a rule with a port":                      {[]pullthrough.Rule{quayRule, ruled("other", "quay.io:8443", "")}, "org/app?ns=quay.io:8443", "other/org/app", "quay.io:8443"},
		"a name like a prefix":                    {both, "hub/app?ns=docker.io", "hub/hub/app", "registry-1.docker.io"},
		"an upstream prefix":                      {[]pullthrough.Rule{ruled("team", "quay.io", "org/team")}, "org/team/app?ns=quay.io", "team/app", "quay.io"},
		"beside the upstream prefix":              {[]pullthrough.Rule{ruled("team", "quay.io", "org/team")}, "org/teams/app?ns=quay.io", "", ""},
		"nothing but the upstream prefix":         {[]pullthrough.Rule{ruled("team", "quay.io", "org/team")}, "org/team?ns=quay.io", "", ""},
		"the longest upstream prefix":             {[]pullthrough.Rule{quayRule, ruled("org", "quay.io", "org"), ruled("team", "quay.io", "org/team/")}, "org/team/app?ns=quay.io", "team/app", "quay.io"},
		"none of the longer ones":                 {[]pullthrough.Rule{ruled("team", "quay.io", "org/team"), quayRule}, "org/app?ns=quay.io", "quay/org/app", "quay.io"},
		"ROOT":                                    {[]pullthrough.Rule{ruled("ROOT", "docker.io", "ROOT"), quayRule}, "library/alpine?ns=docker.io", "library/alpine", "registry-1.docker.io"},
		"ROOT, for another host":                  {[]pullthrough.Rule{ruled("ROOT", "docker.io", ""), quayRule}, "org/app?ns=ghcr.io", "", ""},
		"a prefix before ROOT":                    {[]pullthrough.Rule{ruled("ROOT", "docker.io", ""), hubRule}, "library/alpine?ns=docker.io", "hub/library/alpine", "registry-1.docker.io"},
		"below ROOT, a name of another rule":      {[]pullthrough.Rule{ruled("ROOT", "docker.io", ""), quayRule}, "quay/app?ns=docker.io", "", ""},
		"a name of a longer rule of another host": {[]pullthrough.Rule{hubRule, ruled("hub/team", "quay.io", "")}, "team/app?ns=docker.io", "", ""},
		"the same, and a third rule":              {[]pullthrough.Rule{hubRule, ruled("hub/team", "quay.io", ""), ruled("dock", "docker.io", "")}, "team/app?ns=docker.io", "dock/team/app", "registry-1.docker.io"},
		"the same, of the same host":              {[]pullthrough.Rule{hubRule, ruled("hub/team", "docker.io", "team")}, "team/app?ns=docker.io", "hub/team/app", "registry-1.docker.io"},
		"of two rules that are alike the first":   {[]pullthrough.Rule{hubRule, ruled("dock", "docker.io", "")}, "library/alpine?ns=docker.io", "hub/library/alpine", "registry-1.docker.io"},
		"a registry below a path":                 {[]pullthrough.Rule{ruled("hub", "https://quay.io/hub", "")}, "org/app?ns=quay.io", "", ""},
		"beside a rule that is wrong":             {[]pullthrough.Rule{ruled("bad", "https://me:secret@quay.io", ""), quayRule}, "org/app?ns=quay.io", "quay/org/app", "quay.io"},
		"an escaped parameter":                    {both, "library/alpine?n%73=docker%2Eio", "hub/library/alpine", "registry-1.docker.io"},
		"an empty host":                           {both, "hub/library/alpine?ns=", "hub/library/alpine", ""},
		"no host":                                 {both, "hub/library/alpine?x=docker.io", "hub/library/alpine", ""},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMirror(t, nil, c.rules...)
			repo, query, _ := strings.Cut(c.asked, "?")
			img := testkit.Image(1)
			if up := m.ups[c.upstream]; up != nil {
				up.Push(repo, "1", img)
			}
			m.take()
			r := m.Get(t, "/v2/"+repo+"/manifests/1?"+query)
			requests, _ := m.door.Requests()
			if c.means == "" {
				assert.Contains(t, testkit.AssertOCI(t, r, 404, "NAME_UNKNOWN"), "No pull through cache rule")
				assert.Empty(t, requests)
				assert.Empty(t, m.take())
				events := m.told.Of(pullthrough.EventManifest)
				require.Len(t, events, 1)
				assert.ErrorIs(t, events[0].Err, pullthrough.ErrNoRule)
				assert.Equal(t, repo, events[0].Request.Repo.Name)
				return
			}
			for _, asked := range requests {
				assert.Equal(t, c.means, asked.Repo.Name)
			}
			assert.NotEmpty(t, requests)
			if c.upstream == "" {
				return
			}
			testkit.AssertManifest(t, r, "GET", img, img.Digest)
			assert.Equal(t, []string{c.upstream + " GET /v2/" + repo + "/manifests/1 200"}, m.take())
			m.Settled(t)
			repos, err := m.Mem.Repos(t.Context(), "", "")
			require.NoError(t, err)
			assert.Equal(t, []string{c.means}, repos)
		})
	}
}

// A host that is none, or of which there are two, is the client's mistake.
func TestAMirrorRefusesWhatIsNoHost(t *testing.T) {
	m := newMirror(t, nil, hubRule, pullthrough.Rule{Prefix: "ROOT", UpstreamURL: "quay.io"})
	for _, query := range []string{
		"ns=https://docker.io", "ns=docker.io/library", "ns=docker.io:", "ns=docker.io:http", "ns=docker+io", "ns=me@docker.io", "ns=%00",
		"ns=docker.io&ns=quay.io", "ns=&ns=quay.io", "ns=docker.io&ns=docker.io", "ns=" + strings.Repeat("a", 300),
	} {
		for _, path := range []string{"/v2/library/alpine/manifests/1", "/v2/library/alpine/tags/list", "/v2/library/alpine/blobs/" + digest.FromString("").String()} {
			testkit.AssertOCI(t, m.Get(t, path+"?"+query), 400, "NAME_INVALID")
		}
	}
	assert.Empty(t, m.take())
}

// All that a client may ask for is that of the one name.
func TestAMirrorServesAllKinds(t *testing.T) {
	m := newMirror(t, nil, hubRule, quayRule)
	hub, img := m.ups["registry-1.docker.io"], testkit.Image(1)
	signature := pullthroughtest.NewImage(pullthroughtest.ImageOptions{ArtifactType: "application/x.signature", Subject: img})
	hub.Push("library/alpine", "1", img)
	hub.Push("library/alpine", "", signature)
	layer := img.Layers[0]
	paths := map[string]string{
		"manifests/1": img.MediaType, "manifests/" + img.Digest.String(): img.MediaType,
		"blobs/" + layer.Digest.String(): testkit.OctetStream, "blobs/" + strings.Replace(layer.Digest.String(), ":", "%3A", 1): testkit.OctetStream,
		"referrers/" + img.Digest.String(): ocispec.MediaTypeImageIndex, "tags/list": "application/json",
	}
	m.Get(t, "/v2/library/alpine/manifests/1?ns=docker.io")
	for path, mediaType := range paths {
		for _, method := range []string{http.MethodHead, http.MethodGet} {
			mirrored := m.Ask(t, method, "/v2/library/alpine/"+path+"?ns=docker.io")
			plain := m.Ask(t, method, "/v2/hub/library/alpine/"+path)
			assert.Equal(t, 200, mirrored.StatusCode, path)
			assert.Equal(t, mediaType, mirrored.Header.Get("Content-Type"), path)
			assert.Equal(t, plain.Content, mirrored.Content, path)
			assert.Equal(t, 404, m.Ask(t, method, "/v2/library/alpine/"+path+"?ns=ghcr.io").StatusCode, path)
			if !strings.HasPrefix(path, "referrers/") { // a list of nothing is empty
				assert.Equal(t, 404, m.Ask(t, method, "/v2/library/alpine/"+path).StatusCode, "%s: without a host it is another repository", path)
			}
		}
	}
	r := m.Get(t, "/v2/library/alpine/referrers/"+img.Digest.String()+"?ns=docker.io&artifactType=application/x.signature")
	assert.Contains(t, string(r.Content), signature.Digest)
	assert.Equal(t, "artifactType", r.Header.Get("OCI-Filters-Applied"))
	part := m.Get(t, "/v2/library/alpine/blobs/"+layer.Digest.String()+"?ns=docker.io", "Range", "bytes=1-3")
	assert.Equal(t, 206, part.StatusCode)
	assert.JSONEq(t, `{"repositories":["hub/library/alpine"]}`, string(m.Get(t, "/v2/_catalog?ns=docker.io").Content))
	assert.Equal(t, 200, m.Get(t, "/v2/?ns=ghcr.io").StatusCode)
	assert.Equal(t, 405, testkit.Send(t, m.Server, http.MethodPut, "/v2/library/alpine/manifests/1?ns=docker.io", "{}").StatusCode)
	m.Settled(t)
	assert.Equal(t, 1, hub.Count("GET /v2/library/alpine/manifests/1 200"))
	assert.Equal(t, 1, hub.Count("GET /v2/library/alpine/blobs/"+layer.Digest.String()+" 200"))
	assert.Empty(t, m.ups["quay.io"].Log())
	requests, _ := m.door.Requests()
	for _, asked := range requests {
		assert.NotEqual(t, "quay/library/alpine", asked.Repo.Name)
	}
}

// The link to the next page leads on, as it is.
func TestPagesOfAMirrorsTags(t *testing.T) {
	m := newMirror(t, testkit.WithPolicy(pullthrough.Policy{UpstreamTags: true}), hubRule)
	for _, tag := range []string{"1", "2", "3"} {
		m.ups["registry-1.docker.io"].Push("library/alpine", tag, testkit.Image(1))
	}
	path, tags := "/v2/library/alpine/tags/list?n=2&ns=docker.io", ""
	for path != "" {
		r := m.Get(t, path)
		require.Equal(t, 200, r.StatusCode)
		tags += string(r.Content)
		link, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Link"), "<"+m.Server.URL), ">")
		path = link
	}
	assert.Equal(t, `{"name":"hub/library/alpine","tags":["1","2"]}{"name":"hub/library/alpine","tags":["3"]}`, tags)
}

// One path stands for as many repositories as there are hosts, cold and warm, at the same
// time.
func TestAMirrorMixesNoHosts(t *testing.T) {
	m := newMirror(t, nil, hubRule, quayRule)
	images := map[string]*pullthroughtest.Image{"docker.io": testkit.Image(1), "quay.io": testkit.Image(2)}
	m.ups["registry-1.docker.io"].Push("org/app", "1", images["docker.io"])
	m.ups["quay.io"].Push("org/app", "1", images["quay.io"])
	for range 2 {
		var pulls sync.WaitGroup
		for host, img := range images {
			for range 8 {
				pulls.Go(func() {
					r := m.Get(t, "/v2/org/app/manifests/1?ns="+host)
					assert.Equal(t, img.Content, r.Content)
					for other, theirs := range images {
						r := m.Get(t, "/v2/org/app/blobs/"+img.Layers[0].Digest.String()+"?ns="+other)
						assert.Equal(t, other == host, r.StatusCode == 200, "%s %s", host, theirs.Digest)
					}
				})
			}
		}
		pulls.Wait()
		m.Settled(t)
	}
	for host, up := range m.ups {
		if host != "quay.io:8443" {
			assert.Equal(t, 1, up.Count("GET /v2/org/app/manifests/1 200"), host)
		}
	}
}

// Without Mirror the host means nothing, unless only ROOT would answer for it.
func TestWithoutMirror(t *testing.T) {
	root := pullthrough.Rule{Prefix: "ROOT", UpstreamURL: "docker.io"}
	m := newMirror(t, func(p *pullthrough.Proxy) { p.Mirror = false }, root, quayRule)
	img := testkit.Image(1)
	m.ups["registry-1.docker.io"].Push("library/alpine", "1", img)
	m.ups["quay.io"].Push("org/app", "1", img)
	asked := func(path string) int {
		t.Helper()
		status := m.Get(t, path).StatusCode
		assert.Equal(t, status, m.Ask(t, http.MethodHead, path).StatusCode)
		return status
	}
	assert.Equal(t, 404, asked("/v2/library/alpine/manifests/1?ns=quay.io"), "nothing is stored")
	assert.Empty(t, m.take())
	assert.Equal(t, 200, asked("/v2/library/alpine/manifests/1?ns=docker.io"))
	m.Settled(t)
	assert.Equal(t, 200, asked("/v2/library/alpine/manifests/1"))
	for _, query := range []string{"ns=quay.io", "ns=docker.io:80", "ns=docker.io&ns=docker.io", "ns=/"} {
		assert.Equal(t, 404, asked("/v2/library/alpine/manifests/1?"+query), "what is stored is another registry's")
		assert.Equal(t, 404, asked("/v2/library/alpine/blobs/"+img.Layers[0].Digest.String()+"?"+query))
		assert.Equal(t, 404, asked("/v2/library/alpine/tags/list?"+query))
		assert.Equal(t, 404, asked("/v2/library/alpine/referrers/"+img.Digest.String()+"?"+query))
		assert.Equal(t, 200, asked("/v2/quay/org/app/manifests/1?"+query), "a rule with a prefix owns the name")
	}
	m.Settled(t)
	assert.ElementsMatch(t, []string{"registry-1.docker.io GET /v2/library/alpine/manifests/1 200", "quay.io GET /v2/org/app/manifests/1 200"}, m.take())
}

// Where the rules cannot be read nobody knows which repository a client means.
func TestAMirrorWithoutRules(t *testing.T) {
	var failure error
	m := newMirror(t, func(p *pullthrough.Proxy) {
		p.Rules = pullthrough.RuleSourceFunc(func(context.Context, string, string) ([]pullthrough.Rule, error) {
			return []pullthrough.Rule{hubRule}, failure
		})
	}, hubRule)
	m.ups["registry-1.docker.io"].Push("library/alpine", "1", testkit.Image(1))
	assert.Equal(t, 200, m.Get(t, "/v2/library/alpine/manifests/1?ns=docker.io").StatusCode)
	m.Settled(t)
	failure = errors.New("the host's database is away")
	testkit.AssertOCI(t, m.Get(t, "/v2/library/alpine/manifests/1?ns=docker.io"), 500, "UNKNOWN")
	assert.Equal(t, 200, m.Get(t, "/v2/hub/library/alpine/manifests/1").StatusCode, "it is stored")
	assert.Len(t, m.take(), 1)
}

// The rules are those of the caller's account.
func TestAMirrorOfAnAccount(t *testing.T) {
	m := newMirror(t, func(p *pullthrough.Proxy) {
		p.Identify = pullthrough.HostIdentity
		p.Rules = pullthrough.RuleSourceFunc(func(_ context.Context, account, _ string) ([]pullthrough.Rule, error) {
			if account == testkit.RegistryAccount {
				return []pullthrough.Rule{hubRule}, nil
			}
			return nil, nil
		})
	})
	m.ups["registry-1.docker.io"].Push("library/alpine", "1", testkit.Image(1))
	const path = "/v2/library/alpine/manifests/1?ns=docker.io"
	assert.Equal(t, 200, m.Get(t, path, "Host", testkit.RegistryHost).StatusCode)
	testkit.AssertOCI(t, m.Get(t, path, "Host", "210987654321.dkr.ecr.eu-west-1.amazonaws.com"), 404, "NAME_UNKNOWN")
	m.door.Set(map[pullthrough.Action]error{pullthrough.ActionPull: errors.New("not for you")})
	assert.Equal(t, "not for you", testkit.AssertOCI(t, m.Get(t, path, "Host", testkit.RegistryHost), 403, "DENIED"))
	assert.Len(t, m.take(), 1)
}

// A registry behind Handler gets what clients mean, by all methods, and nothing that no rule
// has.
func TestAMirrorBeforeAnotherRegistry(t *testing.T) {
	for _, mirror := range []bool{true, false} {
		m := newMirror(t, func(p *pullthrough.Proxy) { p.Mirror = mirror }, hubRule)
		next := newShelf("/v2/library/mine/manifests/1", "/v2/library/mine/tags/list", "/v2/hub/library/mine/tags/list")
		srv := testkit.Serve(t, m.Handler(next))
		ask := func(method, path string) int { return testkit.Send(t, srv, method, path, "").StatusCode }
		meant := "/v2/library/mine"
		if mirror {
			meant = "/v2/hub/library/mine"
		}
		ask(http.MethodPost, "/v2/library/mine/blobs/uploads/?ns=docker.io&mount=x")
		ask(http.MethodPut, "/v2/library/mine/manifests/1?ns=docker.io")
		assert.Equal(t, 200, ask(http.MethodGet, "/v2/library/mine/tags/list?ns=docker.io"))
		layer := "/blobs/" + digest.FromString("x").String()
		assert.Equal(t, 404, ask(http.MethodHead, "/v2/library/mine"+layer+"?ns=docker.io"))
		assert.Equal(t, []string{"POST " + meant + "/blobs/uploads/", "PUT " + meant + "/manifests/1", "GET " + meant + "/tags/list", "HEAD " + meant + layer}, next.take())

		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPut} {
			status := ask(method, "/v2/library/mine/manifests/1?ns=ghcr.io")
			if mirror {
				assert.Equal(t, 404, status)
				assert.Empty(t, next.take(), "it is no registry for ghcr.io")
			} else {
				assert.Equal(t, 200, status)
				assert.Len(t, next.take(), 1)
			}
		}
		assert.Equal(t, 200, ask(http.MethodGet, "/v2/library/mine/manifests/1"), "next's own")
	}
}

// A caller is identified once, by the request as it came.
func TestAMirrorIdentifiesItsCallers(t *testing.T) {
	var asked []string
	m := newMirror(t, func(p *pullthrough.Proxy) {
		p.Identify = func(r *http.Request) (pullthrough.Identity, error) {
			asked = append(asked, r.URL.String())
			if r.Header.Get("Authorization") == "" {
				return pullthrough.Identity{}, pullthrough.ErrUnauthorized
			}
			return pullthrough.Identity{}, nil
		}
	}, hubRule)
	m.ups["registry-1.docker.io"].Push("library/alpine", "1", testkit.Image(1))
	for name, srv := range map[string]http.Handler{"alone": m.Proxy, "before next": m.Handler(newShelf())} {
		server := testkit.Serve(t, srv)
		for _, path := range []string{"/v2/library/alpine/manifests/1?ns=docker.io", "/v2/library/alpine/manifests/1?ns=ghcr.io"} {
			asked = nil
			testkit.AssertOCI(t, testkit.Send(t, server, http.MethodGet, path, ""), 401, "UNAUTHORIZED")
			testkit.Send(t, server, http.MethodGet, path, "", "Authorization", "Basic eA==")
			assert.Equal(t, []string{path, path}, asked, name)
		}
	}
}

// TestTryServeOfAMirror: what names another registry is not for a router that goes by the path.
func TestTryServeOfAMirror(t *testing.T) {
	m := newMirror(t, func(p *pullthrough.Proxy) { p.Mirror = true }, hubRule)
	for _, c := range []struct{ method, path string }{
		{http.MethodPut, "/v2/library/mine/manifests/1?ns=docker.io"},
		{http.MethodGet, "/v2/library/mine/tags/list?ns=docker.io"},
		{http.MethodHead, "/v2/library/mine/blobs/" + digest.FromString("x").String() + "?ns=docker.io"},
		{http.MethodGet, "/v2/library/mine/manifests/1?ns=ghcr.io"},
	} {
		rec := httptest.NewRecorder()
		assert.True(t, m.TryServe(rec, httptest.NewRequestWithContext(t.Context(), c.method, c.path, nil)), c)
		assert.Equal(t, http.StatusNotFound, rec.Code, c)
	}
	assert.False(t, m.TryServe(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2/mine/manifests/1", nil)))
}
