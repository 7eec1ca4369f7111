package history_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// registry is somebody else's registry: it takes pushes, and checks what a manifest
// refers to.
type registry struct {
	mu      sync.Mutex
	repos   map[string]*innerRepo
	uploads map[string][]byte
	count   int
}

type innerRepo struct {
	tags      map[string]digest.Digest
	manifests map[digest.Digest]innerManifest
	blobs     map[digest.Digest][]byte
}

type innerManifest struct {
	content   []byte
	mediaType string
}

func newRegistry() *registry {
	return &registry{repos: map[string]*innerRepo{}, uploads: map[string][]byte{}}
}

var registryPath = regexp.MustCompile(`^/v2/(.+)/(manifests|blobs|tags|referrers)/(.*)$`)

// ServeHTTP implements http.Handler.
func (g *registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m := registryPath.FindStringSubmatch(r.URL.Path)
	switch {
	case r.URL.Path == "/v2/_catalog":
		g.list(w, "")
	case m == nil:
		w.WriteHeader(http.StatusOK)
	case m[2] == "tags":
		g.list(w, m[1])
	case m[2] == "blobs" && strings.HasPrefix(m[3], "uploads/"):
		g.upload(w, r, m[1], strings.TrimPrefix(m[3], "uploads/"))
	case m[2] == "blobs":
		g.blob(w, r, m[1], digest.Digest(m[3]))
	case m[2] == "manifests" && r.Method == http.MethodPut:
		g.putManifest(w, r, m[1], m[3])
	case m[2] == "manifests":
		g.manifest(w, r, m[1], m[3])
	default:
		refuse(w, http.StatusNotFound, "UNSUPPORTED")
	}
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `{"errors":[{"code":%q}]}`, code)
}

// repo is the repository, which is made if need be. The lock is held.
func (g *registry) repoLocked(name string) *innerRepo {
	r := g.repos[name]
	if r == nil {
		r = &innerRepo{map[string]digest.Digest{}, map[digest.Digest]innerManifest{}, map[digest.Digest][]byte{}}
		g.repos[name] = r
	}
	return r
}

func (g *registry) list(w http.ResponseWriter, name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	names := []string{}
	field := "repositories"
	if name != "" {
		field = "tags"
		for tag := range g.repoLocked(name).tags {
			names = append(names, tag)
		}
	} else {
		for repo := range g.repos {
			names = append(names, repo)
		}
	}
	slices.Sort(names)
	_ = json.NewEncoder(w).Encode(map[string]any{"name": name, field: names}) // the client may have left
}

func (g *registry) blob(w http.ResponseWriter, r *http.Request, name string, d digest.Digest) {
	g.mu.Lock()
	content, ok := g.repoLocked(name).blobs[d]
	g.mu.Unlock()
	if !ok {
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN")
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Etag", `"`+d.String()+`"`)
	if strings.Contains(r.Header.Get("Range"), ",") {
		r.Header.Del("Range")
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

func (g *registry) upload(w http.ResponseWriter, r *http.Request, name, id string) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		refuse(w, http.StatusBadRequest, "BLOB_UPLOAD_INVALID")
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.Method == http.MethodPost {
		g.count++
		id = strconv.Itoa(g.count)
	}
	if r.Method == http.MethodDelete {
		delete(g.uploads, id)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	content := append(g.uploads[id], body...)
	g.uploads[id] = content
	w.Header().Set("Location", "/v2/"+name+"/blobs/uploads/"+id)
	d := digest.Digest(r.URL.Query().Get("digest"))
	if d == "" || r.Method != http.MethodPut {
		w.Header().Set("Range", fmt.Sprintf("0-%d", max(0, len(content)-1)))
		w.WriteHeader(http.StatusAccepted)
		return
	}
	delete(g.uploads, id)
	if digest.FromBytes(content) != d {
		refuse(w, http.StatusBadRequest, "DIGEST_INVALID")
		return
	}
	g.repoLocked(name).blobs[d] = content
	w.WriteHeader(http.StatusCreated)
}

func (g *registry) manifest(w http.ResponseWriter, r *http.Request, name, ref string) {
	g.mu.Lock()
	repo := g.repoLocked(name)
	d := digest.Digest(ref)
	if at, ok := repo.tags[ref]; ok {
		d = at
	}
	m, ok := repo.manifests[d]
	g.mu.Unlock()
	if !ok {
		refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN")
		return
	}
	w.Header().Set("Content-Type", m.mediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Etag", `"`+d.String()+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(m.content))
}

func (g *registry) putManifest(w http.ResponseWriter, r *http.Request, name, ref string) {
	content, err := io.ReadAll(r.Body)
	var doc struct {
		Config            *struct{ Digest digest.Digest }
		Layers, Manifests []struct{ Digest digest.Digest }
	}
	if err != nil || json.Unmarshal(content, &doc) != nil {
		refuse(w, http.StatusBadRequest, "MANIFEST_INVALID")
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	repo := g.repoLocked(name)
	blobs := doc.Layers
	if doc.Config != nil {
		blobs = append(blobs, *doc.Config)
	}
	whole := true
	for _, b := range blobs {
		_, ok := repo.blobs[b.Digest]
		whole = whole && ok
	}
	for _, m := range doc.Manifests {
		_, ok := repo.manifests[m.Digest]
		whole = whole && ok
	}
	if !whole {
		refuse(w, http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN")
		return
	}
	d := digest.FromBytes(content)
	repo.manifests[d] = innerManifest{content, r.Header.Get("Content-Type")}
	if ref != d.String() {
		repo.tags[ref] = d
	}
	w.Header().Set("Docker-Content-Digest", d.String())
	w.WriteHeader(http.StatusCreated)
}

// drop loses a manifest, with its tags, or a blob.
func (g *registry) drop(name string, d digest.Digest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	repo := g.repoLocked(name)
	delete(repo.manifests, d)
	delete(repo.blobs, d)
	for tag, at := range repo.tags {
		if at == d {
			delete(repo.tags, tag)
		}
	}
}
