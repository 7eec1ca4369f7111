package main

import (
	"bytes"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/fakeecr"
)

// noSignals ends a program that serves although it should not.
func noSignals(c chan<- os.Signal, sig ...os.Signal) { c <- sig[0] }

// refused runs a command line that cannot be used and returns what it said.
func refused(t *testing.T, args ...string) string {
	t.Helper()
	return refusedIn(t, nil, args...)
}

// refusedIn is told of an environment, too.
func refusedIn(t *testing.T, env []string, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	assert.Equal(t, exitUsage, program{args, env, &stdout, &stderr, noSignals}.run())
	assert.Empty(t, stdout.String())
	said := stderr.String()
	assert.Regexp(t, `^fakeecr: [^\n]+\n$`, said, "one line")
	return said
}

func TestBadFlagsAreRefused(t *testing.T) {
	rule := []string{"-rule", "hub=registry-1.docker.io"}
	for _, c := range []struct {
		name   string
		before []string // further flags
		flag   string
		value  string
		says   string // "": the value, quoted
	}{
		{"directory", []string{"-listen", "127.0.0.1:0"}, "-data", "/dev/null/images", `-data "/dev/null/images"`},
		{"empty directory", nil, "-data", "", "want a directory"},
		{"fill", nil, "-fill", "eagerly", "it is lazy, background or eager"},
		{"address without port", nil, "-listen", "localhost", ""},
		{"address with a name for a port", nil, "-listen", "localhost:registry", ""},
		{"port too large", nil, "-listen", "127.0.0.1:65536", ""},
		{"short account", nil, "-account", "12345", ""},
		{"empty account", nil, "-account", "", ""},
		{"Region with a blank", nil, "-region", "us east 1", ""},
		{"empty Region", nil, "-region", "", ""},
		{"no log format", nil, "-log", "xml", "it is text, json or off"},
		{"no page", nil, "-debug-page", "true", "it is local, all or off"},
		{"key without certificate", nil, "-tls-key", "/dev/null", "-tls-cert"},
		{"certificate without key", nil, "-tls-cert", "/dev/null", "it needs -tls-key"},
		{"certificate that is none", []string{"-listen", "127.0.0.1:0", "-tls-key", "/dev/null"}, "-tls-cert", "/dev/null", `"/dev/null"`},
		{"two certificates", []string{"-tls-cert", "c", "-tls-key", "k"}, "-tls-self-signed", "/dev/null", "there is a -tls-cert already"},
		{"self-signed in no directory", []string{"-listen", "127.0.0.1:0"}, "-tls-self-signed", "/dev/null/cert", `"/dev/null/cert"`},
		{"name without certificate", nil, "-tls-name", "ecr", "it needs -tls-self-signed"},
		{"no file of credentials", nil, "-credential-file", "/dev/null/file", `"/dev/null/file"`},
		{"directory of secrets", nil, "-secret-file", "/", "it is no file of at most 1 MiB"},
		{"no file", nil, "-config", "/dev/null/file", `"/dev/null/file"`},
		{"file without content", nil, "-config", "/dev/null", "want a JSON object"},
		{"no tags", nil, "-tags", "all", "it is stored or upstream"},
		{"no progress", nil, "-progress", "", "it is auto, always or never"},
		{"size with a decimal unit", nil, "-max-bytes", "10GB", ""},
		{"size in small letters", nil, "-max-bytes", "10gib", ""},
		{"size without a number", nil, "-max-bytes", "GiB", ""},
		{"size with half a unit", nil, "-max-bytes", "10iB", ""},
		{"size with a blank", nil, "-max-bytes", "10 GiB", ""},
		{"size with a point", nil, "-max-bytes", "1.5GiB", ""},
		{"negative size", nil, "-max-bytes", "-1", ""},
		{"empty size", nil, "-max-bytes", "", ""},
		{"huge size", nil, "-max-bytes", "8192PiB", ""},
		{"huge number of bytes", nil, "-max-bytes", "9223372036854775808", ""},

		{"no connection", nil, "-connections", "0", ""},
		{"too many connections", nil, "-connections", "17", ""},
		{"connections that are no number", nil, "-connections", "many", ""},
		{"duration without unit", nil, "-tag-ttl", "24", ""},
		{"no duration", nil, "-tag-ttl", "never", ""},
		{"empty duration", nil, "-tag-ttl", "", ""},
		{"huge number", nil, "-tag-ttl", "-99999999999999999999", ""},

		{"rule without =", nil, "-rule", "docker-hub", ""},
		{"rule without prefix", nil, "-rule", "=quay.io", ""},
		{"rule with a slash for a prefix", nil, "-rule", "/=quay.io", ""},
		{"rule without upstream", nil, "-rule", "quay=", ""},
		{"empty rule", nil, "-rule", "", ""},
		{"prefix in capitals", nil, "-rule", "Docker-Hub=quay.io", ""},
		{"prefix with an empty component", nil, "-rule", "a//b=quay.io", ""},
		{"prefix with two slashes", nil, "-rule", "a//=quay.io", ""},
		{"upstream prefix in capitals", nil, "-rule", "quay=quay.io/Org", ""},
		{"upstream prefix with two slashes", nil, "-rule", "quay=quay.io//", ""},
		{"upstream prefix for ROOT", nil, "-rule", "ROOT=quay.io/org", ""},
		{"neither http nor https", nil, "-rule", "quay=ftp://quay.io", ""},
		{"URL without host", nil, "-rule", "quay=https:///org", ""},
		{"URL with one slash", nil, "-rule", "quay=https:/quay.io", ""},
		{"query", nil, "-rule", "quay=quay.io?x=1", ""},
		{"port of the upstream", nil, "-rule", "quay=quay.io:x", ""},
		{"large port of the upstream", nil, "-rule", "quay=quay.io:99999", ""},
		{"a URL that ends in v2", nil, "-rule", "quay=https://quay.io/v2/", "write the URL without /v2"},
		{"a longer URL that ends in v2", nil, "-rule", "quay=http://quay.io/org/v2", "write the URL without /v2"},
		{"same prefix", rule, "-rule", "hub=quay.io", ""},
		{"same prefix, with a slash", rule, "-rule", "hub/=quay.io", ""},
		{"user in the upstream", nil, "-rule", "quay=https://me:s3cret@quay.io", `"*****@quay.io"`},
		{"= in the user's password", nil, "-rule", "https://me:s3cret=s3cret@quay.io", `"*****@quay.io"`},
		{"user and bad port", nil, "-rule", "quay=https://me:s3cret@quay.io:x", `"*****@quay.io:x"`},

		{"credential without rule", rule, "-credential", "quay=me:s3cret", `"quay=*****"`},
		{"credential without user", rule, "-credential", "hub=:s3cret", `"hub=*****"`},
		{"credential without token", rule, "-credential", "hub=s3cret", `"hub=*****"`},
		{"credential with an empty token", rule, "-credential", "hub=me:", `"hub=*****"`},
		{"credential without prefix", rule, "-credential", "me:s3cret", "PREFIX=USER:TOKEN"},
		{"credential with a = instead", rule, "-credential", "me:s3cret=", "PREFIX=USER:TOKEN"},
		{"second credential", append([]string{"-credential", "hub=me:s3cret"}, rule...), "-credential", "hub/=you:s3cret", `"hub/=*****"`},

		{"realm without rule", rule, "-realm", "quay=auth.quay.io", ""},
		{"realm without prefix", rule, "-realm", "auth.docker.io", ""},
		{"realm without host", rule, "-realm", "hub=", ""},
		{"realm is a URL", rule, "-realm", "hub=https://auth.docker.io/token", ""},
		{"realm with user", rule, "-realm", "hub=me:s3cret@auth.docker.io", `"*****@auth.docker.io"`},

		{"secret without user", nil, "-secret", "ecr-pullthroughcache/hub=:s3cret", `"ecr-pullthroughcache/hub=*****"`},
		{"secret without token", nil, "-secret", "ecr-pullthroughcache/hub=s3cret", `"ecr-pullthroughcache/hub=*****"`},
		{"secret with an empty token", nil, "-secret", "ecr-pullthroughcache/hub=me:", `"ecr-pullthroughcache/hub=*****"`},
		{"secret with another name", nil, "-secret", "hub=me:s3cret", "NAME like ecr-pullthroughcache/docker-hub"},
		{"secret without name", nil, "-secret", "me:s3cret", "NAME like ecr-pullthroughcache/docker-hub"},
		{"secret with an ARN", nil, "-secret", "arn:aws:secretsmanager:us-east-1:123456789012:secret:ecr-pullthroughcache/hub=me:s3cret", "NAME like ecr-pullthroughcache/docker-hub"},
		{"second secret", []string{"-secret", "ecr-pullthroughcache/hub=me:s3cret"}, "-secret", "ecr-pullthroughcache/hub=you:s3cret", `"ecr-pullthroughcache/hub=*****"`},

		{"endpoint without =", rule, "-endpoint", "http://127.0.0.1:7701", ""},
		{"endpoint without host", rule, "-endpoint", "=http://127.0.0.1:7701", ""},
		{"endpoint of a URL", rule, "-endpoint", "https://registry-1.docker.io=http://127.0.0.1:7701", ""},
		{"endpoint without URL", rule, "-endpoint", "registry-1.docker.io=", ""},
		{"endpoint without scheme", rule, "-endpoint", "registry-1.docker.io=127.0.0.1:7701", ""},
		{"endpoint with a name only", rule, "-endpoint", "registry-1.docker.io=localhost", ""},
		{"endpoint with another scheme", rule, "-endpoint", "registry-1.docker.io=file:///tmp", ""},
		{"endpoint with a bad port", rule, "-endpoint", "registry-1.docker.io=http://127.0.0.1:port", ""},
		{"endpoint with a query", rule, "-endpoint", "registry-1.docker.io=http://127.0.0.1:7701/?a=b", ""},
		{"endpoint with dots", rule, "-endpoint", "registry-1.docker.io=http://127.0.0.1:7701/../", ""},
		{"endpoint that ends in v2", rule, "-endpoint", "registry-1.docker.io=http://127.0.0.1:7701/v2", "write the URL without /v2"},
		{"endpoint of no host known", rule, "-endpoint", "unused.test=nowhere", ""},
		{"second endpoint", append([]string{"-endpoint", "docker.io=http://127.0.0.1:7701"}, rule...),
			"-endpoint", "registry-1.docker.io=http://127.0.0.1:7702", ""},
		{"endpoint with user", rule, "-endpoint", "registry-1.docker.io=http://me:s3cret@127.0.0.1:7701", `"*****@127.0.0.1:7701"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			said := refused(t, append(c.before, c.flag, c.value)...)
			assert.Contains(t, said, c.flag)
			if c.says == "" {
				c.says = `"` + c.value + `"`
			}
			assert.Contains(t, said, c.says)
			assert.NotContains(t, said, "s3cret")
		})
	}
}

// What package flag or a shell makes of a mistake must not print a password.
func TestBadCommandLinesAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"unknown flag":           {[]string{"-credentials=hub=me:s3cret"}, "-credentials"},
		"three dashes":           {[]string{"---credential=hub=me:s3cret"}, "---credential"},
		"flag that is no switch": {[]string{"-debug=s3cret=me:\"s3cret\""}, "-debug"},
		"flag without value":     {[]string{"-rule"}, "-rule"},
		"rest of a value":        {[]string{"-credential", "hub=me:", "s3cret"}, "argument 3 is not a flag"},
	} {
		t.Run(name, func(t *testing.T) {
			said := refused(t, c.args...)
			assert.Contains(t, said, c.says)
			assert.NotContains(t, said, "s3cret")
		})
	}
}

func TestListenAddressInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	assert.Contains(t, refused(t, "-listen", taken.Addr().String()), `-listen "`+taken.Addr().String()+`"`)
}

func TestTagTTLsThatParse(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"0":     pullthrough.EveryPull,
		"0s":    pullthrough.EveryPull,
		"-0":    pullthrough.EveryPull,
		"-1":    -1,
		"-5":    -1,
		"-1h":   -time.Hour,
		"1h30m": 90 * time.Minute,
	} {
		for _, args := range [][]string{{"-tag-ttl", value}, {"--tag-ttl=" + value}} {
			c, err := parse(args, nil)
			require.NoError(t, err, args)
			assert.Equal(t, want, c.Policy.TagTTL, args)
		}
	}
}

func TestDefaults(t *testing.T) {
	c, err := parse(nil, nil)
	require.NoError(t, err)
	c.settled = nil
	assert.Equal(t, &config{
		Config: fakeecr.Config{
			Account: "123456789012", Region: "us-east-1", DebugPage: fakeecr.PageLocal,
			Policy: pullthrough.Policy{TagTTL: 24 * time.Hour, BlobsFirst: true, Connections: 1},
		},
		listen: "127.0.0.1:5000", progress: "auto",
	}, c)
}

// Each flag says what the Config's field of its name says.
func TestFlags(t *testing.T) {
	c, err := parse([]string{
		"-listen", "localhost:0", "-account", "000000000000", "-region", "eu-west-1", "-data", "images", "-max-bytes", "1KiB",
		"-verify-blobs", "-blobs-first=false", "-fill", "eager", "-offline", "-debug-page", "all", "-progress", "never", "-log", "json", "-debug",
		"-tags", "upstream", "-referrers-tag", "-any-upstream", "-require-login", "-connections", "4", "-mirror", "-library",
	}, nil)
	require.NoError(t, err)
	c.settled = nil
	assert.Equal(t, &config{
		Config: fakeecr.Config{
			Account: "000000000000", Region: "eu-west-1", Data: "images", MaxBytes: 1 << 10, VerifyBlobs: true,
			Fill: pullthrough.FillEager, DebugPage: fakeecr.PageAll, AnyUpstream: true, RequireLogin: true, Mirror: true,
			Policy: pullthrough.Policy{TagTTL: 24 * time.Hour, Offline: true, UpstreamTags: true, ReferrersTag: true, Connections: 4, Library: true},
		},
		listen: "localhost:0", progress: "never", jsonLog: true, debug: true,
	}, c)
	for mode, want := range map[string]pullthrough.FillMode{"lazy": pullthrough.FillLazy, "background": pullthrough.FillBackground} {
		c, err := parse([]string{"-fill", mode}, nil)
		require.NoError(t, err)
		assert.Equal(t, want, c.Fill)
	}
}

func TestHelp(t *testing.T) {
	var stdout, stderr bytes.Buffer
	assert.Equal(t, exitOK, program{args: []string{"-help"}, stdout: &stdout, stderr: &stderr}.run())
	assert.Empty(t, stderr.String())
	for _, flag := range strings.Fields("listen data account region rule credential realm endpoint secret tag-ttl fill connections tags referrers-tag any-upstream require-login mirror library offline max-bytes verify-blobs blobs-first log progress debug-page debug config credential-file secret-file tls-cert tls-key tls-self-signed tls-name health version") {
		assert.Regexp(t, "\n  -"+flag+"[ \n]", stdout.String())
	}
}
