// Package upstream is the client of an OCI registry.
package upstream

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
)

// Config is what a [Client] is made of. The zero Config will do.
type Config struct {
	// Transport carries out the requests. nil: the Client's own transports, which
	// check the address of every connection when it is dialled.
	Transport http.RoundTripper
	// Log gets what an operator should see. nil: nothing is logged.
	Log *slog.Logger
	// Now is the clock for the lifetime of tokens. nil: time.Now.
	Now func() time.Time
	// Flights is closed and waited for by its owner together with what else runs: the
	// Client's token fetches join it, under the name "token". nil: they run on their
	// own, and end when nobody waits for them.
	Flights *flight.Set
}

// Client talks to any number of registries. It is safe for concurrent use.
type Client struct {
	log *slog.Logger
}

// New returns a Client. It does no I/O.
func New(config Config) *Client { return &Client{} }

// Close closes the connections that nobody uses. The Client stays usable.
func (c *Client) Close() {}

// Effort is how hard a request tries.
type Effort int

const (
	// Pull is the effort for content that is not there yet: what failed in passing is
	// tried again, as [Options.Retries] says, and a registry that asks for patience is
	// waited for.
	Pull Effort = iota
	// Check is the effort for content that is stored anyhow: one request, no wait.
	Check
)

// Manifest is a manifest as the registry sent it, verified.
type Manifest struct {
	Descriptor ocispec.Descriptor // MediaType, Digest, Size; the digest is of Content
	Content    []byte
	Info       manifest.Info
}

// Manifest fetches and verifies the manifest that ref, a tag or digest, names. One
// that is damaged on its way is fetched once more, unless e is Check.
func (c *Client) Manifest(ctx context.Context, t *Target, ref string, e Effort) (*Manifest, error) {
	return nil, errors.ErrUnsupported
}

// Head asks which digest tag has now, in one request. An empty digest means that
// the registry does not say so on HEAD, and that GET must decide.
func (c *Client) Head(ctx context.Context, t *Target, tag string) (digest.Digest, error) {
	return "", errors.ErrUnsupported
}

// BlobSize asks for the size of a blob.
func (c *Client) BlobSize(ctx context.Context, t *Target, d digest.Digest) (int64, error) {
	return 0, errors.ErrUnsupported
}

// Transfer starts the download of a blob. The caller closes the Transfer. The
// content is not verified.
func (c *Client) Transfer(ctx context.Context, t *Target, d digest.Digest) (*Transfer, error) {
	return nil, errors.ErrUnsupported
}

// Transfer is the body of one blob, over as many answers as it takes. It is for
// one goroutine, except for Interrupt.
type Transfer struct{}

// Read reads on, over any number of breaks. Its error is io.EOF, the cause of the
// Transfer's context, or an [*Error].
func (t *Transfer) Read(p []byte) (int, error) { return 0, errors.ErrUnsupported }

// Close ends the transfer.
func (t *Transfer) Close() error { return nil }

// Total is the length of the blob that the registry announced; -1: it did not.
func (t *Transfer) Total() int64 { return -1 }

// Interrupt ends the answer that is being read, and the transfer goes on with
// another. It may be called at any time.
func (t *Transfer) Interrupt(cause error) {}

// Referrers asks for the whole list of what refers to subject, page by page.
func (c *Client) Referrers(ctx context.Context, t *Target, subject digest.Digest) (*ocispec.Index, error) {
	return nil, errors.ErrUnsupported
}

// EmptyIndex returns a list of no referrers.
func EmptyIndex() *ocispec.Index { return nil }

// Probe asks the registry for /v2/ with the credential of now, if it is
// challenged. It keeps nothing of what it learns, and uses nothing that other
// requests have learnt. [Options.AnonymousFallback] does not count.
func (c *Client) Probe(ctx context.Context, t *Target) error { return errors.ErrUnsupported }
