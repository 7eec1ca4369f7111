package pullthrough_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
)

// FuzzMatch compares Match with the definition, read word by word: for each
// beginning of the name in whole components, from the longest to the shortest,
// for each rule in order. A line of text is a rule: its prefix and, after a
// space, its upstream prefix.
func FuzzMatch(f *testing.F) {
	for _, seed := range [][2]string{
		{"dockerhub", "dockerhub/a"}, {"dockerhub/", "dockerhub/a"}, {"dockerhub", "dockerhubx/a"}, {"dockerhub", "dockerhub//a"},
		{"dockerhub", "dockerhub"}, {"dockerhub", "dockerhub/"}, {"docker/hub\ndocker", "docker/hub/a/b"}, {"docker\ndocker/hub", "docker/hub/a/b"},
		{"docker/hub\ndocker", "docker/hubx/a"}, {"docker/hub\ndocker", "docker/hub"}, {"x/\nx/private/ team", "x/private/secret"}, {"x/private\nx", "x/private"},
		{"a/ 1\na 2", "a/b"}, {"a 2\na/ 1", "a/b"}, {"ROOT\na", "a/b"}, {"a\nROOT", "b/c"}, {"ROOT ROOT", "a"}, {"ROOT 1\nROOT 2", "a/b"}, {"ROOT/", "ROOT/a"},
		{"ROOT", ""}, {"ROOT", "ROOT"}, {"root", "root/a"}, {"my upstream/app", "my/image"}, {"my upstream/app/", "my/image"}, {"my ROOT", "my/image"}, {"my /", "my/image"},
		{"", "a/b"}, {"", "/a"}, {"/", "//a"}, {"//", "//a"}, {"a//", "a//b"}, {"a/b/", "a/b//c"}, {"k8s.io", "k8sxio/pause"}, {"k8s.io", "k8s.io/pause"},
		{"a", "a/../b"}, {"a/..", "a/../b"}, {"a", "a%2fb/c"}, {"a", "a／b"}, {"a\xff", "a\xff/b"}, {"Docker", "docker/a"}, {"team\nteam/sub\nteam/sub/deep", "team/sub/deeper/x"},
		{strings.Repeat("a/", 127) + "a", strings.Repeat("a/", 127) + "a/b"}, {"robot$proxy", "robot$proxy/x"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, text, name string) {
		var rules []pullthrough.Rule
		for line := range strings.SplitSeq(text, "\n") {
			head, up, _ := strings.Cut(line, " ")
			rules = append(rules, pullthrough.Rule{Prefix: head, UpstreamPrefix: up})
		}
		before := slices.Clone(rules)
		got, upstream, ok := pullthrough.Match(rules, name)
		require.Equal(t, before, rules, "the rules are the host's")
		want, rest := bruteMatch(rules, name)
		if want < 0 {
			require.False(t, ok)
			require.Zero(t, got)
			require.Empty(t, upstream)
			return
		}
		require.True(t, ok)
		require.Equal(t, rules[want], got)
		require.Equal(t, underUpstream(got.UpstreamPrefix, rest), upstream)
		checkOrder(t, rules, name, got)
	})
}

// bruteMatch returns the index of the rule that covers the name, -1 for none,
// and what is left of the name.
func bruteMatch(rules []pullthrough.Rule, name string) (index int, rest string) {
	parts := strings.Split(name, "/")
	for n := len(parts) - 1; n > 0; n-- {
		rest := strings.Join(parts[n:], "/")
		for i, r := range rules {
			prefix := strings.TrimSuffix(r.Prefix, "/")
			if r.Prefix != "ROOT" && prefix != "" && rest != "" && slices.Equal(strings.Split(prefix, "/"), parts[:n]) {
				return i, rest
			}
		}
	}
	for i, r := range rules {
		if r.Prefix == "ROOT" && name != "" {
			return i, name
		}
	}
	return -1, ""
}

func underUpstream(upstreamPrefix, rest string) string {
	prefix := strings.TrimSuffix(upstreamPrefix, "/")
	if prefix == "" || upstreamPrefix == "ROOT" {
		return rest
	}
	return prefix + "/" + rest
}

// checkOrder: only between equal prefixes does the order of the rules decide,
// and a rule that does not cover the name never matters.
func checkOrder(t *testing.T, rules []pullthrough.Rule, name string, got pullthrough.Rule) {
	backward := slices.Clone(rules)
	slices.Reverse(backward)
	again, _, ok := pullthrough.Match(backward, name)
	require.True(t, ok)
	assert.Equal(t, strings.TrimSuffix(got.Prefix, "/"), strings.TrimSuffix(again.Prefix, "/"))
	alone, _, ok := pullthrough.Match([]pullthrough.Rule{got}, name)
	require.True(t, ok)
	assert.Equal(t, got, alone)
}

// FuzzMirrored: what a mirror finds for a host is of that host and has the name there, and it
// finds something for all that a rule covers. A line of text is a rule, as for FuzzMatch; the host
// follows, a.test or b.test.
func FuzzMirrored(f *testing.F) {
	for _, seed := range [][2]string{
		{"hub  a.test", "hub/x"}, {"ROOT  a.test\nquay  b.test", "quay/x"}, {"ROOT ROOT a.test\nquay  b.test", "x/y"},
		{"hub  a.test\nhub/team  b.test", "hub/team/x"}, {"hub team a.test\nhub/team  a.test", "hub/team/x"},
		{"a b a.test\nc b/d a.test\ne b/d/ b.test", "a/d/x"}, {"a/ b/ a.test\na  b.test", "a/x"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, text, name string) {
		var rules []pullthrough.Rule
		for line := range strings.SplitSeq(text, "\n") {
			prefix, rest, _ := strings.Cut(line, " ")
			above, host, _ := strings.Cut(rest, " ")
			if host != "a.test" {
				host = "b.test"
			}
			rules = append(rules, pullthrough.Rule{Prefix: prefix, UpstreamPrefix: above, UpstreamURL: host})
		}
		of, upstream, covered := pullthrough.Match(rules, name)
		for _, asked := range []string{name, upstream} {
			for _, host := range []string{"a.test", "b.test"} {
				found, ok := pullthrough.Mirrored(rules, asked, host)
				if covered && asked == upstream && host == of.UpstreamURL && of.Check() == nil {
					require.True(t, ok, "%q is covered", name)
				}
				if !ok {
					continue
				}
				owner, there, _ := pullthrough.Match(rules, found)
				require.Equal(t, []string{host, asked}, []string{owner.UpstreamURL, there})
			}
		}
		found, ok := pullthrough.Mirrored(rules, upstream, "c.test")
		require.False(t, ok, found)
	})
}
