package conformance_test

import (
	"encoding/json"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
	kind "sigs.k8s.io/kind/pkg/apis/config/v1alpha4"

	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// The files of docs/tools.md that are tried here. Those of containerd and BuildKit are tried in
// the module beside this one.
const (
	registriesConf   = "/etc/containers/registries.conf.d/pullthrough.conf"
	dockerDaemon     = "/etc/docker/daemon.json"
	kindCluster      = "kind.yaml"
	k3sRegistries    = "/etc/rancher/k3s/registries.yaml"
	testcontainers   = "~/.testcontainers.properties"
	terraformAWS     = "provider.tf"
	toolsHost        = "localhost:5000" // in the document
	toolsHostAddress = "http://" + toolsHost
)

// startTools is the registry of docs/tools.md, with upstreams of the test's.
func startTools(t *testing.T, flags ...string) (f *fakeECR, hub, quay *pullthroughtest.Upstream) {
	t.Helper()
	hub, quay = pullthroughtest.New(t, pullthroughtest.Config{}), pullthroughtest.New(t, pullthroughtest.Config{})
	return runFakeECR(t, append([]string{
		"-rule", "docker-hub=registry-1.docker.io", "-rule", "quay=quay.io", "-endpoint", "docker.io=" + hub.URL, "-endpoint", "quay.io=" + quay.URL,
	}, flags...)...), hub, quay
}

// skopeo reads registries.conf by the library that podman, buildah and CRI-O read it with.
func TestSkopeoPullsByMirrors(t *testing.T) {
	t.Parallel()
	requireSkopeo(t)
	f, hub, quay := startTools(t)
	hub.Push("library/alpine", "3.22", testkit.Image(1))
	quay.Push("library/alpine", "3.22", testkit.Image(2))
	home := t.TempDir()
	conf := filepath.Join(home, ".config", "containers", "registries.conf")
	require.NoError(t, os.MkdirAll(filepath.Dir(conf), 0o700))
	require.NoError(t, os.WriteFile(conf, []byte(testkit.ToolFiles(t, f.host)[registriesConf]), 0o600))
	for name, want := range map[string]*pullthroughtest.Image{"docker.io": testkit.Image(1), "quay.io": testkit.Image(2)} {
		cmd := exec.CommandContext(t.Context(), "skopeo", "inspect", "--raw", "docker://"+name+"/library/alpine:3.22")
		cmd.Env = append(os.Environ(), "HOME="+home, "XDG_CONFIG_HOME=", "REGISTRY_AUTH_FILE=")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		assert.Equal(t, string(want.Content), string(out), name)
	}
	assert.Equal(t, 1, hub.Count("GET /v2/library/alpine/manifests/3.22 200"))
	assert.Equal(t, 1, quay.Count("GET /v2/library/alpine/manifests/3.22 200"))
}

// testcontainers puts the prefix before names that name no registry.
func TestNamesOfTestcontainers(t *testing.T) {
	t.Parallel()
	f, hub, _ := startTools(t, "-library")
	hub.Push("library/postgres", "16", testkit.Image(1))
	hub.Push("testcontainers/ryuk", "1", testkit.Image(2))
	file := testkit.ToolFiles(t, f.host)[testcontainers]
	prefix, ok := strings.CutPrefix(strings.TrimSpace(file), "hub.image.name.prefix=")
	require.True(t, ok, file)
	for name, want := range map[string]*pullthroughtest.Image{"postgres:16": testkit.Image(1), "testcontainers/ryuk:1": testkit.Image(2)} {
		got, err := crane.Manifest(prefix+name, craneOptions(t)...)
		require.NoError(t, err)
		assert.Equal(t, string(want.Content), string(got), name)
	}
	plain, hub, _ := startTools(t)
	hub.Push("library/postgres", "16", testkit.Image(1))
	_, err := crane.Manifest(plain.host+"/docker-hub/postgres:16", craneOptions(t)...)
	assert.ErrorContains(t, err, "ask for 'docker-hub/library/postgres'")
}

// Files that no tool here reads are at least what their tools can parse.
func TestFilesOfToolsParse(t *testing.T) {
	t.Parallel()
	files := testkit.ToolFiles(t, toolsHost)

	var daemon map[string][]string
	require.NoError(t, json.Unmarshal([]byte(files[dockerDaemon]), &daemon))
	assert.Equal(t, map[string][]string{"registry-mirrors": {toolsHostAddress}}, daemon)

	var cluster kind.Cluster
	strictYAML(t, files[kindCluster], &cluster)
	assert.Equal(t, []string{"Cluster", "kind.x-k8s.io/v1alpha4"}, []string{cluster.Kind, cluster.APIVersion})
	require.Len(t, cluster.Nodes, 1)
	assert.Equal(t, []kind.Mount{{HostPath: "./certs.d", ContainerPath: "/etc/containerd/certs.d"}}, cluster.Nodes[0].ExtraMounts)

	var k3s struct {
		Mirrors map[string]struct{ Endpoint []string }
	}
	strictYAML(t, files[k3sRegistries], &k3s)
	require.Len(t, k3s.Mirrors["*"].Endpoint, 1)
	at, err := url.Parse(k3s.Mirrors["*"].Endpoint[0])
	require.NoError(t, err)
	assert.Equal(t, toolsHost, at.Host)

	parsed, diagnostics := hclparse.NewParser().ParseHCL([]byte(files[terraformAWS]), terraformAWS)
	require.False(t, diagnostics.HasErrors(), diagnostics.Error())
	content, diagnostics := parsed.Body.Content(&hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{
		{Type: "provider", LabelNames: []string{"name"}}, {Type: "resource", LabelNames: []string{"type", "name"}},
	}})
	require.False(t, diagnostics.HasErrors(), diagnostics.Error())
	assert.Equal(t, []string{"aws"}, content.Blocks[0].Labels)
	assert.Equal(t, []string{"aws_ecr_pull_through_cache_rule", "quay"}, content.Blocks[1].Labels)
}

func strictYAML(t *testing.T, text string, to any) {
	t.Helper()
	d := yaml.NewDecoder(strings.NewReader(text))
	d.KnownFields(true)
	require.NoError(t, d.Decode(to))
}
