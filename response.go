package pullthrough

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/contentrange"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/spool"
)

// ServeHTTP is a read-only registry: the Store first, then the rules. Mount it
// at "/v2" and at "/v2/", which are alike. A miss that no rule covers is
// answered as Amazon ECR does, and every push 405 UNSUPPORTED.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, err := ocipath.Parse(r.URL)
	switch {
	case errors.Is(err, ocipath.ErrNotRegistry):
		writeErrorCode(w, http.StatusNotFound, "UNSUPPORTED", "This is not a path of the registry API.")
	case !isPullMethod(r.Method):
		w.Header().Set("Allow", "GET, HEAD")
		writeErrorCode(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "This registry is read-only: images come in by pull through cache rules.")
	default:
		p.serve(w, r, path, p.identify(r), err)
	}
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
				p.serve(w, r, path, c, nil)
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
	rules, err := p.rules(r.Context(), c.Account, c.Region)
	if err != nil {
		return c.err == nil
	}
	_, _, ok := Match(rules, name)
	return ok
}

// caller is who sends a request, or why that is not known.
type caller struct {
	Identity
	err error
}

func (p *Proxy) identify(r *http.Request) (c caller) {
	if p.Identify == nil {
		return c
	}
	defer recovered("Identify", &c.err)
	c.Identity, c.err = p.Identify(r)
	return c
}

// HostIdentity reads account and Region from the host name that the request was
// sent to, <account>.dkr.ecr.<region>.<any domain>, as Amazon ECR's registries
// are named. For other host names it returns the zero Identity. It never fails
// and knows no caller; it fits [Proxy.Identify].
func HostIdentity(r *http.Request) (Identity, error) {
	account, rest, _ := strings.Cut(r.Host, ".")
	rest, isRegistry := strings.CutPrefix(rest, "dkr.ecr.")
	region, domain, _ := strings.Cut(rest, ".")
	if !isRegistry || domain == "" || len(account) != 12 || strings.Trim(account, "0123456789") != "" {
		return Identity{}, nil
	}
	return Identity{Account: account, Region: region}, nil
}

// serve answers one GET or HEAD of a registry path; pathErr is what Parse said.
func (p *Proxy) serve(w http.ResponseWriter, r *http.Request, path ocipath.Path, c caller, pathErr error) {
	repo, err := Repo{c.Account, c.Region, path.Name}, c.err
	if err == nil && pathErr != nil {
		err = invalid(repo, path.Ref, pathErr)
	}
	if err != nil {
		refuse(w, r, at(r.Context(), err, repo, path.Ref))
		return
	}
	req := Request{Repo: repo, Ref: path.Ref, Head: r.Method == http.MethodHead, Caller: c.Caller}
	switch path.Kind {
	case ocipath.Base:
		writeJSON(w, http.StatusOK, struct{}{})
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
		writeErrorCode(w, http.StatusNotFound, "UNSUPPORTED", "This registry has no "+path.Kind.String()+".")
	}
}

// refuse is WriteError with the host name of the request in ECR's Basic
// challenge, when err says that the client has no authorization.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, ErrUnauthorized) && !strings.ContainsAny(r.Host, "\"\\ ") {
		w.Header().Set("WWW-Authenticate", `Basic realm="https://`+r.Host+`/",service="ecr.amazonaws.com"`)
	}
	WriteError(w, err)
}

// WriteManifest answers r, a GET or HEAD, with m: the descriptor's fields and
// the digest as headers, 304 if the client has it.
func WriteManifest(w http.ResponseWriter, r *http.Request, m *Manifest) {
	h := w.Header()
	length := setContentHeaders(h, m.Descriptor.Digest, m.Descriptor.MediaType, len(m.Content))
	if matchesETag(r.Header.Values("If-None-Match"), m.Descriptor.Digest) {
		h.Del("Content-Type")
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h["Content-Length"] = length
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(m.Content) // a client that is gone is nobody's error
	}
}

// setContentHeaders sets what every answer with content has, and returns the
// value of its Content-Length. It is on the way of every hit: the keys are as
// net/http spells them, one array has all values and one string those that have
// to be made.
func setContentHeaders(h http.Header, d digest.Digest, mediaType string, size int) (length []string) {
	var buf [160]byte
	made := append(append(append(buf[:0], '"'), d...), '"')
	etag := len(made)
	text := string(strconv.AppendInt(made, int64(size), 10))
	v := []string{mediaType, string(d), "registry/2.0", text[:etag], "nosniff", text[etag:]}
	h["Content-Type"] = v[0:1:1]
	h["Docker-Content-Digest"] = v[1:2:2]
	h["Docker-Distribution-Api-Version"] = v[2:3:3]
	h["Etag"] = v[3:4:4]
	h["X-Content-Type-Options"] = v[4:5:5]
	return v[5:6:6]
}

// matchesETag reports whether one of the entity tags of If-None-Match is d's
// (RFC 9110, section 13.1.2: weak comparison).
func matchesETag(values []string, d digest.Digest) bool {
	for _, value := range values {
		for tag := range strings.SplitSeq(value, ",") {
			tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
			if tag == "*" || tag == `"`+d.String()+`"` {
				return true
			}
		}
	}
	return false
}

