package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

// plainArg is the first argument of this program when it is a plain server. The others
// are the server's name, the upstream's URL and a directory for files.
const plainArg = "plain"

// plains are the plain servers. They get requests like the upstream's, with a token for it.
var plains = map[string]func(upstream *url.URL, dir string) http.Handler{
	"map":          func(u *url.URL, dir string) http.Handler { return &keeper{upstream: u, dir: dir} },
	"servecontent": func(u *url.URL, dir string) http.Handler { return &keeper{upstream: u, dir: dir, files: true} },
	"copy":         func(u *url.URL, dir string) http.Handler { return copier{u, dir} },
	"discard":      func(u *url.URL, _ string) http.Handler { return discarder{u} },
	"reverseproxy": func(u *url.URL, _ string) http.Handler {
		return &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) }}
	},
	"library": newLibrary,
}

// servePlain runs a plain server until ctx ends.
func servePlain(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) != 3 || plains[args[0]] == nil {
		return fmt.Errorf("there is no plain server %q", args)
	}
	upstream, err := url.Parse(args[1])
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: plains[args[0]](upstream, args[2])}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	fmt.Fprintf(stdout, "listening on http://%s\n", listener.Addr())
	_ = server.Serve(listener) // it returns an error when it is closed
	return nil
}

// newLibrary returns the bare library: a Store in memory, and no log.
func newLibrary(upstream *url.URL, dir string) http.Handler {
	return &pullthrough.Proxy{
		Store:    memstore.New(),
		Rules:    pullthrough.StaticRules{{Prefix: prefix, UpstreamURL: upstream.String()}},
		SpoolDir: dir,
	}
}

// ask sends r to the upstream.
func ask(upstream *url.URL, r *http.Request) (*http.Response, error) {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, upstream.JoinPath(r.URL.Path).String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", r.Header.Get("Authorization"))
	req.Header.Set("Accept", r.Header.Get("Accept"))
	resp, err := http.DefaultClient.Do(req)
	if err == nil && resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		err = fmt.Errorf("%s: %s", req.URL, resp.Status)
	}
	return resp, err
}

// keeper keeps what it once got from the upstream, and sends that with as little work as
// a registry can: from a map, or from a file with http.ServeContent.
type keeper struct {
	upstream *url.URL
	dir      string
	files    bool

	mu   sync.RWMutex
	have map[string]kept // by path
}

type kept struct {
	content   []byte // nil: it is in a file
	file      string
	mediaType string
	digest    string
	size      int64
}

// ServeHTTP sends the headers of a registry, and the content.
func (h *keeper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.RLock()
	k, ok := h.have[r.URL.Path]
	h.mu.RUnlock()
	if !ok {
		var err error
		if k, err = h.load(r); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
	}
	header := w.Header()
	header["Content-Type"] = []string{k.mediaType}
	header["Docker-Content-Digest"] = []string{k.digest}
	header["Docker-Distribution-Api-Version"] = []string{"registry/2.0"}
	header["Etag"] = []string{`"` + k.digest + `"`}
	header["X-Content-Type-Options"] = []string{"nosniff"}
	if k.content != nil {
		header["Content-Length"] = []string{strconv.FormatInt(k.size, 10)}
		_, _ = w.Write(k.content)
		return
	}
	f, err := os.Open(k.file)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	http.ServeContent(w, r, "", time.Time{}, f)
}

func (h *keeper) load(r *http.Request) (k kept, err error) {
	resp, err := ask(h.upstream, r)
	if err != nil {
		return kept{}, err
	}
	defer resp.Body.Close()
	k = kept{mediaType: resp.Header.Get("Content-Type")}
	sum := sha256.New()
	if h.files {
		k.file = filepath.Join(h.dir, strings.ReplaceAll(r.URL.Path, "/", "_"))
		k.size, err = writeFile(k.file, io.TeeReader(resp.Body, sum))
	} else if k.content, err = io.ReadAll(io.TeeReader(resp.Body, sum)); err == nil {
		k.size = int64(len(k.content))
	}
	k.digest = fmt.Sprintf("sha256:%x", sum.Sum(nil))
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.have == nil {
		h.have = make(map[string]kept)
	}
	h.have[r.URL.Path] = k
	return k, err
}

func writeFile(name string, r io.Reader) (int64, error) {
	f, err := os.Create(name)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(f, r)
	if err != nil {
		_ = f.Close()
		return n, err
	}
	return n, f.Close()
}

// copier does the least that a cache must do on a miss: read, hash, write and send.
type copier struct {
	upstream *url.URL
	dir      string
}

func (h copier) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resp, err := ask(h.upstream, r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	f, err := os.CreateTemp(h.dir, "copy-")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer func() { _, _ = f.Close(), os.Remove(f.Name()) }() // no longer needed
	w.Header().Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	sum := sha256.New()
	if _, err := io.CopyBuffer(io.MultiWriter(sum, f, w), resp.Body, make([]byte, 256<<10)); err != nil {
		panic(http.ErrAbortHandler) // the client must see that the answer is incomplete
	}
}

// discarder downloads from the upstream and discards what it gets. Its answer is empty.
type discarder struct{ upstream *url.URL }

func (h discarder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resp, err := ask(h.upstream, r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	buf := readBuffers.Get().(*[128 << 10]byte)
	defer readBuffers.Put(buf)
	for err == nil {
		_, err = resp.Body.Read(buf[:])
	}
	if err != io.EOF {
		http.Error(w, err.Error(), http.StatusBadGateway)
	}
}
