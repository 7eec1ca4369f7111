package pullthrough

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/serve"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
)

const mediaTypeJSON = "application/json"

// ServeHTTP is a read-only registry: the Store first, then the rules. Mount it
// at "/v2" and at "/v2/", which are alike. A miss that no rule covers is
// answered as Amazon ECR does, and every push 405 UNSUPPORTED.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w, answer := p.engine().writes.Answer(w, r)
	path, err := ocipath.Parse(r.URL)
	switch {
	case errors.Is(err, ocipath.ErrNotRegistry):
		serve.Error(w, http.StatusNotFound, "UNSUPPORTED", "This is not a path of the registry API.")
	case !isPullMethod(r.Method):
		w.Header().Set("Allow", "GET, HEAD")
		serve.Error(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "This registry is read-only: images come in by pull through cache rules.")
	default:
		p.serve(w, r, path, p.identify(r), err)
	}
	answer.End()
}

// Handler puts the proxy before next, the host's own registry: GET and HEAD of
// manifests, blobs and referrers in repositories that a rule covers are the
// proxy's, and everything else is next's, untouched: pushes, other repositories,
// tag lists, the version check at /v2/, and paths under /v2/ that are no registry paths. A
// nil next is a 404 for everything else.
func (p *Proxy) Handler(next http.Handler) http.Handler {
	if next == nil {
		next = http.NotFoundHandler()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, err := ocipath.Parse(r.URL)
		isPull := err == nil && (path.Kind == ocipath.Manifest || path.Kind == ocipath.Blob || path.Kind == ocipath.Referrers)
		if isPull && isPullMethod(r.Method) {
			if c := p.identify(r); p.covers(r, c, path.Name) {
				w, answer := p.engine().writes.Answer(w, r)
				p.serve(w, r, path, c, nil)
				answer.End()
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// IsRegistryRequest reports whether r addresses the registry API: the version
// check, manifests, blobs, uploads, tags, referrers or the catalog. It is for a
// mux on which /v2/ belongs to other services too, such as API Gateway's
// /v2/apis: it is false for those.
func IsRegistryRequest(r *http.Request) bool {
	_, err := ocipath.Parse(r.URL)
	return !errors.Is(err, ocipath.ErrNotRegistry)
}

func isPullMethod(method string) bool { return method == http.MethodGet || method == http.MethodHead }

// covers reports whether a rule covers the repository. A caller that cannot be
// identified is matched against the rules of no account, so that an open
// repository of next's stays open. When the rules cannot be read the request is
// the proxy's, which has stored content to serve and an error to tell.
func (p *Proxy) covers(r *http.Request, c caller, name string) bool {
	covered, err := p.engine().covers(r.Context(), c.Account, c.Region, name)
	if err != nil {
		return c.err == nil
	}
	return covered
}

// caller is the sender of a request, or why the sender is not known.
type caller struct {
	Identity
	err error
}

func (p *Proxy) identify(r *http.Request) (c caller) {
	if p.Identify == nil {
		return c
	}
	defer hostcall.Recover("Identify", &c.err)
	c.Identity, c.err = p.Identify(r)
	return c
}

// serve answers one GET or HEAD of a registry path; pathErr is what Parse said.
func (p *Proxy) serve(w http.ResponseWriter, r *http.Request, path ocipath.Path, c caller, pathErr error) {
	repo, err := Repo{c.Account, c.Region, path.Name}, c.err
	if err == nil && pathErr != nil {
		err = invalid(repo, path.Ref, pathErr)
	}
	if err != nil {
		refuse(w, r, outcome{}.words(r.Context(), repo, path.Ref, err))
		return
	}
	req := Request{Repo: repo, Ref: path.Ref, Head: r.Method == http.MethodHead, Caller: c.Caller}
	switch path.Kind {
	case ocipath.Base:
		serve.JSON(w, http.StatusOK, mediaTypeJSON, struct{}{})
	case ocipath.Manifest:
		m, err := p.Manifest(r.Context(), req)
		if err != nil {
			refuse(w, r, err)
			return
		}
		WriteManifest(w, r, m)
	case ocipath.Blob:
		b, err := p.Blob(r.Context(), req)
		if err != nil {
			refuse(w, r, err)
			return
		}
		WriteBlob(w, r, b)
	case ocipath.Referrers:
		p.serveReferrers(w, r, req)
	case ocipath.Tags, ocipath.Catalog:
		p.serveList(w, r, path.Kind, req)
	default:
		serve.Error(w, http.StatusNotFound, "UNSUPPORTED", "This registry has no "+path.Kind.String()+".")
	}
}

// refuse is WriteError with the host name of the request in ECR's Basic
// challenge, when err says that the client has no authorization.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, ErrUnauthorized) && !strings.ContainsAny(r.Host, "\"\\ ") {
		w.Header().Set("WWW-Authenticate", `Basic realm="https://`+r.Host+`/",service="ecr.amazonaws.com"`)
	}
	if spool.IsOutOfFiles(err) {
		w.Header().Set("Connection", "close") // and one descriptor more is free
	}
	WriteError(w, err)
}

// WriteManifest answers r, a GET or HEAD, with m: the descriptor's fields and
// the digest as headers, 304 if the client has it. A client that reads nothing
// for ten minutes is cut off: see [Proxy.MaxSilence].
func WriteManifest(w http.ResponseWriter, r *http.Request, m *Manifest) {
	w, answer := (*serve.Watch)(nil).Answer(w, r)
	serve.Manifest(w, r, m.Descriptor.Digest, m.Descriptor.MediaType, m.Content)
	answer.End()
}

// WriteBlob answers r, a GET or HEAD, with b, and closes its Body: 206 for one
// range, 304 if the client has it, always with a Content-Length. When the
// content ends early it panics with [http.ErrAbortHandler], as net/http wants
// it, so that no client takes a part for the whole. A client that reads nothing
// is cut off as [Proxy.MaxSilence] of the Proxy that returned b says, else after
// ten minutes.
func WriteBlob(w http.ResponseWriter, r *http.Request, b *Blob) {
	defer func() { _ = b.Body.Close() }()
	w, answer := b.writes.Answer(w, r)
	if h, ok := b.Body.(http.Handler); ok {
		h.ServeHTTP(w, r)
	} else if !serve.Blob(w, r, b.Descriptor.Digest, b.Descriptor.Size, b.Body) {
		panic(http.ErrAbortHandler)
	}
	answer.End()
}

// WriteError answers with what [OCI] says of err, as the OCI distribution
// specification's error JSON. 401 carries Amazon ECR's Basic challenge, unless
// a WWW-Authenticate header is set already; Retry-After is passed on.
func WriteError(w http.ResponseWriter, err error) {
	status, code, message := OCI(err)
	if status == http.StatusUnauthorized && w.Header().Get("WWW-Authenticate") == "" {
		w.Header().Set("WWW-Authenticate", `Basic realm="https://ecr.amazonaws.com/",service="ecr.amazonaws.com"`)
	}
	if e, ok := errors.AsType[*Error](err); ok && e.RetryAfter > 0 {
		seconds := (e.RetryAfter + time.Second - 1) / time.Second
		w.Header().Set("Retry-After", strconv.FormatInt(int64(seconds), 10))
	}
	serve.Error(w, status, code, message)
}

// serveList answers tags/list and the catalog with what is stored: as in Amazon
// ECR, a list never asks upstream and never creates a repository.
func (p *Proxy) serveList(w http.ResponseWriter, r *http.Request, kind ocipath.Kind, req Request) {
	page, err := serve.ParsePage(r.URL.Query())
	if err != nil {
		serve.Error(w, http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", err.Error())
		return
	}
	names, err := p.engine().names(r.Context(), kind, req)
	switch {
	case errors.Is(err, errNotListed):
		serve.Error(w, http.StatusNotFound, "UNSUPPORTED", "This registry does not list "+kind.String()+".")
		return
	case err != nil:
		refuse(w, r, outcome{}.words(r.Context(), req.Repo, "", err))
		return
	}
	names = page.Of(w, r, names)
	if kind == ocipath.Catalog {
		serve.JSON(w, http.StatusOK, mediaTypeJSON, struct {
			Repositories []string `json:"repositories"`
		}{names})
		return
	}
	serve.JSON(w, http.StatusOK, mediaTypeJSON, struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{req.Repo.Name, names})
}

// serveReferrers answers GET /v2/<name>/referrers/<digest>. Where no rule covers
// the repository nothing is known to refer to anything: an empty list.
func (p *Proxy) serveReferrers(w http.ResponseWriter, r *http.Request, req Request) {
	artifactType := r.URL.Query().Get("artifactType")
	index, err := p.Referrers(r.Context(), req, artifactType)
	if errors.Is(err, ErrNoRule) {
		index, err = upstream.EmptyIndex(), nil
	}
	if err != nil {
		refuse(w, r, err)
		return
	}
	if artifactType != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	serve.JSON(w, http.StatusOK, ocispec.MediaTypeImageIndex, index)
}
