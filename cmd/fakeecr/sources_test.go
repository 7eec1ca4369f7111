package main

import (
	"flag"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
)

// write writes a file and returns its name.
func write(t *testing.T, name, content string) string {
	t.Helper()
	if !filepath.IsAbs(name) {
		name = filepath.Join(t.TempDir(), name)
	}
	require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
	return name
}

// A flag counts more than a variable, and that more than the file; what only one of them
// says counts.
func TestSourcesInTheirOrder(t *testing.T) {
	file := write(t, "config.json", `{
		"account": "000000000003", "region": "eu-west-3", "max-bytes": 3, "offline": true, "data": "three", "tag-ttl": "3h",
		"rule": ["a=quay.io/three", "b=quay.io/three", "c=quay.io/three"],
		"endpoint": ["docker.io=http://127.0.0.1:3", "quay.io=http://127.0.0.1:3", "*=http://127.0.0.1:3"],
		"realm": "c=three.test"
	}`)
	env := []string{
		"FAKEECR_CONFIG=" + file, "FAKEECR_ACCOUNT=000000000002", "FAKEECR_REGION=eu-west-2", "FAKEECR_DATA=two", "FAKEECR_OFFLINE=false",
		"FAKEECR_RULE=a=quay.io/two  b=quay.io/two", "FAKEECR_ENDPOINT=registry-1.docker.io=http://127.0.0.1:2", "FAKEECR_FILL=",
		"FAKEECR_REALM=c=two.test", "OTHER=1", "=C:=C:\\",
	}
	c, err := parse([]string{"-account", "000000000001", "-rule", "a=quay.io/one", "-data", "one", "-realm", "c=one.test"}, env)
	require.NoError(t, err)
	assert.Equal(t, []string{"000000000001", "eu-west-2", "one"}, []string{c.Account, c.Region, c.Data})
	assert.Equal(t, int64(3), c.MaxBytes)
	assert.Equal(t, 3*time.Hour, c.Policy.TagTTL)
	assert.False(t, c.Policy.Offline)
	assert.Equal(t, pullthrough.FillLazy, c.Fill, "an empty variable says nothing")
	assert.Equal(t, []pullthrough.Rule{
		{Prefix: "a", UpstreamURL: "quay.io", UpstreamPrefix: "one"},
		{Prefix: "b", UpstreamURL: "quay.io", UpstreamPrefix: "two"},
		{Prefix: "c", UpstreamURL: "quay.io", UpstreamPrefix: "three"},
	}, c.Rules)
	at := func(port string) *url.URL { return &url.URL{Scheme: "http", Host: "127.0.0.1:" + port} }
	assert.Equal(t, map[string]*url.URL{"registry-1.docker.io": at("2"), "quay.io": at("3"), "*": at("3")}, c.Endpoints)
	assert.Equal(t, map[string][]string{"c": {"one.test", "two.test", "three.test"}}, c.RealmHosts, "they come on top of each other")
	assert.Empty(t, c.warnings)
}

// Every flag but the questions can be given in the environment and in the file, and means
// the same there.
func TestEveryFlagHasAVariableAndASetting(t *testing.T) {
	values := map[string]string{
		"listen": "127.0.0.1:1", "account": "000000000001", "region": "eu-west-1", "tag-ttl": "1h", "fill": "eager", "log": "json", "max-bytes": "1",
		"debug-page": "all", "progress": "never", "tags": "upstream", "data": "images", "rule": "hub=quay.io", "realm": "hub=a.test",
		"credential": "hub=me:token", "endpoint": "quay.io=http://127.0.0.1:1", "secret": "ecr-pullthroughcache/hub=me:token",
		"credential-file": write(t, "credentials", "hub=me:token\n"), "secret-file": write(t, "secrets", "ecr-pullthroughcache/hub=me:token\n"),
		"tls-cert": "cert.pem", "tls-key": "key.pem", "tls-self-signed": "ca.pem", "tls-name": "ecr.test",
	}
	beside := map[string][]string{
		"credential": {"-rule", "hub=quay.io"}, "credential-file": {"-rule", "hub=quay.io"}, "realm": {"-rule", "hub=quay.io"}, "endpoint": {"-rule", "hub=quay.io"},
		"tls-cert": {"-tls-key", "key.pem"}, "tls-key": {"-tls-cert", "cert.pem"}, "tls-name": {"-tls-self-signed", "ca.pem"},
	}
	new(arguments).flags().VisitAll(func(f *flag.Flag) {
		if f.Name == "version" || f.Name == "health" || f.Name == "config" {
			return
		}
		value, ok := values[f.Name]
		if !ok { // it is a switch, or has a number
			value = map[string]string{"false": "true", "true": "false"}[f.DefValue]
		}
		if value == "" {
			value = "1"
		}
		want, err := parse(append(beside[f.Name], "-"+f.Name+"="+value), nil)
		require.NoError(t, err, f.Name)
		variable := "FAKEECR_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		got, err := parse(beside[f.Name], []string{variable + "=" + value})
		require.NoError(t, err, variable)
		assert.Equal(t, want.withoutPlaces(), got.withoutPlaces(), variable)
		file := write(t, "config.json", `{"`+f.Name+`": "`+value+`"}`)
		got, err = parse(append(beside[f.Name], "-config", file), nil)
		require.NoError(t, err, f.Name)
		got.rereads = want.rereads
		got.settled["config"] = ""
		assert.Equal(t, want.withoutPlaces(), got.withoutPlaces(), f.Name+" in the file")
	})
}

