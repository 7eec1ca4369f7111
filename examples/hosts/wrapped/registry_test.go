package wrapped_test

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// registry is somebody else's, and a strict one: it refuses a manifest before what
// it refers to.
type registry struct {
	mu        sync.Mutex
	objects   map[string]object // by "REPO manifests REF" and "REPO blobs DIGEST"
	uploading []byte
}

type object struct {
	mediaType string
	content   []byte
}

func (s *registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
	if err != nil || !strings.HasPrefix(r.URL.Path, "/v2/") || len(parts) < 3 {
		http.Error(w, "not a registry path", http.StatusTeapot)
		return
	}
	n := len(parts)
	repo, kind, ref := strings.Join(parts[:n-2], "/"), parts[n-2], parts[n-1]
	switch {
	case r.Method == http.MethodPost:
		s.uploading = nil
		w.Header().Set("Location", r.URL.Path+"1")
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodPatch:
		s.uploading = append(s.uploading, body...)
		w.Header().Set("Location", r.URL.Path)
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodPut && kind == "uploads":
		s.putBlob(w, strings.TrimSuffix(repo, "/blobs"), r.URL.Query().Get("digest"), append(s.uploading, body...))
	case r.Method == http.MethodPut && kind == "manifests":
		s.putManifest(w, repo, ref, object{r.Header.Get("Content-Type"), body})
	default:
		s.get(w, repo+" "+kind+" "+ref)
	}
}

func (s *registry) get(w http.ResponseWriter, key string) {
	o, ok := s.objects[key]
	if !ok {
		http.Error(w, `{"errors":[{"code":"NAME_UNKNOWN"}]}`, http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", o.mediaType)
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(o.content).String())
	_, _ = w.Write(o.content)
}

func (s *registry) putBlob(w http.ResponseWriter, repo, d string, content []byte) {
	if digest.FromBytes(content).String() != d {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.objects[repo+" blobs "+d] = object{"application/octet-stream", content}
	w.Header().Set("Location", "/v2/"+repo+"/blobs/"+d)
	w.WriteHeader(http.StatusCreated)
}

func (s *registry) putManifest(w http.ResponseWriter, repo, ref string, o object) {
	var refers struct {
		Config            *ocispec.Descriptor
		Layers, Manifests []ocispec.Descriptor
	}
	if err := json.Unmarshal(o.content, &refers); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	keys := map[string]bool{}
	for _, d := range refers.Layers {
		keys[repo+" blobs "+d.Digest.String()] = true
	}
	for _, d := range refers.Manifests {
		keys[repo+" manifests "+d.Digest.String()] = true
	}
	if refers.Config != nil {
		keys[repo+" blobs "+refers.Config.Digest.String()] = true
	}
	for key := range keys {
		if _, ok := s.objects[key]; !ok {
			http.Error(w, `{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN"}]}`, http.StatusNotFound)
			return
		}
	}
	s.objects[repo+" manifests "+ref] = o
	s.objects[repo+" manifests "+digest.FromBytes(o.content).String()] = o
	w.WriteHeader(http.StatusCreated)
}

// keys are what it has.
func (s *registry) keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.objects))
}
