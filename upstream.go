package pullthrough

import (
	"context"
	"encoding/json"
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

	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
)

// smallTimeout bounds a whole exchange whose body is small.
const smallTimeout = time.Minute

const maxRetryAfter = 24 * time.Hour

// upstream is the module's one way out: one RoundTripper, one redirect policy.
// There is no http.Client: it would follow redirects by rules of its own, to
// another port or a subdomain with credentials, and put URLs into errors.
type upstream struct {
	transport http.RoundTripper
	own       *http.Transport // nil: the transport is the host's
	auth      *authorizer
	log       *slog.Logger
}

func newUpstream(p *Proxy) *upstream {
	u := &upstream{transport: p.Transport, log: p.log()}
	if u.transport == nil {
		u.own = newTransport()
		u.transport = u.own
	}
	u.auth = newAuthorizer(u, p)
	return u
}

// close lets go of the connections that nobody uses.
func (u *upstream) close() {
	if u.own != nil {
		u.own.CloseIdleConnections()
	}
}

// manifest fetches and verifies the manifest that ref, a tag or digest, names.
func (u *upstream) manifest(ctx context.Context, rt *route, ref string) (*Manifest, manifest.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, smallTimeout)
	defer cancel()
	resp, err := u.get(ctx, rt, http.MethodGet, "manifests/"+ref, http.Header{"Accept": {manifest.Accept}})
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
		return nil, manifest.Info{}, rt.error(ErrUnavailable, fmt.Errorf("read manifest: %w", redacted(err)))
	}
	if len(body) > manifest.MaxSize {
		return nil, manifest.Info{}, rt.error(ErrTooLarge, fmt.Errorf("manifest of more than %d bytes", manifest.MaxSize))
	}
	return u.inspect(rt, ref, resp.Header, body)
}

// inspect decides what body is. Its own digest is its identity: what upstream
// says of the digest is compared, never believed.
func (u *upstream) inspect(rt *route, ref string, h http.Header, body []byte) (*Manifest, manifest.Info, error) {
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
		u.log.Warn("upstream names a digest that is not its manifest's", "host", rt.base.Host, "repository", rt.name, "tag", ref)
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
	resp, err := u.get(ctx, rt, http.MethodHead, "manifests/"+tag, http.Header{"Accept": {manifest.Accept}})
	if err != nil {
		return "", err
	}
	defer drain(resp)
	switch resp.StatusCode {
	case http.StatusOK:
		d := digest.Digest(resp.Header.Get("Docker-Content-Digest"))
		if validDigest(d) {
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
	resp, err := u.get(ctx, rt, http.MethodGet, "blobs/"+d.String(), http.Header{"Range": {"bytes=0-0"}})
	if err != nil {
		return 0, err
	}
	defer drain(resp)
	switch {
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

// get sends a request for an object of the repository, with the credentials
// that upstream wants, and does so once more if they turn out to be stale.
func (u *upstream) get(ctx context.Context, rt *route, method, object string, header http.Header) (*http.Response, error) {
	target := rt.base.JoinPath("v2", rt.name, object)
	send := func(authorization string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, method, target.String(), nil)
		if err != nil {
			return nil, rt.error(ErrUnavailable, redacted(err))
		}
		for k, v := range header {
			req.Header[k] = v
		}
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		return u.send(req, anyOrigin)
	}
	return u.auth.do(ctx, rt, send)
}

// statusError says what upstream's refusal means. The status decides; of the
// body only a well-formed error code is kept: it is upstream's text.
func statusError(rt *route, resp *http.Response) error {
	e := rt.error(ErrUnavailable, errorCode(resp))
	e.Status = resp.StatusCode
	e.RetryAfter = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		e.Kind = ErrDenied
	case http.StatusNotFound:
		e.Kind = ErrNotFound
	case http.StatusTooManyRequests:
		e.Kind = ErrRateLimited
	}
	return e
}

// retryAfter reads the header's seconds or date; 0 for none and for nonsense.
func retryAfter(v string, now time.Time) time.Duration {
	if v == "" {
		return 0
	}
	if t, err := http.ParseTime(v); err == nil {
		return min(max(0, t.Sub(now)), maxRetryAfter)
	}
	seconds, err := strconv.ParseInt(v, 10, 64)
	if err != nil || seconds < 0 {
		return 0
	}
	return time.Duration(min(seconds, int64(maxRetryAfter/time.Second))) * time.Second
}

// errorCode keeps the code of upstream's first OCI error, if it has one.
func errorCode(resp *http.Response) error {
	defer hurry(resp)()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil {
		return redacted(err)
	}
	var answer struct {
		Errors []struct {
			Code string `json:"code"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &answer) != nil || len(answer.Errors) == 0 {
		return nil
	}
	code := answer.Errors[0].Code
	if code == "" || len(code) > 64 || strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" {
		return nil
	}
	return errors.New(code)
}
