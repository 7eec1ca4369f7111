package main

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// What was pulled is there again after a restart.
func TestDataOutlivesTheProgram(t *testing.T) {
	up, img, dir := newUpstream(t), newImage(), filepath.Join(t.TempDir(), "images")
	up.Push("app", "v1", img)
	flags := []string{"-rule", "p=" + up.URL, "-credential", "p=me:" + secret, "-data", dir}
	i := start(t, flags...)
	i.pull(t, "p/app", "v1", img)
	i.stop(t)
	assert.Equal(t, 2+len(img.Blobs()), up.Count("GET * 200"))
	up.Close()
	start(t, flags...).pull(t, "p/app", "v1", img)
}

// A directory that cannot be used is a flag that cannot be used.
func TestDataThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "pullthrough"), 0o700))
	name := filepath.Join(dir, "pullthrough", "settings.json")
	require.NoError(t, os.WriteFile(name, []byte(`{"version":99}`), 0o600))
	assert.Equal(t, "fakeecr: -data \""+dir+"\": "+name+": version 99 is not known\n", refused(t, "-listen", "127.0.0.1:0", "-data", dir))
}

// A client that is in the middle of a layer when the signal comes gets the rest.
func TestShutdownFinishesPulls(t *testing.T) {
	up, img := pullthroughtest.New(t, pullthroughtest.Config{}), newImage()
	up.Push("app", "v1", img)
	stall := make(chan struct{})
	up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/*", Stall: stall, StallAfter: new(int64(1 << 20))})
	i := start(t, "-rule", "p="+up.URL)

	layer := img.Layers[0]
	resp, err := http.Get(i.url + "/v2/p/app/blobs/" + layer.Digest.String())
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, layer.Size, resp.ContentLength)
	i.end()
	close(stall)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Equal(t, layer.Digest, layer.Digest.Algorithm().FromBytes(body))
	i.stop(t)
	assert.NotContains(t, i.stderr.String(), "cut off")
}
