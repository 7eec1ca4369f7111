package fakeecr_test

import (
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/fakeecr"
)

func TestConfigsThatAreRefused(t *testing.T) {
	quay := ruleTo("quay", "quay.io")
	for says, config := range map[string]fakeecr.Config{
		`account "12345"`:                 {Account: "12345"},
		`region "us east 1"`:              {Region: "us east 1"},
		`MaxBytes -1`:                     {MaxBytes: -1},
		`DebugPage "everybody"`:           {DebugPage: "everybody"},
		`Quay`:                            {Rules: []pullthrough.Rule{ruleTo("Quay", "quay.io")}},
		`two rules have the prefix "quay`: {Rules: []pullthrough.Rule{quay, ruleTo("quay/", "ghcr.io")}},
		`credential: no rule has the prefix "hub"`: {
			Rules: []pullthrough.Rule{quay}, Credentials: map[string]pullthrough.Credential{"hub": me},
		},
		`realm host: no rule has the prefix "hub"`: {
			Rules: []pullthrough.Rule{quay}, RealmHosts: map[string][]string{"hub": {"auth.test"}},
		},
		`"https://quay.io" is no host name`: {Endpoints: map[string]*url.URL{"https://quay.io": {}}},
		`write the URL without /v2`:         {Endpoints: map[string]*url.URL{"quay.io": {Scheme: "http", Host: "127.0.0.1:1", Path: "/v2/"}}},
		`two are for registry-1.docker.io`:  {Endpoints: map[string]*url.URL{"docker.io": {}, "registry-1.docker.io": {}}},
	} {
		ecr, err := fakeecr.New(config)
		assert.ErrorContains(t, err, says)
		assert.ErrorContains(t, err, "fakeecr: ")
		assert.NotContains(t, err.Error(), secret)
		assert.Nil(t, ecr)
	}
}

// A Config may be used again: New does not change what it holds.
func TestNewChangesNothing(t *testing.T) {
	config := fakeecr.Config{
		Rules:       []pullthrough.Rule{ruleTo("quay/", "quay.io")},
		Credentials: map[string]pullthrough.Credential{"quay/": me},
		RealmHosts:  map[string][]string{"quay": {"auth.test"}},
		Endpoints:   map[string]*url.URL{"QUAY.io": {Scheme: "http", Host: "127.0.0.1:1"}},
	}
	for range 2 {
		ecr, err := fakeecr.New(config)
		require.NoError(t, err)
		require.NoError(t, ecr.Shutdown(t.Context()))
	}
	assert.Equal(t, []pullthrough.Rule{ruleTo("quay/", "quay.io")}, config.Rules)
	assert.Contains(t, config.Credentials, "quay/")
	assert.Contains(t, config.Endpoints, "QUAY.io")
}
