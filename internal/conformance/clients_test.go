package conformance_test

import (
	"bytes"
	"io"
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	"github.com/regclient/regclient"
	"github.com/regclient/regclient/config"
	"github.com/regclient/regclient/scheme/reg"
	regref "github.com/regclient/regclient/types/ref"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
	orasremote "oras.land/oras-go/v2/registry/remote"
	orasauth "oras.land/oras-go/v2/registry/remote/auth"
)

// client pulls whole images: every manifest and every blob, verified.
type client struct {
	name   string
	pull   func(t testing.TB, from ref, img *image) *pulled
	cannot map[*image]string // what the client itself does not pull, and why
}

var clients = []*client{
	{name: "crane", pull: cranePull},
	{name: "regclient", pull: regclientPull},
	{name: "oras", pull: orasPull},
	{name: "skopeo", pull: skopeoPull, cannot: map[*image]string{
		sha512Layer: "skopeo 1.9 saves each blob under sha256",
	}},
}

// cranePull reads each blob several times: to validate the image, and to
// collect it.
func cranePull(t testing.TB, from ref, img *image) *pulled {
	t.Helper()
	opts := craneOptions(t)
	manifest, err := crane.Manifest(from.String(), opts...)
	require.NoError(t, err)
	root, err := crane.Digest(from.String(), opts...)
	require.NoError(t, err)
	require.Equal(t, digest.FromBytes(manifest).String(), root)
	craneValidate(t, from, img)

	p, err := collect(digest.Digest(root), func(d digest.Digest, isManifest bool) (io.ReadCloser, error) {
		if isManifest {
			b, err := crane.Manifest(from.digest(d), opts...)
			return io.NopCloser(bytes.NewReader(b)), err
		}
		layer, err := crane.PullLayer(from.digest(d), opts...)
		if err != nil {
			return nil, err
		}
		return layer.Compressed()
	})
	require.NoError(t, err)
	return p
}

func craneOptions(t testing.TB) []crane.Option {
	t.Helper()
	return []crane.Option{crane.WithContext(t.Context()), crane.WithTransport(newTransport(t))}
}

// newTransport is closed before the server ends: net/http's Shutdown waits 5 s
// for a connection on which no request ever came, as clients dial in reserve.
func newTransport(t testing.TB) *http.Transport {
	t.Helper()
	transport := http.DefaultTransport.(*http.Transport).Clone()
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

// craneValidate is what `crane validate` does, for an index too.
func craneValidate(t testing.TB, from ref, img *image) {
	t.Helper()
	var opts []validate.Option
	switch {
	case img.opaque:
		return
	case img.large:
		opts = append(opts, validate.Fast)
	}
	tag, err := name.ParseReference(from.String())
	require.NoError(t, err)
	desc, err := remote.Get(tag, remote.WithContext(t.Context()), remote.WithTransport(newTransport(t)))
	require.NoError(t, err)
	if desc.MediaType.IsIndex() {
		idx, err := desc.ImageIndex()
		require.NoError(t, err)
		assert.NoError(t, validate.Index(idx, opts...))
		return
	}
	got, err := crane.Pull(from.String(), craneOptions(t)...)
	require.NoError(t, err)
	assert.NoError(t, validate.Image(got, opts...))
}

// regclientPull copies into an OCI layout.
func regclientPull(t testing.TB, from ref, _ *image) *pulled {
	t.Helper()
	host := config.HostNewName(from.host)
	host.TLS = config.TLSDisabled
	rc := regclient.New(regclient.WithConfigHost(*host), regclient.WithRegOpts(reg.WithTransport(newTransport(t))))
	src, err := regref.New(from.String())
	require.NoError(t, err)
	dir := t.TempDir()
	dst, err := regref.New("ocidir://" + dir + ":" + from.tag)
	require.NoError(t, err)

	require.NoError(t, rc.ImageCopy(t.Context(), src, dst))
	assert.NoError(t, rc.Close(t.Context(), dst))
	return readLayout(t, dir, from.tag)
}

// orasPull copies into an OCI layout.
func orasPull(t testing.TB, from ref, _ *image) *pulled {
	t.Helper()
	dir := t.TempDir()
	layout, err := oci.New(dir)
	require.NoError(t, err)
	_, err = oras.Copy(t.Context(), orasRepository(t, from), from.tag, layout, from.tag, oras.DefaultCopyOptions)
	require.NoError(t, err)
	return readLayout(t, dir, from.tag)
}

func orasRepository(t testing.TB, r ref) *orasremote.Repository {
	t.Helper()
	repo, err := orasremote.NewRepository(r.name())
	require.NoError(t, err)
	repo.PlainHTTP = true
	repo.Client = orasClient(t)
	return repo
}

func orasClient(t testing.TB) *orasauth.Client {
	t.Helper()
	return &orasauth.Client{Client: &http.Client{Transport: newTransport(t)}}
}
