package testkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// Prefix is the one rule's in most tests; its repositories are upstream's
// without it.
const Prefix = "hub"

// World is an upstream registry and a proxy before it, whose secrets are watched.
type World struct {
	*pullthrough.Proxy
	Up      *pullthroughtest.Upstream
	Mem     *memstore.Store // the proxy's Store, unless the test has one of its own
	Secrets *pullthroughtest.Secrets
}

// NewWorld returns a world with the rule hub = upstream. change, if not nil,
// may change the proxy before its first use.
func NewWorld(t *testing.T, c pullthroughtest.Config, change func(*pullthrough.Proxy)) *World {
	t.Helper()
	secrets := pullthroughtest.NewSecrets(t) // first: it judges after all else has ended
	w := &World{Up: pullthroughtest.New(t, c), Mem: memstore.New(), Secrets: secrets}
	w.Proxy = &pullthrough.Proxy{
		Store:    w.Mem,
		Rules:    pullthrough.StaticRules{{Prefix: Prefix, UpstreamURL: w.Up.URL}},
		SpoolDir: t.TempDir(),
	}
	if change != nil {
		change(w.Proxy)
	}
	w.Watch()
	t.Cleanup(func() { assert.NoError(t, w.Shutdown(context.Background())) })
	return w
}

// Watch lets only upstream see the secret that tests use, and nobody any secret
// in events and, unless the test has a Logger of its own, in the log.
func (w *World) Watch() {
	w.Secrets.Watch(w.Up)
	w.Secrets.Allow(Canary, w.Up)
	if w.Logger == nil {
		w.Logger = TextLogger(w.Secrets.Writer())
	}
	told := w.OnEvent
	w.OnEvent = func(ctx context.Context, e pullthrough.Event) {
		w.Secrets.Check(e)
		if told != nil {
			told(ctx, e)
		}
	}
}

// Repo is the proxy's name of an upstream repository.
func Repo(name string) pullthrough.Repo { return pullthrough.Repo{Name: Prefix + "/" + name} }

// Pull reads a whole image of an upstream repository and waits until the Store has
// it.
func (w *World) Pull(t *testing.T, name, ref string, img *pullthroughtest.Image) {
	t.Helper()
	w.FetchImage(t, Repo(name), ref, img)
}

// FetchImage is Pull for any repository of the proxy.
func (w *World) FetchImage(t *testing.T, r pullthrough.Repo, ref string, img *pullthroughtest.Image) {
	t.Helper()
	w.ReadImage(t, r, ref, img)
	w.Settled(t)
}

// ReadImage reads a whole image as a client does: the manifest by ref, then every
// blob.
func (w *World) ReadImage(t *testing.T, r pullthrough.Repo, ref string, img *pullthroughtest.Image) {
	t.Helper()
	m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: r, Ref: ref})
	require.NoError(t, err)
	assert.Equal(t, img.Digest, m.Descriptor.Digest)
	assert.Equal(t, img.MediaType, m.Descriptor.MediaType)
	assert.True(t, bytes.Equal(img.Content, m.Content), "the manifest is upstream's, byte for byte")
	for _, b := range img.Blobs() {
		w.readWhole(t, r, b.Digest)
	}
}

// Stored is what the Store has of the repository a under a tag or digest, once
// all that was pulled is in it.
func (w *World) Stored(t *testing.T, ref string) (*pullthrough.Manifest, error) {
	t.Helper()
	w.Settled(t)
	return w.Mem.Manifest(t.Context(), Repo("a"), ref)
}

// PullBlob reads a blob to its end and checks its digest.
func (w *World) PullBlob(t *testing.T, name string, d digest.Digest) {
	t.Helper()
	w.readWhole(t, Repo(name), d)
}

func (w *World) readWhole(t *testing.T, r pullthrough.Repo, d digest.Digest) {
	t.Helper()
	b, err := w.Blob(t.Context(), pullthrough.Request{Repo: r, Ref: d.String()})
	require.NoError(t, err)
	AssertBody(t, d, b)
}

