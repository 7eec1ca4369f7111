package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/lru"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
)

// smallTimeout bounds a whole exchange whose body is small.
const smallTimeout = time.Minute

// upstream is the module's one way out: one RoundTripper, one redirect policy.
// There is no http.Client: it would follow redirects by rules of its own, to
// another port or a subdomain with credentials, and put URLs into errors.
type upstream struct {
	transport http.RoundTripper // the host's; nil: our own
	lanes     lanes
	auth      *authorizer
	paces     *lru.Cache[paceKey, *pace]
	log       *slog.Logger
	failed    *lru.Cache[pool, struct{}] // where the last request failed
}

func newUpstream(p *Proxy) *upstream {
	u := &upstream{transport: p.Transport, log: p.log(), paces: lru.New[paceKey, *pace](3 * maxSites), failed: lru.New[pool, struct{}](maxSites)}
	u.auth = newAuthorizer(u, p)
	return u
}

var acceptManifests = http.Header{"Accept": {manifest.Accept}}

// errCut is the cause of an error for a body that broke off.
var errCut = errors.New("the answer broke off")

// manifest fetches and verifies the manifest that ref, a tag or digest, names.
// One that is damaged on its way is fetched once more.
func (u *upstream) manifest(ctx context.Context, rt *route, ref string, tries effort) (*Manifest, manifest.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, smallTimeout)
	defer cancel()
	m, info, err := u.fetchManifest(ctx, rt, ref, tries)
	damaged := errors.Is(err, errCut) || errors.Is(err, ErrDigest) && strings.Contains(ref, ":")
	if damaged && tries.tries > 1 && ctx.Err() == nil {
		return u.fetchManifest(ctx, rt, ref, tries)
	}
	return m, info, err
}

func (u *upstream) fetchManifest(ctx context.Context, rt *route, ref string, tries effort) (*Manifest, manifest.Info, error) {
	resp, err := u.get(ctx, rt, question{http.MethodGet, "manifests", ref, acceptManifests, tries, ""})
	if err != nil {
		return nil, manifest.Info{}, err
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusOK {
		return nil, manifest.Info{}, statusError(rt, resp)
	}
	if resp.ContentLength > manifest.MaxSize {
		return nil, manifest.Info{}, rt.error(ErrTooLarge, fmt.Errorf("manifest of %d bytes", resp.ContentLength))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, manifest.MaxSize+1))
	if err != nil {
		return nil, manifest.Info{}, rt.error(ErrUnavailable, fmt.Errorf("%w: %w", errCut, redacted(err)))
	}
	if len(body) > manifest.MaxSize {
		return nil, manifest.Info{}, rt.error(ErrTooLarge, fmt.Errorf("manifest of more than %d bytes", manifest.MaxSize))
	}
	return u.inspect(ctx, rt, ref, resp.Header, body)
}

// inspect decides what body is. Its own digest is its identity: what upstream
// says of the digest is compared, never believed.
func (u *upstream) inspect(ctx context.Context, rt *route, ref string, h http.Header, body []byte) (*Manifest, manifest.Info, error) {
	algorithm := digest.Canonical
	asked := digest.Digest(ref)
	byDigest := strings.Contains(ref, ":")
	if byDigest {
		algorithm = asked.Algorithm()
	}
	got := algorithm.FromBytes(body)
	if byDigest && got != asked {
		return nil, manifest.Info{}, rt.error(ErrDigest, fmt.Errorf("manifest has the digest %s", got))
	}
	if said := h.Get("Docker-Content-Digest"); !byDigest && said != "" && said != got.String() {
		traceOf(ctx).markWrongDigest()
		u.log.Warn("upstream names a digest that is not its manifest's", "host", rt.base.Host, "repository", rt.name, "tag", ref)
		if rt.policy.RefuseWrongDigest {
			return nil, manifest.Info{}, rt.error(ErrDigest, fmt.Errorf("manifest has the digest %s, upstream says it has another", got))
		}
	}
	info, err := manifest.Inspect(h.Get("Content-Type"), body)
	if errors.Is(err, manifest.ErrSchema1) {
		return nil, manifest.Info{}, rt.error(ErrNotFound, err)
	}
	if err != nil {
		return nil, manifest.Info{}, rt.error(ErrUnavailable, err)
	}
	m := &Manifest{
		Descriptor: ocispec.Descriptor{MediaType: info.MediaType, Digest: got, Size: int64(len(body))},
		Content:    body,
		Origin:     rt.base.Host,
		Source:     SourceFill,
	}
	if !byDigest {
		m.Tag = ref
	}
	return m, info, nil
}

