package pullthrough

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/fill"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/referrerlist"
	"github.com/ecr-pullthrough/pullthrough/internal/serve"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
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

// IsRegistryRequest reports whether r addresses the registry API: the version
// check, manifests, blobs, uploads, tags, referrers or the catalog. It is for a
// mux on which /v2/ belongs to other services too, such as API Gateway's
// /v2/apis: it is false for those.
func IsRegistryRequest(r *http.Request) bool {
	_, err := ocipath.Parse(r.URL)
	return !errors.Is(err, ocipath.ErrNotRegistry)
}

func isPullMethod(method string) bool { return method == http.MethodGet || method == http.MethodHead }

// serve answers one GET or HEAD of a registry path; pathErr is what Parse said.
func (p *Proxy) serve(w http.ResponseWriter, r *http.Request, path ocipath.Path, c caller, pathErr error) {
	repo, err := Repo{c.Account, c.Region, path.Name}, c.err
	if err == nil && pathErr != nil {
		err = invalid(repo, path.Ref, pathErr)
	}
	if err != nil {
		refuse(w, r, p.engine().explain(r.Context(), Request{Repo: repo, Ref: path.Ref}, outcome{}, err))
		return
	}
	if r, path, err = p.meant(r, path, c); err != nil {
		refuse(w, r, err)
		return
	}
	repo.Name = path.Name
	req := Request{Repo: repo, Ref: path.Ref, Head: r.Method == http.MethodHead, Caller: c.Caller}
	switch path.Kind {
	case ocipath.Base:
		serve.JSON(w, http.StatusOK, mediaTypeJSON, struct{}{})
	case ocipath.Manifest, ocipath.Blob, ocipath.Referrers:
		if _, err := p.pull(w, r, path.Kind, req); err != nil {
			refusePull(w, r, path.Kind, err)
		}
	case ocipath.Tags, ocipath.Catalog:
		p.serveList(w, r, path.Kind, req)
	default:
		serve.Error(w, http.StatusNotFound, "UNSUPPORTED", "This registry has no "+path.Kind.String()+".")
	}
}

// pull answers a GET or HEAD of a manifest, a blob or a list of referrers. With an error
// nothing has been written.
func (p *Proxy) pull(w http.ResponseWriter, r *http.Request, kind ocipath.Kind, req Request) (out outcome, err error) {
	w, answer := p.engine().writes.Answer(w, r)
	switch kind {
	case ocipath.Manifest:
		var m *Manifest
		if m, out, err = p.engine().manifest(r.Context(), req); err == nil {
			WriteManifest(w, r, m)
		}
	case ocipath.Blob:
		var b *Blob
		if b, out, err = p.engine().blob(r.Context(), req, wanted(r)); err == nil {
			WriteBlob(w, r, b)
		}
	default:
		var index *ocispec.Index
		if index, out, err = p.engine().listReferrers(r.Context(), req, r.URL.Query().Get("artifactType")); err == nil {
			writeReferrers(w, r, index)
		}
	}
	if err == nil {
		answer.End()
	}
	return out, err
}

// wanted is the part of a blob that r asks for.
func wanted(r *http.Request) (want fill.Want) {
	want.From, want.To, want.Suffix = serve.Wanted(r)
	return want
}

// refusePull answers a pull that has failed with err.
func refusePull(w http.ResponseWriter, r *http.Request, kind ocipath.Kind, err error) {
	if kind == ocipath.Referrers && isNoList(err) {
		writeReferrers(w, r, referrerlist.Empty())
		return
	}
	refuse(w, r, err)
}

// isNoList reports whether nothing is known to refer to the subject, or the caller may not
// know.
func isNoList(err error) bool { return errors.Is(err, ErrNoRule) || errors.Is(err, ErrNotFound) }

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

// WriteBlob answers r, a GET or HEAD, with b, and closes its Body: 206 for
// ranges, 304 if the client has it, always with a Content-Length. When the
// content ends early it panics with [http.ErrAbortHandler], as net/http wants
// it, so that no client takes a part for the whole. Where what a Proxy
// returned cannot be read at all, the answer is that error. A client that reads nothing
// is cut off as [Proxy.MaxSilence] of the Proxy that returned b says, else after
// ten minutes.
func WriteBlob(w http.ResponseWriter, r *http.Request, b *Blob) {
	defer func() { _ = b.Body.Close() }()
	w, answer := b.writes.Answer(w, r)
	if h, ok := b.Body.(http.Handler); ok {
		h.ServeHTTP(w, r)
	} else if complete, err := serve.Blob(w, r, b.Descriptor.Digest, b.Descriptor.Size, b.Body); err != nil {
		WriteError(w, err) // nothing was written yet
	} else if !complete {
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
// ECR, a list never creates a repository, and asks upstream only where
// [Policy.UpstreamTags] says so.
func (p *Proxy) serveList(w http.ResponseWriter, r *http.Request, kind ocipath.Kind, req Request) {
	p.engine().writeList(w, r, kind, req, func(page serve.Page) ([]string, error) { return p.list(w, r, kind, req, page) })
}

// writeList answers with the part of a list that read returns for the page of the request.
func (e *engine) writeList(w http.ResponseWriter, r *http.Request, kind ocipath.Kind, req Request, read func(serve.Page) ([]string, error)) {
	page, ok := serve.ParsePage(w, r)
	if !ok {
		return
	}
	names, err := read(page)
	switch {
	case errors.Is(err, errNotListed):
		serve.Error(w, http.StatusNotFound, "UNSUPPORTED", "This registry does not list "+kind.String()+".")
	case err != nil:
		refuse(w, r, e.explain(r.Context(), Request{Repo: req.Repo}, outcome{}, err))
	case kind == ocipath.Tags:
		serve.JSON(w, http.StatusOK, mediaTypeJSON, struct {
			Name string   `json:"name"`
			Tags []string `json:"tags"`
		}{req.Repo.Name, names})
	default:
		serve.JSON(w, http.StatusOK, mediaTypeJSON, struct {
			Repositories []string `json:"repositories"`
		}{names})
	}
}

// list returns the page's part of a list, and sets the Link header.
func (p *Proxy) list(w http.ResponseWriter, r *http.Request, kind ocipath.Kind, req Request, page serve.Page) ([]string, error) {
	if kind == ocipath.Tags {
		tags, err := p.engine().allTags(r.Context(), req)
		if err != nil {
			return nil, err
		}
		return page.Of(w, r, tags, nil)
	}
	repos, err := p.engine().repos(r.Context(), req)
	if err != nil {
		return nil, err
	}
	return page.Of(w, r, repos, func(name string) (bool, error) { return p.engine().mayPull(r.Context(), req, name) })
}

// writeReferrers answers GET /v2/<name>/referrers/<digest>.
func writeReferrers(w http.ResponseWriter, r *http.Request, index *ocispec.Index) {
	if r.URL.Query().Get("artifactType") != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	serve.JSON(w, http.StatusOK, ocispec.MediaTypeImageIndex, index)
}
