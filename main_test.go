package pullthrough_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestMain(m *testing.M) { pullthroughtest.Main(m) }

// prefix is the one rule's in most tests; its repositories are upstream's
// without it.
const prefix = "hub"

// world is an upstream registry and a proxy before it, whose secrets are watched.
type world struct {
	*pullthrough.Proxy
	up      *pullthroughtest.Upstream
	store   *memstore.Store
	secrets *pullthroughtest.Secrets
}

// newWorld returns a world with the rule hub = upstream. change, if not nil,
// may change the proxy before its first use.
func newWorld(t *testing.T, c pullthroughtest.Config, change func(*pullthrough.Proxy)) *world {
	t.Helper()
	secrets := pullthroughtest.NewSecrets(t) // first: it judges after all else has ended
	w := &world{up: pullthroughtest.New(t, c), store: memstore.New(), secrets: secrets}
	w.Proxy = &pullthrough.Proxy{
		Store:    w.store,
		Rules:    pullthrough.StaticRules{{Prefix: prefix, UpstreamURL: w.up.URL()}},
		SpoolDir: t.TempDir(),
	}
	if change != nil {
		change(w.Proxy)
	}
	w.watch()
	t.Cleanup(func() { assert.NoError(t, w.Shutdown(context.Background())) })
	return w
}

// watch lets only upstream see the secret that tests use, and nobody any secret
// in events and, unless the test has a Logger of its own, in the log.
func (w *world) watch() {
	w.secrets.Watch(w.up)
	w.secrets.Allow(canary, w.up)
	if w.Logger == nil {
		w.Logger = textLogger(w.secrets.Writer())
	}
	told := w.OnEvent
	w.OnEvent = func(ctx context.Context, e pullthrough.Event) {
		w.secrets.Check(e)
		if told != nil {
			told(ctx, e)
		}
	}
}

func repo(name string) pullthrough.Repo { return pullthrough.Repo{Name: prefix + "/" + name} }

// pull reads a whole image of an upstream repository and waits until the Store has
// it.
func (w *world) pull(t *testing.T, name, ref string, img *pullthroughtest.Image) {
	t.Helper()
	w.fetchImage(t, repo(name), ref, img)
}

// fetchImage is pull for any repository of the proxy.
func (w *world) fetchImage(t *testing.T, r pullthrough.Repo, ref string, img *pullthroughtest.Image) {
	t.Helper()
	w.readImage(t, r, ref, img)
	w.settled(t)
}

// readImage reads a whole image as a client does: the manifest by ref, then every
// blob.
func (w *world) readImage(t *testing.T, r pullthrough.Repo, ref string, img *pullthroughtest.Image) {
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

// stored is what the Store has of the repository a under a tag or digest, once
// all that was pulled is in it.
func (w *world) stored(t *testing.T, ref string) (*pullthrough.Manifest, error) {
	t.Helper()
	w.settled(t)
	return w.store.Manifest(t.Context(), repo("a"), ref)
}

// pullBlob reads a blob to its end and checks its digest.
func (w *world) pullBlob(t *testing.T, name string, d digest.Digest) {
	t.Helper()
	w.readWhole(t, repo(name), d)
}

func (w *world) readWhole(t *testing.T, r pullthrough.Repo, d digest.Digest) {
	t.Helper()
	b, err := w.Blob(t.Context(), pullthrough.Request{Repo: r, Ref: d.String()})
	require.NoError(t, err)
	assertBody(t, d, b)
}

func assertBody(t *testing.T, d digest.Digest, b *pullthrough.Blob) {
	t.Helper()
	v := d.Verifier()
	n, err := io.Copy(v, b.Body)
	assert.NoError(t, err)
	assert.Equal(t, b.Descriptor.Size, n)
	assert.True(t, v.Verified(), "the blob is what its digest says")
	assert.NoError(t, b.Body.Close())
}

// serve mounts h on a server of the test's own.
func serve(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// settled waits until the fetches that are under way have been committed: the
// Store gets a blob after its client has all of it.
func (w *world) settled(t *testing.T) {
	t.Helper()
	require.NoError(t, w.Idle(context.Background()))
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	return string(b)
}

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	require.NoError(t, err)
	return u
}

func join(s []string) string            { return strings.Join(s, " ") }
func repeat(s string, n int) string     { return strings.Repeat(s, n) }
func replace(s, old, new string) string { return strings.ReplaceAll(s, old, new) }

// settledBut waits until so many fetches are left.
func (w *world) settledBut(t *testing.T, n int) {
	t.Helper()
	require.Eventually(t, func() bool { return w.Running() == n }, 10*time.Second, time.Millisecond)
}

func textLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// oneTry keeps failures short where a test is not about trying again.
func oneTry(p *pullthrough.Proxy) {
	p.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
		return pullthrough.Policy{Retries: -1}
	}
}