// WriteBlob answers r, a GET or HEAD, with b, and closes its Body: 206 for one
// range, 304 if the client has it, always with a Content-Length. When the
// content ends early it panics with [http.ErrAbortHandler], as net/http wants
// it, so that no client takes a part for the whole.
func WriteBlob(w http.ResponseWriter, r *http.Request, b *Blob) {
	defer func() { _ = b.Body.Close() }()
	if h, ok := b.Body.(http.Handler); ok {
		h.ServeHTTP(w, r)
		return
	}
	setContentHeaders(w.Header(), b.Descriptor.Digest, mediaTypeBlob, 0)
	r = oneRange(r)
	cw := &contentWriter{ResponseWriter: w, size: b.Descriptor.Size}
	body, seekable := b.Body.(io.ReadSeeker)
	switch {
	case r.Method == http.MethodHead:
		http.ServeContent(cw, r, "", time.Time{}, &hollow{size: b.Descriptor.Size})
	case seekable:
		http.ServeContent(cw, r, "", time.Time{}, body)
	default:
		w.Header().Set("Content-Length", strconv.FormatInt(b.Descriptor.Size, 10))
		cw.WriteHeader(http.StatusOK)
		_, _ = io.Copy(cw, b.Body) // cw knows how much arrived
	}
	if r.Method != http.MethodHead && cw.missing() {
		panic(http.ErrAbortHandler)
	}
}

// oneRange drops the Range headers that are not answered with a part: several
// ranges, units other than bytes, what is no range, and all of them on HEAD
// (RFC 9110, section 14.2, lets a server ignore any).
func oneRange(r *http.Request) *http.Request {
	v := r.Header.Values("Range")
	if len(v) == 0 || r.Method == http.MethodGet && len(v) == 1 && isOneRange(v[0]) {
		return r
	}
	whole := *r
	whole.Header = r.Header.Clone()
	whole.Header.Del("Range")
	return &whole
}

// isOneRange reports whether v is bytes=N-, bytes=N-M or bytes=-N with numbers
// that http.ServeContent gets right.
func isOneRange(v string) bool {
	spec, bytes := strings.CutPrefix(v, "bytes=")
	first, last, dash := strings.Cut(strings.TrimSpace(spec), "-")
	_, okFirst := contentrange.Digits(first)
	n, okLast := contentrange.Digits(last)
	switch {
	case !bytes || !dash:
		return false
	case first == "":
		return okLast && n > 0
	}
	return okFirst && (okLast || last == "")
}

// contentWriter watches http.ServeContent: it turns its plain text 416 into
// OCI JSON, and counts what goes out, since ServeContent hides errors.
type contentWriter struct {
	http.ResponseWriter
	size     int64 // of the whole content
	expected int64 // of the part that is sent
	sent     int64
	refused  bool // 416: its body was written already
}

func (w *contentWriter) WriteHeader(status int) {
	switch status {
	case http.StatusRequestedRangeNotSatisfiable:
		w.refused = true
		w.Header().Del("Etag")
		writeErrorCode(w.ResponseWriter, status, "RANGE_INVALID", "The range cannot be satisfied.")
		return
	case http.StatusOK:
		// Not the Content-Length: there is none where a Content-Encoding is set.
		w.expected = w.size
	case http.StatusPartialContent:
		first, last, _, _ := contentrange.Parse(w.Header().Get("Content-Range"))
		w.expected = last - first + 1
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *contentWriter) Write(p []byte) (int, error) {
	if w.refused {
		return len(p), nil
	}
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	return n, err
}

// ReadFrom keeps the kernel's way from a file to the connection open.
func (w *contentWriter) ReadFrom(src io.Reader) (int64, error) {
	if w.refused {
		return io.Copy(io.Discard, src)
	}
	var n int64
	var err error
	if part, ok := src.(*io.LimitedReader); ok {
		if body, ok := part.R.(*spool.Reader); ok {
			n, err = body.SendTo(w.ResponseWriter, part.N, w.conn())
			w.sent += n
			return n, err
		}
	}
	n, err = io.Copy(w.ResponseWriter, src)
	w.sent += n
	return n, err
}

// conn is what the connection can do. A client that waits for the first byte
// sees the header, one that never reads can be cut off.
func (w *contentWriter) conn() spool.Conn {
	c := http.NewResponseController(w.ResponseWriter)
	return spool.Conn{
		Flush:     func() { _ = c.Flush() },
		Interrupt: func() { _ = c.SetWriteDeadline(time.Unix(1, 0)) },
	}
}

func (w *contentWriter) missing() bool { return w.sent < w.expected }

// hollow has a size and nothing in it, for answers without a body.
type hollow struct{ size, off int64 }

func (h *hollow) Read([]byte) (int, error) { return 0, io.EOF }

func (h *hollow) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += h.off
	case io.SeekEnd:
		offset += h.size
	}
	h.off = offset
	return offset, nil
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
	writeErrorCode(w, status, code, message)
}

func writeErrorCode(w http.ResponseWriter, status int, code, message string) {
	type entry struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	writeJSON(w, status, struct {
		Errors []entry `json:"errors"`
	}{[]entry{{code, message}}})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	writeJSONAs(w, status, "application/json", v)
}

func writeJSONAs(w http.ResponseWriter, status int, mediaType string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and structs of strings can always be encoded
	}
	h := w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Docker-Distribution-Api-Version", "registry/2.0")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
