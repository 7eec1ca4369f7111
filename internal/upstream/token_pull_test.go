package upstream_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const (
	manifestGets = "GET /v2/a/manifests/*"
	tokenCalls   = "* /token*"
)

// pushTags gives the repository a so many images, tagged 0, 1, 2 and so on.
func pushTags(up *pullthroughtest.Upstream, n int) (images []*pullthroughtest.Image) {
	for i := range n {
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i)})
		up.Push("a", fmt.Sprint(i), img)
		images = append(images, img)
	}
	return images
}

func testWholePullTakesOneChallengeAndOneToken(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, testkit.WithSecret(nil))
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 3})
	w.Up.Push("a", "1", img)
	w.Pull(t, "a", "1", img)
	want := []string{"GET /v2/a/manifests/1 401", "GET /token 200", "GET /v2/a/manifests/1 200"}
	for _, b := range img.Blobs() {
		want = append(want, "GET /v2/a/blobs/"+b.Digest.String()+" 200")
	}
	assert.Equal(t, want, w.Up.Log())
	assert.Equal(t, 1, unauthorized(w))
	for _, r := range w.Up.Requests() {
		_, password, _ := basicAuth(r)
		assert.Equal(t, r.Path == "/token", password == testkit.Canary, "the password is the token server's alone")
	}
}

func testPullsInARowShareOneToken(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
	for i := range pushTags(w.Up, 3) {
		_, err := w.Tagged(t, fmt.Sprint(i))
		require.NoError(t, err)
	}
	assert.Equal(t, []string{
		"GET /v2/a/manifests/0 401", "GET /token 200", "GET /v2/a/manifests/0 200",
		"GET /v2/a/manifests/1 200", "GET /v2/a/manifests/2 200",
	}, w.Up.Log())
}

func testTwentyPullsShareOneToken(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: testkit.Users}, testkit.WithSecret(nil))
	var wg sync.WaitGroup
	for i, img := range pushTags(w.Up, 20) {
		wg.Go(func() {
			m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: fmt.Sprint(i)})
			if assert.NoError(t, err) {
				assert.Equal(t, img.Digest, m.Descriptor.Digest)
			}
			for _, b := range img.Blobs() {
				assert.NoError(t, w.Whole(t.Context(), b.Digest))
			}
		})
	}
	wg.Wait()
	assert.Equal(t, 1, w.Up.Count(tokenCalls))
	assert.Equal(t, 1, unauthorized(w))
	assert.Equal(t, 20, w.Up.Count(manifestGets+" 200"))
	assert.Equal(t, 40, w.Up.Count(testkit.Blobs+" 200"))
	assert.Equal(t, 62, w.Up.Count(""))
}
