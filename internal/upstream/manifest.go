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

// readUpTo reads the body of an answer, and one byte more than most if it is longer.
func (t *Target) readUpTo(ctx context.Context, resp *http.Response, most int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err != nil {
		return nil, t.fail(ErrUnavailable, fmt.Errorf("%w: %w", errCut, redact(ctx, err)))
	}
	return body, nil
}

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
	fetch := c.taggedManifest
	if ocipath.IsDigest(ref) {
		fetch = c.manifestOf
	}
	tries := t.Options.attempts(e)
	m, err := fetch(ctx, t, ref, tries)
	damaged := errors.Is(err, errCut) || errors.Is(err, ErrDigest) && ocipath.IsDigest(ref)
	if damaged && tries.requests > 1 && ctx.Err() == nil {
		return fetch(ctx, t, ref, tries)
	}
	return m, err
}

// manifestOf fetches the manifest that has the digest.
func (c *Client) manifestOf(ctx context.Context, t *Target, asked string, tries attempts) (*Manifest, error) {
	h, body, err := c.readManifest(ctx, t, asked, tries)
	if err != nil {
		return nil, err
	}
	d := digest.Digest(asked)
	if got := d.Algorithm().FromBytes(body); got != d {
		return nil, t.fail(ErrDigest, fmt.Errorf("manifest has the digest %s", got))
	}
	return c.inspect(t, d, h, body, manifest.ByDigest)
}

// taggedManifest fetches the manifest that the tag names. If its content does not have
// the digest that the registry names, one of the two is wrong. Content that was damaged
// must not be kept as the tag's, so the registry is asked once for the digest that it
// named. If it does not have that, its header is wrong, and the content counts. If it
// fails or refuses, nobody knows, and so the whole request fails.
func (c *Client) taggedManifest(ctx context.Context, t *Target, tag string, tries attempts) (*Manifest, error) {
	h, body, err := c.readManifest(ctx, t, tag, tries)
	if err != nil {
		return nil, err
	}
	named := namedDigest(h)
	d, agree := digestOfTag(named, body)
	if !agree && ocipath.ValidDigest(named) {
		m, err := c.manifestOf(ctx, t, named, attempts{requests: 1})
		if err == nil || ctx.Err() != nil || !isMissing(err) {
			return m, err
		}
	}
	if !agree {
		traceOf(ctx).markWrongDigest()
		c.log.Warn("upstream names a digest that is not its manifest's", "host", t.Base.Host, "repository", t.Name, "tag", tag)
		if t.Options.RefuseWrongDigest {
			return nil, t.fail(ErrDigest, fmt.Errorf("manifest has the digest %s, upstream says it has another", d))
		}
	}
	return c.inspect(t, d, h, body, manifest.ByTag)
}

// isMissing reports whether the registry has said that it does not have what it was asked
// for, or has sent other content.
func isMissing(err error) bool {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return false
	}
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout, http.StatusTooManyRequests:
		return false
	}
	return e.Kind == ErrDigest || e.Status >= http.StatusBadRequest && e.Status < http.StatusInternalServerError
}

// digestOfTag returns the digest of a tag's manifest. It is the one that the registry
// names, if body has that digest and it is of a kind that is supported: a tag has the same
// digest here as there. agree reports whether the registry is right, or silent.
func digestOfTag(named string, body []byte) (d digest.Digest, agree bool) {
	own := digest.FromBytes(body)
	said := digest.Digest(named)
	switch {
	case named == "":
		return own, true
	case said.Validate() != nil || said.Algorithm().FromBytes(body) != said:
		return own, false
	case !ocipath.ValidDigest(named):
		return own, true
	}
	return said, true
}

// readManifest sends one request and reads its answer, which is bounded whatever its
// length is said to be.
func (c *Client) readManifest(ctx context.Context, t *Target, ref string, tries attempts) (http.Header, []byte, error) {
	resp, err := c.get(ctx, t, object{method: http.MethodGet, kind: "manifests", ref: ref, header: acceptManifests, attempts: tries})
	if err != nil {
		return nil, nil, err
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusOK {
		return nil, nil, statusError(t, resp)
	}
	if resp.ContentLength > manifest.MaxSize {
		return nil, nil, t.fail(ErrTooLarge, fmt.Errorf("manifest of %d bytes", resp.ContentLength))
	}
	body, err := t.readUpTo(ctx, resp, manifest.MaxSize)
	if err != nil {
		return nil, nil, err
	}
	if len(body) > manifest.MaxSize {
		return nil, nil, t.fail(ErrTooLarge, fmt.Errorf("manifest of more than %d bytes", manifest.MaxSize))
	}
	return resp.Header, body, nil
}

// inspect decides what body, which has the digest d, is. A manifest of Docker's schema 1 is
// "not found": it cannot be verified, and no client wants it.
func (c *Client) inspect(t *Target, d digest.Digest, h http.Header, body []byte, trust manifest.Trust) (*Manifest, error) {
	info, err := manifest.Inspect(h.Get("Content-Type"), body, trust)
	if errors.Is(err, manifest.ErrSchema1) {
		return nil, t.fail(ErrNotFound, err)
	}
	if err != nil {
		return nil, c.transport.secretsOf(t).clean(t.fail(ErrUnavailable, err), t.Base.Host)
	}
	desc := ocispec.Descriptor{MediaType: info.MediaType, Digest: d, Size: int64(len(body))}
	return &Manifest{Descriptor: desc, Content: body, Info: info}, nil
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
		d := namedDigest(resp.Header)
		if ocipath.ValidDigest(d) && resp.Header.Get("Content-Type") != "" {
			return digest.Digest(d), nil
		}
		return "", nil
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound,
		http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusUnsupportedMediaType, http.StatusNotImplemented:
		return "", nil
	}
	return "", statusError(t, resp)
}

// namedDigest is the digest that an answer names; "": none. There are registries that
// write it in quotes or in upper case. It need not be valid.
func namedDigest(h http.Header) string {
	return strings.ToLower(strings.Trim(h.Get("Docker-Content-Digest"), `" `))
}
