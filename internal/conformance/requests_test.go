package conformance_test

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/crane"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A cold pull costs one token, one refused request and one GET per object; the
// digest right after it costs nothing.
func TestColdBearerPullByCrane(t *testing.T) {
	t.Parallel()
	s := newStore(t, thirtyLayers)
	u := startUpstream(t, s, authBearer)
	f := startFakeECR(t, u.url(), flagsFor(authBearer)...)
	from := f.ref(thirtyLayers)

	img, err := crane.Pull(from.String(), craneOptions(t)...)
	require.NoError(t, err)
	require.NoError(t, readConcurrently(img))
	assertCold(t, u, authBearer, thirtyLayers, cranePull(t, s.ref(thirtyLayers), thirtyLayers))

	root, err := img.Digest()
	require.NoError(t, err)
	byDigest, err := crane.Manifest(from.digest(digest.Digest(root.String())), craneOptions(t)...)
	require.NoError(t, err)
	raw, err := img.RawManifest()
	require.NoError(t, err)
	assert.Equal(t, string(raw), string(byDigest))
	assertSilent(t, u)
}

// readConcurrently reads all layers at once, as an engine does. The layers of
// a remote image verify themselves.
func readConcurrently(img v1.Image) error {
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	if _, err := img.RawConfigFile(); err != nil {
		return err
	}
	errs := make([]error, len(layers))
	var wg sync.WaitGroup
	for i, layer := range layers {
		wg.Go(func() {
			rc, err := layer.Compressed()
			if err == nil {
				_, err = io.Copy(io.Discard, rc)
				err = errors.Join(err, rc.Close())
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// An existence check of a tag finds what a pull by digest wants next.
func TestHeadThenDigest(t *testing.T) {
	t.Parallel()
	s := newStore(t, single)
	u := startUpstream(t, s, authBearer)
	f := startFakeECR(t, u.url(), flagsFor(authBearer)...)
	from := f.ref(single)

	root, err := crane.Digest(from.String(), craneOptions(t)...)
	require.NoError(t, err)
	_, err = crane.Manifest(from.digest(digest.Digest(root)), craneOptions(t)...)
	require.NoError(t, err)
	assert.Equal(t, []string{
		manifestLine(single, single.tag, http.StatusUnauthorized),
		manifestLine(single, single.tag, http.StatusOK),
	}, u.take())
	assertOneToken(t, u, single)
}

// Clients of all kinds that come at once share one download of each object.
func TestClientsShareOneDownload(t *testing.T) {
	t.Parallel()
	s := newStore(t, thirtyLayers)
	u := startUpstream(t, s, authBearer)
	f := startFakeECR(t, u.url(), flagsFor(authBearer)...)
	want := cranePull(t, s.ref(thirtyLayers), thirtyLayers)

	t.Run("at once", func(t *testing.T) {
		for _, turn := range []string{"first", "second"} {
			for _, c := range clients {
				t.Run(turn+"/"+c.name, func(t *testing.T) {
					t.Parallel()
					assert.Equal(t, want, c.pull(t, f.ref(thirtyLayers), thirtyLayers))
				})
			}
		}
	})
	assertCold(t, u, authBearer, thirtyLayers, want)
}

// A secret that the upstream refuses is ECR's 403, and is not tried again.
func TestWrongPassword(t *testing.T) {
	t.Parallel()
	s := newStore(t, single)
	for _, a := range []auth{authBasic, authBearer} {
		t.Run(string(a), func(t *testing.T) {
			t.Parallel()
			u := startUpstream(t, s, a)
			f := startFakeECR(t, u.url(), credential(puller, "wrong")...)
			_, err := crane.Manifest(f.ref(single).String(), craneOptions(t)...)
			assertRefused(t, err, http.StatusForbidden, transport.DeniedErrorCode)

			refused := manifestLine(single, single.tag, http.StatusUnauthorized)
			if a == authBasic {
				assert.Equal(t, []string{refused, refused}, u.take())
				return
			}
			assert.Equal(t, []string{refused}, u.take())
			assert.Len(t, u.tokens.take(), 1, "token requests")
		})
	}
}

// Only the upstream's 404 is a 404. It makes no repository: what is unknown is that,
// until something has been pulled into it.
func TestUnknownTag(t *testing.T) {
	t.Parallel()
	s := newStore(t, single)
	u := startUpstream(t, s, authOpen)
	f := startFakeECR(t, u.url())
	missing := *single
	missing.tag = "missing"
	_, err := crane.Manifest(f.ref(&missing).String(), craneOptions(t)...)
	assertRefused(t, err, http.StatusNotFound, transport.NameUnknownErrorCode)
	assert.Equal(t, []string{manifestLine(&missing, "missing", http.StatusNotFound)}, u.take())

	manifest(t, f.ref(single))
	u.take()
	missing.tag = "other"
	_, err = crane.Manifest(f.ref(&missing).String(), craneOptions(t)...)
	assertRefused(t, err, http.StatusNotFound, transport.ManifestUnknownErrorCode)
	assert.Equal(t, []string{manifestLine(&missing, "other", http.StatusNotFound)}, u.take())
}

func assertRefused(t testing.TB, err error, status int, code transport.ErrorCode) {
	t.Helper()
	var refusal *transport.Error
	require.ErrorAs(t, err, &refusal)
	assert.Equal(t, status, refusal.StatusCode)
	require.NotEmpty(t, refusal.Errors)
	assert.Equal(t, code, refusal.Errors[0].Code)
}
