package upstream_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const manifestRequests = "GET /v2/a/manifests/*"

func TestWhatIsNoManifest(t *testing.T) {
	for name, tc := range map[string]struct {
		fault    pullthroughtest.Fault
		byDigest bool
		want     error
		requests int
	}{
		"a flipped bit, by digest": {pullthroughtest.Fault{Flip: new(int64(10))}, true, upstream.ErrDigest, 2},
		"half of it":               {pullthroughtest.Fault{CutAfter: new(int64(20))}, false, upstream.ErrUnavailable, 2},
		"a web page":               {pullthroughtest.Fault{Body: []byte("<html></html>"), Header: http.Header{"Docker-Content-Digest": nil}}, false, upstream.ErrUnavailable, 1},
		"another one than it says": {pullthroughtest.Fault{Body: []byte("<html></html>")}, false, upstream.ErrUnavailable, 2},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{})
			ref := "1"
			if img := w.push(pullthroughtest.ImageOptions{}); tc.byDigest {
				ref = img.Digest.String()
			}
			tc.fault.Match = manifestRequests
			w.up.Fault(tc.fault)
			m, err := w.Manifest(t.Context(), w.target, ref, upstream.Pull)
			assert.Nil(t, m)
			assert.ErrorIs(t, err, tc.want)
			assert.Equal(t, tc.requests, w.up.Count(manifestRequests))
		})
	}
}

func TestHeadsThatAreNoEvidence(t *testing.T) {
	for name, step := range map[string]string{
		"405": "status 405", "404": "status 404", "no digest": "digest", "no digest of ours": "digest md5:00", "no type": "type",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{})
			w.push(pullthroughtest.ImageOptions{})
			w.up.Script(t, "HEAD *", step)
			d, err := w.Head(t.Context(), w.target, "1")
			assert.NoError(t, err)
			assert.Empty(t, d)
			assert.Len(t, w.up.Log(), 1)
		})
	}
	w := newWorld(t, pullthroughtest.Config{})
	w.up.Script(t, "HEAD *", "status 503")
	_, err := w.Head(t.Context(), w.target, "1")
	assert.ErrorIs(t, err, upstream.ErrUnavailable)
	assert.Len(t, w.up.Log(), 1, "a check is one try")
}