// Layer pushes an image with one layer of size bytes to the repository a, and
// returns the layer.
func (w *World) Layer(size int64) *pullthroughtest.Blob {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: size, LayerSize: size})
	w.Up.Push("a", "1", img)
	return img.Layers[0]
}

// Open begins to read a blob of the repository a.
func (w *World) Open(ctx context.Context, d digest.Digest) (*pullthrough.Blob, error) {
	return w.Blob(ctx, pullthrough.Request{Repo: Repo("a"), Ref: d.String()})
}

// LayerSizes are one that is verified before its answer starts, and one that
// is not.
var LayerSizes = map[string]int64{"small": 100_000, "large": 3<<20 + 11}

// AssertBody reads the blob to its end and closes it. It must be what its digest says.
func AssertBody(t *testing.T, d digest.Digest, b *pullthrough.Blob) {
	t.Helper()
	v := d.Verifier()
	n, err := io.Copy(v, b.Body)
	assert.NoError(t, err)
	assert.Equal(t, b.Descriptor.Size, n)
	assert.True(t, v.Verified(), "the blob is what its digest says")
	assert.NoError(t, b.Body.Close())
}

// Serve mounts h on a server of the test's own.
func Serve(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// Settled waits until the fetches that are under way have been committed: the
// Store gets a blob after its client has all of it.
func (w *World) Settled(t *testing.T) {
	t.Helper()
	require.NoError(t, w.Idle(context.Background()))
}

// MustURL parses a URL.
func MustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	require.NoError(t, err)
	return u
}

// TextLogger logs to w.
func TextLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// Whole reads a blob as one client does, and says what was wrong with it.
func (w *World) Whole(ctx context.Context, d digest.Digest) error {
	b, err := w.Open(ctx, d)
	if err != nil {
		return err
	}
	return readWhole(d, b)
}

// PullImage reads a whole image by the proxy as one client does, and says what was wrong.
func PullImage(ctx context.Context, p *pullthrough.Proxy, r pullthrough.Repo, ref string, img *pullthroughtest.Image) error {
	if _, err := p.Manifest(ctx, pullthrough.Request{Repo: r, Ref: ref}); err != nil {
		return err
	}
	for _, blob := range img.Blobs() {
		b, err := p.Blob(ctx, pullthrough.Request{Repo: r, Ref: blob.Digest.String()})
		if err != nil {
			return err
		}
		if err := readWhole(blob.Digest, b); err != nil {
			return fmt.Errorf("%s: %w", blob.Digest, err)
		}
	}
	return nil
}

func readWhole(d digest.Digest, b *pullthrough.Blob) error {
	defer func() { _ = b.Body.Close() }()
	v := d.Verifier()
	n, err := io.Copy(v, b.Body)
	if err == nil && (n != b.Descriptor.Size || !v.Verified()) {
		err = errors.New("the content is wrong, and no error says so")
	}
	return err
}

// RequireRead reads exactly n bytes.
func RequireRead(t *testing.T, r io.Reader, n int64) []byte {
	t.Helper()
	p := make([]byte, n)
	_, err := io.ReadFull(r, p)
	require.NoError(t, err)
	return p
}

// Tagged pulls the manifest ref, a tag or digest, of the repository a, and waits
// until the Store has it.
func (w *World) Tagged(t *testing.T, ref string) (*pullthrough.Manifest, error) {
	t.Helper()
	m, err := w.Manifest(t.Context(), pullthrough.Request{Repo: Repo("a"), Ref: ref})
	w.Settled(t)
	return m, err
}

// Resolve asks for a manifest of the repository a.
func (w *World) Resolve(ctx context.Context, ref string) (*pullthrough.Manifest, error) {
	return w.Manifest(ctx, pullthrough.Request{Repo: Repo("a"), Ref: ref})
}
