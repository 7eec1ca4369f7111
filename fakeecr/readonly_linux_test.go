package fakeecr_test

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/fakeecr"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// Fixtures that are mounted read-only are served, offline, with all that is known of
// them. The test needs the right to mount.
func TestAReadOnlyMountIsServedOffline(t *testing.T) {
	up, img, dir := pullthroughtest.New(t, pullthroughtest.Config{}), newImage(), t.TempDir()
	up.Push("app", "v1", img)
	config := fakeecr.Config{Data: dir, Rules: []pullthrough.Rule{ruleTo("pp", up.URL)}}
	i := start(t, config)
	i.pull(t, "pp/app", "v1", img)
	i.stop()
	if err := syscall.Mount(dir, dir, "", syscall.MS_BIND, ""); err != nil {
		t.Skip("no mount: ", err)
	}
	t.Cleanup(func() { assert.NoError(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	require.NoError(t, syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""))
	up.Reset()
	config.Policy.Offline = true
	for range 2 {
		i = start(t, config)
		i.pull(t, "pp/app", "v1", img)
		i.ok(t, "DescribeImages", `{"repositoryName":"pp/app"}`)
		status, _ := i.call(t, "", "CreatePullThroughCacheRule", `{"ecrRepositoryPrefix":"qq","upstreamRegistryUrl":"quay.io"}`)
		assert.Equal(t, 500, status, "what cannot be kept is refused")
		i.pull(t, "pp/app", "v1", img)
		i.stop()
	}
	assert.Empty(t, up.Log())
}
