package containerd_test

import (
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/containerd/log"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// TestMain does without pullthroughtest.Main: BuildKit leaves goroutines behind that end after ten seconds.
func TestMain(m *testing.M) {
	http.DefaultTransport.(*http.Transport).DialContext = pullthroughtest.DialLoopback
	_ = log.SetLevel("error") // containerd warns of file systems without fs-verity
	os.Exit(m.Run())
}

var fills = map[string]pullthrough.FillMode{
	"lazy": pullthrough.FillLazy, "background": pullthrough.FillBackground, "eager": pullthrough.FillEager,
}

// newFace is an upstream and a proxy that keeps its images on disk.
func newFace(t *testing.T, c pullthroughtest.Config, fill pullthrough.FillMode) *testkit.Face {
	t.Helper()
	store, err := dirstore.Open(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, store.Close()) })
	return testkit.NewFace(t, c, func(p *pullthrough.Proxy) { p.Store, p.Fill = store, fill })
}

// ref is the name of an upstream repository's tag at the proxy.
func ref(f *testkit.Face, repo, tag string) string {
	return strings.TrimPrefix(f.Server.URL, "http://") + "/" + testkit.Prefix + "/" + repo + ":" + tag
}

// takeLog returns what upstream was asked since the last call, when the proxy is at rest.
func takeLog(t *testing.T, f *testkit.Face) []string {
	t.Helper()
	f.Settled(t)
	defer f.Up.Reset()
	return f.Up.Log()
}
