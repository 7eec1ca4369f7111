package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// acceptManifests goes with every request for a manifest. It does not depend on what
// a client would accept: a tag must have one answer.
var acceptManifests = http.Header{"Accept": {manifest.Accept}}

// errCut is the cause of an error for a body that broke off.
var errCut = errors.New("the answer broke off")

// Manifest is a manifest as the registry sent it, verified.
type Manifest struct {
	Descriptor ocispec.Descriptor // MediaType, Digest, Size; the digest is of Content
	Content    []byte
	Info       manifest.Info // what the content says of itself
}

// Manifest fetches and verifies the manifest that ref, a tag or digest, names. One
// that is damaged on its way is fetched once more, if e allows another try. The
// whole takes a minute at most.
//
// The error for a manifest that is not there Is [ErrNotFound], and so is that for
// Docker's schema 1. It Is [ErrDigest] if the content does not have the digest
// asked for, and [ErrTooLarge] above [manifest.MaxSize].
func (c *Client) Manifest(ctx context.Context, t *Target, ref string, e Effort) (*Manifest, error) {
	ctx, cancel := context.WithTimeout(ctx, smallTimeout)
	defer cancel()
	tries := t.Options.attempts(e)
	m, err := c.fetchManifest(ctx, t, ref, tries)
	damaged := errors.Is(err, errCut) || errors.Is(err, ErrDigest) && ocipath.IsDigest(ref)
	if damaged && tries.requests > 1 && ctx.Err() == nil {
		return c.fetchManifest(ctx, t, ref, tries)
	}
	return m, err
}

// fetchManifest sends one request, and verifies what comes. The body is bounded
// whatever its length is said to be.
func (c *Client) fetchManifest(ctx context.Context, t *Target, ref string, tries attempts) (*Manifest, error) {
	resp, err := c.get(ctx, t, object{method: http.MethodGet, kind: "manifests", ref: ref, header: acceptManifests, attempts: tries})
	if err != nil {
		return nil, err
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusOK {
		return nil, statusError(t, resp)
	}
	if resp.ContentLength > manifest.MaxSize {
		return nil, t.fail(ErrTooLarge, fmt.Errorf("manifest of %d bytes", resp.ContentLength))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, manifest.MaxSize+1))
	if err != nil {
		return nil, t.fail(ErrUnavailable, fmt.Errorf("%w: %w", errCut, redact(ctx, err)))
	}
	if len(body) > manifest.MaxSize {
		return nil, t.fail(ErrTooLarge, fmt.Errorf("manifest of more than %d bytes", manifest.MaxSize))
	}
	return c.inspect(ctx, t, ref, resp.Header, body)
}

// inspect decides what body is, by its digest and by its content. A manifest of
// Docker's schema 1 is "not found": it cannot be verified, and no client wants it.
func (c *Client) inspect(ctx context.Context, t *Target, ref string, h http.Header, body []byte) (*Manifest, error) {
	d, err := c.verify(ctx, t, ref, h, body)
	if err != nil {
		return nil, err
	}
	info, err := manifest.Inspect(h.Get("Content-Type"), body)
	if errors.Is(err, manifest.ErrSchema1) {
		return nil, t.fail(ErrNotFound, err)
	}
	if err != nil {
		return nil, t.fail(ErrUnavailable, err)
	}
	desc := ocispec.Descriptor{MediaType: info.MediaType, Digest: d, Size: int64(len(body))}
	return &Manifest{Descriptor: desc, Content: body, Info: info}, nil
}

// verify returns the digest of body, which is its identity. What the registry says
// of the digest is compared with it, never believed.
func (c *Client) verify(ctx context.Context, t *Target, ref string, h http.Header, body []byte) (digest.Digest, error) {
	if ocipath.IsDigest(ref) {
		asked := digest.Digest(ref)
		got := asked.Algorithm().FromBytes(body)
		if got != asked {
			return "", t.fail(ErrDigest, fmt.Errorf("manifest has the digest %s", got))
		}
		return got, nil
	}
	got := digest.FromBytes(body)
	if h.Get("Docker-Content-Digest") != "" && namedDigest(h) != got {
		traceOf(ctx).markWrongDigest()
		c.log.Warn("upstream names a digest that is not its manifest's", "host", t.Base.Host, "repository", t.Name, "tag", ref)
		if t.Options.RefuseWrongDigest {
			return "", t.fail(ErrDigest, fmt.Errorf("manifest has the digest %s, upstream says it has another", got))
		}
	}
	return got, nil
}

// Head asks which digest tag has now, with the effort of a [Check]. An empty digest
// means that the registry does not say so on HEAD. There are registries that refuse
// HEAD and answer GET: what a HEAD is refused with is no verdict, and GET must decide.
// The error is for an upstream that is in trouble.
func (c *Client) Head(ctx context.Context, t *Target, tag string) (digest.Digest, error) {
	ctx, cancel := context.WithTimeout(ctx, smallTimeout)
	defer cancel()
	head := object{method: http.MethodHead, kind: "manifests", ref: tag, header: acceptManifests, attempts: t.Options.attempts(Check)}
	resp, err := c.get(ctx, t, head)
	if err != nil {
		return "", err
	}
	defer drain(resp)
	switch resp.StatusCode {
	case http.StatusOK:
		if resp.Header.Get("Content-Type") != "" {
			return namedDigest(resp.Header), nil
		}
		return "", nil
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound,
		http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusUnsupportedMediaType, http.StatusNotImplemented:
		return "", nil
	}
	return "", statusError(t, resp)
}

// namedDigest is the digest that an answer names, "" for none and for what is none.
// There are registries that write it in quotes or in upper case.
func namedDigest(h http.Header) digest.Digest {
	d := strings.ToLower(strings.Trim(h.Get("Docker-Content-Digest"), `" `))
	if !ocipath.ValidDigest(d) {
		return ""
	}
	return digest.Digest(d)
}
