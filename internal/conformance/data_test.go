package conformance_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// onDisk are images of each kind that a registry reads from a directory.
var onDisk = []*image{single, docker, multiArch, thirtyLayers, zstdLayers, artifact}

// What fakeecr keeps in a directory is a registry's directory: distribution
// serves it, and its garbage collector finds nothing to take away.
func TestRegistryServesTheDirectoryOfFakeECR(t *testing.T) {
	t.Parallel()
	s, dir := newStore(t, onDisk...), t.TempDir()
	u := startUpstream(t, s, authBearer)
	f := startFakeECR(t, u.url(), append(flagsFor(authBearer), "-data", dir)...)
	for _, img := range onDisk {
		cranePull(t, f.ref(img), img)
	}
	f.stop(t)
	for _, step := range []string{"as written", "after garbage collection"} {
		t.Run(step, func(t *testing.T) {
			r := startRegistry(t, dir, false, authOpen, nil)
			for _, img := range onDisk {
				want := cranePull(t, s.ref(img), img)
				assert.Equal(t, want, cranePull(t, ref{host: r.addr, repo: prefix + "/" + img.repo, tag: img.tag}, img), img.name)
			}
			r.stop(t)
		})
		out, err := exec.CommandContext(t.Context(), registryBin, "garbage-collect", collectConfig(t, dir)).CombinedOutput()
		require.NoError(t, err, string(out))
	}
}

// And the other way round: fakeecr serves what a registry wrote.
func TestFakeECRServesTheDirectoryOfARegistry(t *testing.T) {
	t.Parallel()
	s := newStore(t, onDisk...)
	f := startFakeECR(t, "http://127.0.0.1:1", "-data", s.dir)
	for _, img := range onDisk {
		want := cranePull(t, s.ref(img), img)
		assert.Equal(t, want, cranePull(t, ref{host: f.host, repo: img.repo, tag: img.tag}, img), img.name)
	}
}

// collectConfig is a configuration for the garbage collector.
func collectConfig(t *testing.T, dir string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "config.yml")
	config := "version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: \"" + dir + "\"}}\nhttp: {addr: 127.0.0.1:0}\n"
	require.NoError(t, os.WriteFile(name, []byte(config), 0o600))
	return name
}
