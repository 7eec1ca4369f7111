// Package ownhandlers is a fake AWS that has its own registry: maps behind a mutex, and
// its own /v2/ handlers. emulator.go is the emulator without a pull through cache, except
// for the lines marked "new". pullthrough.go is the rest of the pull through cache.
package ownhandlers

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
)

// Emulator is the fake AWS. Make one with New. It is safe for concurrent use.
type Emulator struct {
	accountID, region string

	mu           sync.RWMutex
	Repositories map[string]*repositoryData // by name

	proxy *pullthrough.Proxy // new
}

type repositoryData struct {
	Images map[string]*Image   // by digest
	Tags   map[string]imageTag // by tag
	Layers map[string][]byte   // by digest
}

// Image is an image as the JSON API describes it.
type Image struct {
	RegistryID, RepositoryName string
	ImageDigest, ImageManifest string
	ImageManifestMediaType     string
	ImagePushedAt              time.Time
	Origin                     string // new: the upstream registry that it came from
}

type imageTag struct {
	ImageDigest string
	CheckedAt   time.Time // new: when upstream confirmed the tag
	Origin      string    // new: the upstream registry that it came from
}

// ServeHTTP serves the registry at /v2/ and one operation of ECR's JSON API.
func (e *Emulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, isV2 := strings.CutPrefix(r.URL.Path, "/v2/")
	name, kind, ref := cut(path)
	isPull := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case r.Header.Get("X-Amz-Target") == "AmazonEC2ContainerRegistry_V20150921.ListImages":
		e.listImages(w, r)
	case isV2 && path == "":
		_, _ = io.WriteString(w, "{}")
	case isV2 && kind == "manifests" && isPull:
		e.getManifest(w, r, name, ref)
	case isV2 && kind == "manifests" && r.Method == http.MethodPut:
		e.putManifest(w, r, name, ref)
	case isV2 && kind == "blobs" && isPull:
		e.getBlob(w, r, name, ref)
	case isV2 && kind == "blobs" && r.Method == http.MethodPost: // an upload in one request
		e.putBlob(w, r, name, r.URL.Query().Get("digest"))
	default:
		fail(w, http.StatusNotFound, "UNSUPPORTED")
	}
}

// cut splits a path from the right, since a name may have a component "blobs" too.
func cut(path string) (name, kind, ref string) {
	parts := strings.Split(strings.TrimSuffix(path, "/"), "/")
	n := len(parts)
	if n < 3 {
		return path, "", ""
	}
	return strings.Join(parts[:n-2], "/"), parts[n-2], parts[n-1]
}

func (e *Emulator) getManifest(w http.ResponseWriter, r *http.Request, name, ref string) {
	if e.pullManifest(w, r, name, ref) { // new, and before the look-up: tags are checked again
		return // new
	} // new
	img, _ := e.image(name, ref)
	if img == nil {
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN")
		return
	}
	send(w, img.ImageManifestMediaType, img.ImageDigest, []byte(img.ImageManifest))
}

func (e *Emulator) getBlob(w http.ResponseWriter, r *http.Request, name, d string) {
	if layer, ok := e.layer(name, d); ok {
		send(w, "application/octet-stream", d, layer)
		return
	}
	if e.pullBlob(w, r, name, d) { // new, where there was only the 404
		return // new
	} // new
	fail(w, http.StatusNotFound, "BLOB_UNKNOWN")
}

func (e *Emulator) putManifest(w http.ResponseWriter, r *http.Request, name, tag string) {
	manifest, err := io.ReadAll(io.LimitReader(r.Body, 4<<20))
	if err != nil {
		fail(w, http.StatusBadRequest, "MANIFEST_INVALID")
		return
	}
	d := digest.FromBytes(manifest).String()
	e.mu.Lock()
	defer e.mu.Unlock()
	repo := e.repository(name)
	repo.Images[d] = &Image{
		RegistryID: e.accountID, RepositoryName: name, ImageDigest: d, ImageManifest: string(manifest),
		ImageManifestMediaType: r.Header.Get("Content-Type"), ImagePushedAt: time.Now(),
	}
	repo.Tags[tag] = imageTag{ImageDigest: d}
	w.WriteHeader(http.StatusCreated)
}

func (e *Emulator) putBlob(w http.ResponseWriter, r *http.Request, name, d string) {
	layer, err := io.ReadAll(r.Body)
	if err != nil || digest.FromBytes(layer).String() != d {
		fail(w, http.StatusBadRequest, "DIGEST_INVALID")
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.repository(name).Layers[d] = layer
	w.WriteHeader(http.StatusCreated)
}

// listImages is the JSON API's ListImages, for one repository.
func (e *Emulator) listImages(w http.ResponseWriter, r *http.Request) {
	var in struct {
		RepositoryName string `json:"repositoryName"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		fail(w, http.StatusBadRequest, "SerializationException")
		return
	}
	type imageID struct {
		ImageDigest string `json:"imageDigest"`
		ImageTag    string `json:"imageTag,omitempty"`
	}
	out := struct {
		ImageIDs []imageID `json:"imageIds"`
	}{[]imageID{}}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if repo := e.Repositories[in.RepositoryName]; repo != nil {
		for tag, t := range repo.Tags {
			out.ImageIDs = append(out.ImageIDs, imageID{t.ImageDigest, tag})
		}
	}
	_ = json.NewEncoder(w).Encode(out)
}

// image returns the image that a tag or a digest names, and the tag; nil if there is none.
func (e *Emulator) image(name, ref string) (*Image, imageTag) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	repo := e.Repositories[name]
	if repo == nil {
		return nil, imageTag{}
	}
	if t, ok := repo.Tags[ref]; ok {
		return repo.Images[t.ImageDigest], t
	}
	return repo.Images[ref], imageTag{}
}

func (e *Emulator) layer(name, d string) (layer []byte, ok bool) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if repo := e.Repositories[name]; repo != nil {
		layer, ok = repo.Layers[d]
	}
	return layer, ok
}

// repository returns the repository and makes it if need be. The caller holds e.mu.
func (e *Emulator) repository(name string) *repositoryData {
	if e.Repositories[name] == nil {
		e.Repositories[name] = &repositoryData{Images: map[string]*Image{}, Tags: map[string]imageTag{}, Layers: map[string][]byte{}}
	}
	return e.Repositories[name]
}

func send(w http.ResponseWriter, mediaType, d string, content []byte) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", d)
	_, _ = w.Write(content)
}

// fail writes an error of the emulator's own.
func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("X-Emulator", "own")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, `{"errors":[{"code":"`+code+`"}]}`)
}
