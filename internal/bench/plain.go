package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The plain server's paths.
const (
	plainMap  = "/map/"  // files of its directory, from memory
	plainFile = "/file/" // files of its directory, with http.ServeContent
	plainCopy = "/copy"  // ?from=URL; copies the URL to a file, a sha256 and the client
)

// servePlain runs the plain server until ctx ends.
func servePlain(ctx context.Context, dir string, stdout io.Writer) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+plainMap, &mapHandler{dir: dir, have: map[string]plainContent{}})
	mux.HandleFunc("GET "+plainFile, func(w http.ResponseWriter, r *http.Request) { sendFile(w, r, dir) })
	mux.HandleFunc("GET "+plainCopy, func(w http.ResponseWriter, r *http.Request) { sendCopy(w, r, dir) })
	server := &http.Server{Handler: mux}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	fmt.Fprintf(stdout, "listening on http://%s\n", listener.Addr())
	_ = server.Serve(listener) // it returns an error when it is closed
	return nil
}

// plainContent is a file in memory.
type plainContent struct {
	content []byte
	digest  string
}

type mapHandler struct {
	dir string

	mu   sync.RWMutex
	have map[string]plainContent
}

// ServeHTTP sends the headers of a registry and a file, which it reads from disk only once.
func (h *mapHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, plainMap)
	h.mu.RLock()
	k, ok := h.have[name]
	h.mu.RUnlock()
	if !ok {
		content, err := os.ReadFile(filepath.Join(h.dir, filepath.Base(name)))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		k = plainContent{content, fmt.Sprintf("sha256:%x", sha256.Sum256(content))}
		h.mu.Lock()
		h.have[name] = k
		h.mu.Unlock()
	}
	header := w.Header()
	header["Content-Type"] = []string{"application/vnd.oci.image.manifest.v1+json"}
	header["Content-Length"] = []string{strconv.Itoa(len(k.content))}
	header["Docker-Content-Digest"] = []string{k.digest}
	header["Docker-Distribution-Api-Version"] = []string{"registry/2.0"}
	header["Etag"] = []string{`"` + k.digest + `"`}
	header["X-Content-Type-Options"] = []string{"nosniff"}
	_, _ = w.Write(k.content)
}

func sendFile(w http.ResponseWriter, r *http.Request, dir string) {
	f, err := os.Open(filepath.Join(dir, filepath.Base(r.URL.Path)))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, f)
}

// sendCopy does the least that a cache must do on a miss: read, hash, write and send.
func sendCopy(w http.ResponseWriter, r *http.Request, dir string) {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, r.URL.Query().Get("from"), nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	req.Header.Set("Authorization", r.Header.Get("Authorization"))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	f, err := os.CreateTemp(dir, "copy-")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer func() { _, _ = f.Close(), os.Remove(f.Name()) }() // no longer needed
	w.Header().Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	w.WriteHeader(resp.StatusCode)
	h := sha256.New()
	if _, err := io.CopyBuffer(io.MultiWriter(h, f, w), resp.Body, make([]byte, 256<<10)); err != nil {
		panic(http.ErrAbortHandler) // the client must see that the answer is incomplete
	}
}