// withoutPlaces returns what flags say, wherever they have said it.
func (c *config) withoutPlaces() config {
	d := *c
	d.claimed = claims{}
	return d
}

// A message says where the value stands, and shows no secret.
func TestBadValuesOfOtherSourcesAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		env  []string
		args []string
		says string
	}{
		"value of a variable":       {[]string{"FAKEECR_TAG_TTL=never"}, nil, `FAKEECR_TAG_TTL: -tag-ttl "never": want a duration`},
		"switch":                    {[]string{"FAKEECR_OFFLINE=s3cret"}, nil, "FAKEECR_OFFLINE: -offline: want true or false"},
		"second value":              {[]string{"FAKEECR_RULE=hub=quay.io hub=ghcr.io"}, nil, `FAKEECR_RULE: -rule "hub=ghcr.io": there is a rule with this prefix already`},
		"credential":                {[]string{"FAKEECR_CREDENTIAL=s3cret"}, nil, "FAKEECR_CREDENTIAL: -credential *****: want PREFIX=USER:TOKEN"},
		"credential without a rule": {[]string{"FAKEECR_CREDENTIAL=hub=me:s3cret"}, nil, "FAKEECR_CREDENTIAL: -credential \"hub=*****\": no -rule"},
		"variable and its file": {
			[]string{"FAKEECR_RULE=hub=quay.io", "FAKEECR_CREDENTIAL=hub=me:s3cret", "FAKEECR_CREDENTIAL_FILE=" + write(t, "c", "hub=you:s3cret")}, nil,
			`c: -credential "hub=*****": there is a credential for this prefix already`,
		},
		"line of a file":     {nil, []string{"-secret-file", write(t, "s", "# ours\n\n me:s3cret\n")}, "s: -secret *****: want NAME=USER:TOKEN"},
		"file that is away":  {[]string{"FAKEECR_SECRET_FILE=/dev/null/s"}, nil, `FAKEECR_SECRET_FILE: -secret-file "/dev/null/s": `},
		"no JSON":            {nil, []string{"-config", write(t, "f", "{s3cret")}, `want a JSON object: `},
		"a list":             {nil, []string{"-config", write(t, "f", "[]")}, `want a JSON object: `},
		"unknown setting":    {nil, []string{"-config", write(t, "f", `{"rules":[]}`)}, `there is no setting "rules"`},
		"a file in a file":   {nil, []string{"-config", write(t, "f", `{"config":"g"}`)}, `there is no setting "config"`},
		"a question":         {nil, []string{"-config", write(t, "f", `{"version":true}`)}, `there is no setting "version"`},
		"list for one value": {nil, []string{"-config", write(t, "f", `{"region":["eu-west-1"]}`)}, `f: -region: want a string`},
		"object for a list":  {nil, []string{"-config", write(t, "f", `{"credential":{"hub":"me:s3cret"}}`)}, `f: -credential: want a string or a list of strings`},
		"list of others":     {nil, []string{"-config", write(t, "f", `{"rule":["hub=quay.io",1]}`)}, `f: -rule: want a string or a list of strings`},
		"null":               {nil, []string{"-config", write(t, "f", `{"account":null}`)}, `f: -account: want a string`},
		"value of the file":  {nil, []string{"-config", write(t, "f", `{"account":"12345"}`)}, `f: -account "12345": an account has 12 digits`},
		"rules that are no list": {
			nil, []string{"-config", write(t, "f", `{"pullThroughCacheRules":{}}`)}, `want the list that aws ecr describe-pull-through-cache-rules prints`,
		},
		"described rule": {
			nil, []string{"-config", write(t, "f", `{"pullThroughCacheRules":[{"ecrRepositoryPrefix":"Hub","upstreamRegistryUrl":"quay.io"}]}`)}, `f: pullThroughCacheRules "Hub": `,
		},
		"described rule with a password": {
			nil, []string{"-config", write(t, "f", `{"pullThroughCacheRules":[{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"https://me:s3cret@quay.io"}]}`)}, `f: pullThroughCacheRules "hub": a user or password`,
		},
		"described rule twice": {
			nil, []string{"-config", write(t, "f", `{"rule":"hub=quay.io","pullThroughCacheRules":[{"ecrRepositoryPrefix":"hub","upstreamRegistryUrl":"quay.io"}]}`)}, `f: pullThroughCacheRules "hub": there is`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			said := refusedIn(t, c.env, c.args...)
			assert.Contains(t, said, c.says)
			assert.NotContains(t, said, "s3cret")
		})
	}
}