// head asks which digest tag has now. An empty digest means that upstream does
// not say so on HEAD.
func (u *upstream) head(ctx context.Context, rt *route, tag string) (digest.Digest, error) {
	ctx, cancel := context.WithTimeout(ctx, smallTimeout)
	defer cancel()
	resp, err := u.get(ctx, rt, question{http.MethodHead, "manifests", tag, acceptManifests, checking, ""})
	if err != nil {
		return "", err
	}
	defer drain(resp)
	switch resp.StatusCode {
	case http.StatusOK:
		d := digest.Digest(resp.Header.Get("Docker-Content-Digest"))
		if validDigest(d) && resp.Header.Get("Content-Type") != "" {
			return d, nil
		}
		return "", nil
	case http.StatusMethodNotAllowed, http.StatusNotFound:
		// Some registries answer HEAD with 404 or 405 and GET with 200: GET decides.
		return "", nil
	}
	return "", statusError(rt, resp)
}

// blobSize asks for the size of a blob by way of its first byte: there are
// registries that refuse every HEAD of a blob.
func (u *upstream) blobSize(ctx context.Context, rt *route, d digest.Digest) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, smallTimeout)
	defer cancel()
	firstByte := http.Header{"Range": {"bytes=0-0"}}
	resp, err := u.get(ctx, rt, question{http.MethodGet, "blobs", d.String(), firstByte, rt.policy.effort(), ""})
	if err != nil {
		return 0, err
	}
	defer drain(resp)
	switch {
	case strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") && resp.StatusCode/100 == 2:
		return 0, rt.error(ErrUnavailable, errors.New("upstream answers with a web page"))
	case resp.StatusCode == http.StatusOK && resp.ContentLength >= 0:
		return resp.ContentLength, nil
	case resp.StatusCode == http.StatusPartialContent:
		_, total, _ := strings.Cut(resp.Header.Get("Content-Range"), "/")
		if size, err := strconv.ParseInt(total, 10, 64); err == nil && size > 0 {
			return size, nil
		}
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && d == d.Algorithm().FromString(""):
		return 0, nil // an empty blob has no first byte
	}
	if resp.StatusCode/100 == 2 {
		return 0, rt.error(ErrUnavailable, errors.New("upstream does not tell the size of the blob"))
	}
	return 0, statusError(rt, resp)
}

// question is one request for an object of a repository.
type question struct {
	method string
	kind   string // "manifests", "blobs" or "referrers"
	ref    string
	header http.Header
	effort effort
	query  string // ""; of a list, the next page
}

// get sends a question, with the credentials that upstream wants, and does so
// once more if they turn out to be stale.
func (u *upstream) get(ctx context.Context, rt *route, q question) (*http.Response, error) {
	at := rt.base.JoinPath("v2", rt.name, q.kind, q.ref)
	at.RawQuery = q.query
	return u.ask(ctx, rt, u.auth, at.String(), q)
}

// ask sends what get or probe has to ask at target. Nothing is sent to an upstream
// or its token server but what begins here.
func (u *upstream) ask(ctx context.Context, rt *route, auth *authorizer, target string, q question) (*http.Response, error) {
	if err := rt.offline(q.ref); err != nil {
		return nil, err
	}
	return auth.do(ctx, rt, func(authorization string, answered func(*http.Response)) (*http.Response, error) {
		return u.persist(ctx, rt, q.kind, q.effort, func() (*http.Response, error) {
			req, err := http.NewRequestWithContext(ctx, q.method, target, nil)
			if err != nil {
				return nil, rt.error(ErrUnavailable, redacted(err))
			}
			for k, v := range q.header {
				req.Header[k] = v
			}
			if authorization != "" {
				req.Header.Set("Authorization", authorization)
			}
			resp, err := u.send(rt, req, anyOrigin)
			if err == nil {
				answered(resp)
			}
			return resp, err
		})
	})
}
