package conformance_test

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

func requireSkopeo(t testing.TB) {
	t.Helper()
	requireTool(t, "skopeo")
}

// requireTool skips where a tool is not installed, except in CI.
func requireTool(t testing.TB, name string) {
	t.Helper()
	_, err := exec.LookPath(name)
	if err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		require.NoError(t, err, "install "+name)
	}
	t.Skip(name + " is not installed")
}

// skopeoPull copies into a directory and compares the manifest there with
// skopeo's inspect --raw. An oci: directory takes OCI manifests only, so
// Docker's go to a dir: one, which like it keeps every byte.
func skopeoPull(t testing.TB, from ref, img *image) *pulled {
	t.Helper()
	requireSkopeo(t)
	raw := skopeo(t, "inspect", "--raw", "--tls-verify=false", "docker://"+from.String())

	dir := t.TempDir()
	to := "oci:" + dir + ":" + from.tag
	if img == docker {
		to = "dir:" + dir
	}
	skopeo(t, "copy", "--all", "--preserve-digests", "--src-tls-verify=false", "docker://"+from.String(), to)
	p := readSkopeo(t, dir, from.tag)
	require.Equal(t, p.Manifests[p.Root], raw, "inspect --raw")
	return p
}

// readSkopeo reads what copy wrote, in either form.
func readSkopeo(t testing.TB, dir, tag string) *pulled {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return readLayout(t, dir, tag)
	}
	require.NoError(t, err)
	root := digest.FromBytes(raw)
	p, err := collect(root, func(d digest.Digest, _ bool) (io.ReadCloser, error) {
		if d == root {
			return os.Open(filepath.Join(dir, "manifest.json"))
		}
		return os.Open(filepath.Join(dir, d.Encoded()))
	})
	require.NoError(t, err)
	return p
}

// skopeo runs the binary and returns its standard output.
func skopeo(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "skopeo", append([]string{"--insecure-policy"}, args...)...)
	// No credential of whoever runs the tests.
	authFile := filepath.Join(t.TempDir(), "auth.json")
	empty, err := json.Marshal(map[string]any{"auths": map[string]any{}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(authFile, empty, 0o600))
	cmd.Env = append(cmd.Environ(), "REGISTRY_AUTH_FILE="+authFile)

	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		require.NoError(t, err, "skopeo %v: %s", args, exit.Stderr)
	}
	require.NoError(t, err)
	return string(out)
}
