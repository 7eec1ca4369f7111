package conformance_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestPull pulls each image with each client through a fakeecr of its own, in
// front of a registry of its own: first cold, then warm, then with nothing
// left of the upstream. All three must give what a direct pull gives.
func TestPull(t *testing.T) {
	images := []*image{single, docker, multiArch, thirtyLayers, zstdLayers, artifact, sha512Layer, large}
	s := newStore(t, images...)
	direct := map[*image]*pulled{}
	for _, img := range images {
		direct[img] = cranePull(t, s.ref(img), img)
	}

	for _, c := range clients {
		for _, a := range []auth{authOpen, authBasic, authBearer} {
			for _, img := range images {
				if img.large && !(a == authBearer && (c.name == "crane" || c.name == "skopeo")) {
					continue // 300 MiB three times over: two clients are enough
				}
				t.Run(c.name+"/"+string(a)+"/"+img.name, func(t *testing.T) {
					t.Parallel()
					if why := c.cannot[img]; why != "" {
						t.Skip(why)
					}
					testPull(t, s, c, a, img, direct[img])
				})
			}
		}
	}
}

func testPull(t *testing.T, s *store, c *client, a auth, img *image, want *pulled) {
	u := startUpstream(t, s, a)
	f := startFakeECR(t, u.url(), flagsFor(a)...)

	require.Equal(t, want, c.pull(t, f.ref(img), img), "cold")
	assertCold(t, u, a, img, want)

	require.Equal(t, want, c.pull(t, f.ref(img), img), "warm")
	assertSilent(t, u)

	u.stop(t)
	assert.Equal(t, want, c.pull(t, f.ref(img), img), "warm, the upstream stopped")
}