// The rules of an account in AWS are those of the file, as the AWS CLI has printed them.
func TestRulesAsAWSDescribesThem(t *testing.T) {
	const arn = "arn:aws:secretsmanager:eu-central-1:000000000001:secret:ecr-pullthroughcache/hub-AbCdEf"
	file := write(t, "rules.json", `{"pullThroughCacheRules": [
		{"ecrRepositoryPrefix": "hub", "upstreamRegistryUrl": "registry-1.docker.io", "createdAt": "2026-03-01T10:00:00+01:00",
			"registryId": "000000000001", "credentialArn": "`+arn+`", "upstreamRepositoryPrefix": "ROOT", "upstreamRegistry": "docker-hub"},
		{"ecrRepositoryPrefix": "quay", "upstreamRegistryUrl": "quay.io"}
	]}`)
	want := []pullthrough.Rule{
		{Prefix: "hub", UpstreamURL: "registry-1.docker.io", UpstreamPrefix: "ROOT", Upstream: "docker-hub", CredentialARN: arn},
		{Prefix: "quay", UpstreamURL: "quay.io"},
	}
	c, err := parse([]string{"-config", file, "-account", "000000000001", "-region", "eu-central-1"}, nil)
	require.NoError(t, err)
	assert.Equal(t, want, c.Rules)
	assert.Empty(t, c.warnings)
	c, err = parse([]string{"-config", file}, nil)
	require.NoError(t, err)
	require.Len(t, c.warnings, 1)
	assert.Contains(t, c.warnings[0], `"hub": its credentialArn is not of this -account and -region`)
}

// What a source says for its own rule is not for the rule of another that takes its place.
func TestACredentialIsForTheRuleOfItsSource(t *testing.T) {
	file := write(t, "config.json", `{"rule": ["hub=registry-1.docker.io", "quay=quay.io"], "realm": ["hub=auth.test", "quay=auth.test"],
		"credential": "hub=me:token", "credential-file": "`+write(t, "credentials", "quay=me:token")+`"}`)
	c, err := parse([]string{"-config", file, "-rule", "hub=ghcr.io", "-rule", "quay=quay.io/other"}, nil)
	require.NoError(t, err)
	assert.Equal(t, map[string]pullthrough.Credential{"quay": {Username: "me", AccessToken: "token"}}, c.Credentials)
	assert.Equal(t, map[string][]string{"quay": {"auth.test"}}, c.RealmHosts)
	c, err = parse([]string{"-config", file, "-rule", "hub=ghcr.io", "-credential", "hub=you:token"}, nil)
	require.NoError(t, err)
	assert.Equal(t, "you", c.Credentials["hub"].Username)
}

// A variable that looks like a flag and is none is probably a mistake.
func TestUnknownVariablesAreWarnedOf(t *testing.T) {
	c, err := parse(nil, []string{
		"FAKEECR_RULES=hub=quay.io", "FAKEECR_VERSION=1.2.3", "FAKEECR_HEALTH=x", "FAKEECR_PORT=tcp://10.0.0.1:5000", "FAKEECR_PORT_5000_TCP=x", "FAKEECR_SERVICE_HOST=x",
	})
	require.NoError(t, err)
	assert.Equal(t, []string{"FAKEECR_RULES: there is no flag -rules"}, c.warnings)
}
