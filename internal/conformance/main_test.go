package conformance_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// What the run builds and keeps; set by TestMain, read-only afterwards.
var (
	registryBin string // distribution's registry
	fakeecrBin  string // cmd/fakeecr of the tree this module stands in
)

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

// run builds both binaries before m.Run, whose clock (go test -timeout) thus
// does not count the builds.
func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "conformance-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	registryBin = filepath.Join(dir, "registry")
	fakeecrBin = filepath.Join(dir, "fakeecr")

	err = goBuild(".", registryBin, "github.com/distribution/distribution/v3/cmd/registry")
	if err == nil {
		err = goBuild(filepath.Join("..", "..", "cmd", "fakeecr"), fakeecrBin, ".", raceFlags...)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// goBuild runs go build in dir, since fakeecr belongs to another module.
func goBuild(dir, out, pkg string, flags ...string) error {
	args := append([]string{"build", "-o", out}, flags...)
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Dir = dir
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s in %s: %w\n%s", pkg, dir, err, b)
	}
	return nil
}
