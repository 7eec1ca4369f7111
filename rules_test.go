package pullthrough_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestMatch(t *testing.T) {
	rules := []pullthrough.Rule{
		{Prefix: "docker"},
		{Prefix: "docker/hub"},
		{Prefix: "slash/"},
		{Prefix: "k8s.io"},
		{Prefix: "my-app", UpstreamPrefix: "upstream-app"},
		{Prefix: "team-a", UpstreamPrefix: "team-a/"},
		{Prefix: "plain", UpstreamPrefix: "ROOT"},
		{Prefix: ""},
	}
	withRoot := append([]pullthrough.Rule{{Prefix: "ROOT"}}, rules...)
	for name, tc := range map[string]struct {
		rules                  []pullthrough.Rule
		name, prefix, upstream string // prefix "": none matches
	}{
		"the rest of the name goes upstream":         {rules, "docker/library/alpine", "docker", "library/alpine"},
		"the longest prefix wins":                    {rules, "docker/hub/library/alpine", "docker/hub", "library/alpine"},
		"whole path components only":                 {rules, "docker/hubx/a", "docker", "hubx/a"},
		"a longer component is another name":         {rules, "dockerx/a", "", ""},
		"a shorter component is another name":        {rules, "dock/a", "", ""},
		"the prefix alone is not covered":            {rules, "docker", "", ""},
		"the prefix and a slash is no name":          {rules, "docker/", "", ""},
		"a longer prefix alone belongs to a shorter": {rules, "docker/hub", "docker", "hub"},
		"a slash at the end means the same as none":  {rules, "slash/a", "slash/", "a"},
		"dots are literal":                           {rules, "k8sxio/a", "", ""},
		"dots in a prefix":                           {rules, "k8s.io/pause", "k8s.io", "pause"},
		"upstream prefix":                            {rules, "my-app/image1", "my-app", "upstream-app/image1"},
		"upstream prefix with a slash":               {rules, "team-a/myapp/image1", "team-a", "team-a/myapp/image1"},
		"upstream prefix ROOT adds nothing":          {rules, "plain/image1", "plain", "image1"},
		"ROOT covers what no other rule does":        {withRoot, "my/image1", "ROOT", "my/image1"},
		"ROOT comes last":                            {withRoot, "docker/a", "docker", "a"},
		"ROOT covers names of one component":         {withRoot, "docker", "ROOT", "docker"},
		"the prefix ROOT is no path component":       {withRoot, "ROOT/a", "ROOT", "ROOT/a"},
		"no rules":                                   {nil, "docker/a", "", ""},
		"no name":                                    {withRoot, "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			rule, upstream, ok := pullthrough.Match(tc.rules, tc.name)
			assert.Equal(t, tc.prefix != "", ok)
			assert.Equal(t, tc.prefix, rule.Prefix)
			assert.Equal(t, tc.upstream, upstream)
		})
	}
}

func TestOfTwoEqualPrefixesTheFirstWins(t *testing.T) {
	rule, _, ok := pullthrough.Match([]pullthrough.Rule{{Prefix: "a/", Upstream: "1"}, {Prefix: "a", Upstream: "2"}}, "a/b")
	require.True(t, ok)
	assert.Equal(t, "1", rule.Upstream)
}

func TestMatchKeepsNothingAndAllocatesLittle(t *testing.T) {
	rules := make([]pullthrough.Rule, 50)
	for i := range rules {
		rules[i].Prefix = strings.Repeat("a", i+1)
	}
	assert.LessOrEqual(t, testing.AllocsPerRun(100, func() { pullthrough.Match(rules, "aaaaaaaaaaaaaaaa/library/alpine") }), 0.0)
}

func TestCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		rule pullthrough.Rule
		bad  string // in the message; "": the rule is good
	}{
		"as ECR spells it":              {pullthrough.Rule{Prefix: "docker-hub", UpstreamURL: "registry-1.docker.io"}, ""},
		"with a port":                   {pullthrough.Rule{Prefix: "a", UpstreamURL: "localhost:5000"}, ""},
		"an http URL":                   {pullthrough.Rule{Prefix: "a", UpstreamURL: "http://127.0.0.1:5000"}, ""},
		"a URL with a path":             {pullthrough.Rule{Prefix: "a", UpstreamURL: "https://example.com/api/docker/remote"}, ""},
		"a path that begins with v2":    {pullthrough.Rule{Prefix: "a", UpstreamURL: "https://example.com/v2/mirror"}, ""},
		"host and path that end in v2":  {pullthrough.Rule{Prefix: "a", UpstreamURL: "docker.io/v2"}, ""},
		"a path that ends in xv2":       {pullthrough.Rule{Prefix: "a", UpstreamURL: "https://example.com/xv2"}, ""},
		"a URL that ends in v2":         {pullthrough.Rule{Prefix: "a", UpstreamURL: "https://quay.io/v2"}, "write the URL without /v2"},
		"a URL that ends in v2 and /":   {pullthrough.Rule{Prefix: "a", UpstreamURL: "http://127.0.0.1:5000/v2/"}, `"http://127.0.0.1:5000/v2/"`},
		"a URL that ends in v2 and //":  {pullthrough.Rule{Prefix: "a", UpstreamURL: "https://quay.io/v2//"}, "write the URL without /v2"},
		"a longer URL that ends in v2":  {pullthrough.Rule{Prefix: "a", UpstreamURL: "https://quay.io/mirror/v2"}, "write the URL without /v2"},
		"prefix of several components":  {pullthrough.Rule{Prefix: "a/b-c/d__e/f.g", UpstreamURL: "quay.io"}, ""},
		"prefix with a slash":           {pullthrough.Rule{Prefix: "a/", UpstreamURL: "quay.io"}, ""},
		"ROOT":                          {pullthrough.Rule{Prefix: "ROOT", UpstreamURL: "quay.io"}, ""},
		"ROOT to ROOT":                  {pullthrough.Rule{Prefix: "ROOT", UpstreamURL: "quay.io", UpstreamPrefix: "ROOT"}, ""},
		"no prefix":                     {pullthrough.Rule{UpstreamURL: "quay.io"}, `prefix ""`},
		"prefix in upper case":          {pullthrough.Rule{Prefix: "Docker", UpstreamURL: "quay.io"}, `"Docker"`},
		"prefix with two slashes":       {pullthrough.Rule{Prefix: "a//b", UpstreamURL: "quay.io"}, `"a//b"`},
		"prefix with a leading slash":   {pullthrough.Rule{Prefix: "/a", UpstreamURL: "quay.io"}, `"/a"`},
		"prefix that climbs":            {pullthrough.Rule{Prefix: "../a", UpstreamURL: "quay.io"}, `"../a"`},
		"bad upstream prefix":           {pullthrough.Rule{Prefix: "a", UpstreamURL: "quay.io", UpstreamPrefix: "B!"}, `"B!"`},
		"ROOT with an upstream prefix":  {pullthrough.Rule{Prefix: "ROOT", UpstreamURL: "quay.io", UpstreamPrefix: "b"}, `"b"`},
		"no upstream":                   {pullthrough.Rule{Prefix: "a"}, `upstream URL ""`},
		"an upstream that is no URL":    {pullthrough.Rule{Prefix: "a", UpstreamURL: "http://[::1"}, `"http://[::1"`},
		"another scheme":                {pullthrough.Rule{Prefix: "a", UpstreamURL: "ftp://quay.io"}, `"ftp://quay.io"`},
		"a scheme and no host":          {pullthrough.Rule{Prefix: "a", UpstreamURL: "https://"}, `"https://"`},
		"a host with a space":           {pullthrough.Rule{Prefix: "a", UpstreamURL: "quay .io"}, `"quay .io"`},
		"a query":                       {pullthrough.Rule{Prefix: "a", UpstreamURL: "quay.io?x=y"}, `"quay.io?..."`},
		"a fragment":                    {pullthrough.Rule{Prefix: "a", UpstreamURL: "quay.io#x"}, `"quay.io#x"`},
		"a path that climbs":            {pullthrough.Rule{Prefix: "a", UpstreamURL: "https://quay.io/../x"}, `"https://quay.io/../x"`},
		"credentials, without the word": {pullthrough.Rule{Prefix: "a", UpstreamURL: "https://u:canary@quay.io"}, `"...@quay.io"`},
		"credentials in what is no URL": {pullthrough.Rule{Prefix: "a", UpstreamURL: "https://u:canary@quay.io:x"}, `"...@quay.io:x"`},
		"a scheme alone":                {pullthrough.Rule{Prefix: "a", UpstreamURL: "https:"}, `"https:"`},
		"one slash too few":             {pullthrough.Rule{Prefix: "a", UpstreamURL: "https:/quay.io"}, `"https:/quay.io"`},
		"an empty port":                 {pullthrough.Rule{Prefix: "a", UpstreamURL: "quay.io:"}, `"quay.io:"`},
		"a port that is none":           {pullthrough.Rule{Prefix: "a", UpstreamURL: "quay.io:99999"}, `"quay.io:99999"`},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.rule.Check()
			if tc.bad == "" {
				assert.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, pullthrough.ErrInvalid)
			assert.Contains(t, err.Error(), tc.bad)
			assert.NotContains(t, err.Error(), "canary")
		})
	}
}

// A rule that can never match is the host's mistake: the error for a name that no
// rule covers tells of it, and pulls by the other rules go on.
func TestARuleThatCannotMatchIsReported(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	w.Up.Push("a", "1", img)
	w.Rules = append(pullthrough.StaticRules{{Prefix: "", UpstreamURL: "quay.io"}}, w.Rules.(pullthrough.StaticRules)...)
	w.Pull(t, "a", "1", img)
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: pullthrough.Repo{Name: "other/a"}, Ref: "1"})
	assert.ErrorIs(t, err, pullthrough.ErrNoRule, "the name is not covered, and hosts go on with their own 404")
	assert.ErrorIs(t, err, pullthrough.ErrInvalid)
	assert.ErrorContains(t, err, `prefix ""`)
	status, _, _ := pullthrough.OCI(err)
	assert.Equal(t, 404, status)
}

func TestABrokenRuleIsTheHostsFault(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	w.Rules = pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: "https://u:canary@quay.io/?x"}}
	_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
	require.ErrorIs(t, err, pullthrough.ErrInvalid)
	assert.NotContains(t, err.Error(), "canary")
	status, code, _ := pullthrough.OCI(err)
	assert.Equal(t, 500, status)
	assert.Equal(t, "UNKNOWN", code)
	assert.Empty(t, w.Up.Log())
}
