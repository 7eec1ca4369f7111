package pullthroughtest

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// route answers as a well-behaved registry does. It is not an http.ServeMux, because a ServeMux cleans paths and the
// registry must answer and log each path as the client sent it.
func (u *Upstream) route(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/token" && (r.Method == http.MethodGet || r.Method == http.MethodPost) {
		u.serveToken(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		writeError(w, http.StatusMethodNotAllowed, "the operation is unsupported")
		return
	}
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	repo, kind, ref := splitPath(r.URL.Path)
	if kind == "" && r.URL.Path != "/v2/" && r.URL.Path != "/v2" {
		writeError(w, http.StatusNotFound, "no such route")
		return
	}
	if !u.admit(w, r, repo) {
		return
	}
	switch kind {
	case "":
		writeJSON(w, http.StatusOK, struct{}{})
	case "manifests":
		u.serveManifest(w, r, repo, ref)
	case "blobs":
		u.serveBlob(w, r, repo, ref)
	case "referrers":
		u.serveReferrers(w, r, repo, ref)
	case "tags":
		u.serveTags(w, r, repo)
	}
}

// splitPath splits /v2/<repo>/<kind>/<ref> from the right, since a component of a repository's name may be the name of a
// kind. An empty kind means that the path has another form.
func splitPath(path string) (repo, kind, ref string) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	slash := strings.LastIndexByte(rest, '/')
	if !ok || slash < 0 {
		return "", "", ""
	}
	rest, ref = rest[:slash], rest[slash+1:]
	slash = strings.LastIndexByte(rest, '/')
	if slash < 1 {
		return "", "", ""
	}
	repo, kind = rest[:slash], rest[slash+1:]
	switch kind {
	case "manifests", "blobs", "referrers":
		return repo, kind, ref
	case "tags":
		if ref == "list" {
			return repo, kind, ref
		}
	}
	return "", "", ""
}

func (u *Upstream) serveManifest(w http.ResponseWriter, r *http.Request, repo, ref string) {
	img := u.content.manifest(repo, ref)
	if img == nil {
		u.writeMissing(w, repo, "MANIFEST_UNKNOWN")
		return
	}
	w.Header().Set("Content-Type", img.MediaType)
	w.Header().Set("Docker-Content-Digest", img.Digest.String())
	serve(w, r, img.Digest, bytes.NewReader(img.Content))
}

func (u *Upstream) serveBlob(w http.ResponseWriter, r *http.Request, repo, ref string) {
	blob := u.content.blob(repo, ref)
	if blob == nil {
		u.writeMissing(w, repo, "BLOB_UNKNOWN")
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", ref)
	serve(w, r, blob.Digest, blob.Open())
}

// serve answers with content. The standard library handles ranges and conditional requests. There is no modification
// time, since content with a digest never changes.
func serve(w http.ResponseWriter, r *http.Request, d digest.Digest, content io.ReadSeeker) {
	w.Header().Set("Etag", `"`+d.String()+`"`)
	http.ServeContent(w, r, "", time.Time{}, content)
}

func (u *Upstream) writeMissing(w http.ResponseWriter, repo, code string) {
	if !u.content.has(repo) {
		writeError(w, http.StatusNotFound, "repository name not known to registry")
		return
	}
	writeCode(w, http.StatusNotFound, code, strings.ToLower(strings.ReplaceAll(code, "_", " ")))
}

// serveTags lists tags in order, a page of n after last where the client asks for one.
func (u *Upstream) serveTags(w http.ResponseWriter, r *http.Request, repo string) {
	if !u.content.has(repo) {
		writeError(w, http.StatusNotFound, "repository name not known to registry")
		return
	}
	tags, query := u.content.tags(repo), r.URL.Query()
	if last := query.Get("last"); last != "" {
		tags = slices.DeleteFunc(tags, func(tag string) bool { return tag <= last })
	}
	if n, err := strconv.Atoi(query.Get("n")); err == nil && n > 0 && n < len(tags) {
		tags = tags[:n]
		w.Header().Set("Link", fmt.Sprintf(`<%s?n=%d&last=%s>; rel="next"`, r.URL.Path, n, tags[n-1]))
	}
	writeJSON(w, http.StatusOK, map[string]any{"name": repo, "tags": tags})
}

// serveReferrers lists the referrers of a subject, optionally filtered by artifact type. An unknown subject has an empty
// list: the OCI distribution specification has no 404 here.
func (u *Upstream) serveReferrers(w http.ResponseWriter, r *http.Request, repo, ref string) {
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	index.SchemaVersion = 2
	filter := r.URL.Query().Get("artifactType")
	for _, img := range u.content.referrers(repo, digest.Digest(ref)) {
		if d := img.referrer(); filter == "" || filter == d.ArtifactType {
			index.Manifests = append(index.Manifests, d)
		}
	}
	if filter != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(marshal(index)))
}
