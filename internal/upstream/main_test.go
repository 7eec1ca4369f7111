package upstream_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const canary = "canary-secret"

var users = map[string]string{"me": canary}

// give is a Target.Credential that always has the same one.
func give(c upstream.Credential) func(context.Context) (upstream.Credential, error) {
	return func(context.Context) (upstream.Credential, error) { return c, nil }
}

// world is a registry with a Client before it.
type world struct {
	*upstream.Client
	up     *pullthroughtest.Upstream
	target *upstream.Target // the repository "a"
}

// newWorld returns a world. When the test ends nothing of the Client must run.
func newWorld(t *testing.T, c pullthroughtest.Config) *world {
	t.Helper()
	flights := new(flight.Set)
	w := &world{Client: upstream.New(upstream.Config{Flights: flights}), up: pullthroughtest.New(t, c)}
	w.target = w.repository("a")
	t.Cleanup(func() {
		assert.NoError(t, flights.Shutdown(context.Background()))
		w.Close()
	})
	return w
}

// repository is another repository of the same registry.
func (w *world) repository(name string) *upstream.Target {
	base, err := url.Parse(w.up.URL)
	if err != nil {
		panic(err)
	}
	return &upstream.Target{ID: "hub", Base: base, Name: name}
}

// push makes a new image the tag "1" of the repository "a".
func (w *world) push(o pullthroughtest.ImageOptions) *pullthroughtest.Image {
	img := pullthroughtest.NewImage(o)
	w.up.Push("a", "1", img)
	return img
}

func mustParse(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	require.NoError(t, err)
	return u
}

// roundTripper is a function as a Transport.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// answer is an answer to r without a body.
func answer(r *http.Request, status int, header http.Header) *http.Response {
	if header == nil {
		header = http.Header{}
	}
	return &http.Response{StatusCode: status, Header: header, Body: http.NoBody, Request: r}
}

// failsBlob reads the blob of the repository a as a client does. It must break
// off before its end, be right as far as it came, and not be stored.
func failsBlob(t *testing.T, w *testkit.World, layer *pullthroughtest.Blob, kind error) error {
	t.Helper()
	got, err := readBlob(t, w, layer.Digest)
	assert.ErrorIs(t, err, kind)
	assert.Less(t, int64(len(got)), layer.Size, "a client must see that it is not complete")
	assert.True(t, bytes.HasPrefix(testkit.BlobContent(t, layer), got), "what a client got is right")
	w.Settled(t)
	_, stored := w.Mem.Blob(t.Context(), testkit.Repo("a"), layer.Digest)
	assert.Error(t, stored, "nothing of it is kept")
	return err
}

// readBlob returns what a client of the repository a gets of a blob, and what
// ended it.
func readBlob(t *testing.T, w *testkit.World, d digest.Digest) ([]byte, error) {
	t.Helper()
	b, err := w.Open(t.Context(), d)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(b.Body)
	assert.NoError(t, b.Body.Close())
	return got, err
}

// unauthorized counts what the registry, not its token server, was sent without
// Authorization.
func unauthorized(w *testkit.World) (n int) {
	for _, r := range w.Up.Requests() {
		if r.Path != "/token" && r.Header.Get("Authorization") == "" {
			n++
		}
	}
	return n
}

// ranges are the Range headers of what the registry was sent, in their order.
func ranges(w *testkit.World) (ranges []string) {
	for _, r := range w.Up.Requests() {
		if r.Path != "/token" {
			ranges = append(ranges, r.Range)
		}
	}
	return ranges
}

// sent counts the bytes that upstream has sent.
func sent(w *testkit.World) (n int64) {
	for _, r := range w.Up.Requests() {
		n += r.Bytes
	}
	return n
}
