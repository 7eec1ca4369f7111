package pullthrough_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A registry in front of an upstream, complete.
func Example() {
	upstream, err := pullthroughtest.Start(pullthroughtest.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer upstream.Close()
	upstream.Push("library/hello", "latest", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))

	registry := httptest.NewServer(&pullthrough.Proxy{
		Store: pullthrough.NewMemStore(),
		Rules: pullthrough.StaticRules{{Prefix: "docker-hub", UpstreamURL: upstream.URL()}},
	})
	defer registry.Close()

	for range 2 {
		resp, err := http.Get(registry.URL + "/v2/docker-hub/library/hello/manifests/latest")
		if err != nil {
			log.Fatal(err)
		}
		_ = resp.Body.Close()
		fmt.Println(resp.Status, upstream.Log())
		upstream.Reset()
	}
	// Output:
	// 200 OK [GET /v2/library/hello/manifests/latest 200]
	// 200 OK []
}

// The rule with the longest prefix covers a name.
func ExampleMatch() {
	rules := []pullthrough.Rule{
		{Prefix: "ROOT", UpstreamURL: "public.ecr.aws"},
		{Prefix: "cg", UpstreamURL: "cgr.dev", UpstreamPrefix: "example.com"},
	}
	for _, name := range []string{"cg/base", "cgx/base"} {
		rule, upstreamName, ok := pullthrough.Match(rules, name)
		fmt.Println(rule.UpstreamURL, upstreamName, ok)
	}
	// Output:
	// cgr.dev example.com/base true
	// public.ecr.aws cgx/base true
}

// What a registry client gets for an error.
func ExampleOCI() {
	p := &pullthrough.Proxy{Store: pullthrough.NewMemStore(), Rules: pullthrough.StaticRules{}}
	_, err := p.Manifest(context.Background(), pullthrough.Request{
		Repo: pullthrough.Repo{Account: "123456789012", Region: "us-east-1", Name: "docker-hub/library/alpine"},
		Ref:  "latest",
	})
	fmt.Println(errors.Is(err, pullthrough.ErrNoRule))
	fmt.Println(pullthrough.OCI(err))
	// Output:
	// true
	// 404 NAME_UNKNOWN The repository with name 'docker-hub/library/alpine' does not exist in the registry with id '123456789012'
}

// emulator is a fake AWS that has /v2/ handlers of its own over its own maps.
type emulator struct {
	proxy *pullthrough.Proxy
}

func (e *emulator) getManifest(w http.ResponseWriter, r *http.Request, name, ref string) {
	req := pullthrough.Request{Repo: repoOf(r, name), Ref: ref, Head: r.Method == http.MethodHead}
	m, err := e.proxy.Manifest(r.Context(), req) // instead of the look-up: tags are checked again
	switch {
	case errors.Is(err, pullthrough.ErrNoRule):
		e.notFound(w, name, ref) // the emulator's own 404
	case err != nil:
		pullthrough.WriteError(w, err)
	default:
		pullthrough.WriteManifest(w, r, m)
	}
}

func (e *emulator) getBlob(w http.ResponseWriter, r *http.Request, name, digest string) {
	req := pullthrough.Request{Repo: repoOf(r, name), Ref: digest, Head: r.Method == http.MethodHead}
	b, err := e.proxy.Blob(r.Context(), req)
	if err != nil {
		pullthrough.WriteError(w, err)
		return
	}
	pullthrough.WriteBlob(w, r, b)
}

func repoOf(_ *http.Request, name string) pullthrough.Repo {
	return pullthrough.Repo{Account: "000000000000", Region: "us-east-1", Name: name}
}

func (e *emulator) notFound(w http.ResponseWriter, name, ref string) {
	http.Error(w, "no "+name+":"+ref+" here", http.StatusNotFound)
}

// wrap puts a pull through cache before a registry that is only a handler.
func wrap(registry http.Handler, rules pullthrough.RuleSource) http.Handler {
	proxy := &pullthrough.Proxy{
		Store: pullthrough.NewMemStore(), // what is pulled through is kept apart from registry
		Rules: rules,
	}
	return proxy.Handler(registry)
}

// mount gives an emulator without a registry one, on a mux where other
// services have paths under /v2/ too.
func mount(mux *http.ServeMux, proxy *pullthrough.Proxy, others http.Handler) {
	v2 := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if pullthrough.IsRegistryRequest(r) {
			proxy.ServeHTTP(w, r)
			return
		}
		others.ServeHTTP(w, r) // API Gateway's /v2/apis, SES's /v2/email, ...
	})
	mux.Handle("/v2", v2)
	mux.Handle("/v2/", v2)
}

// mapStore is a Store over the maps that an emulator has anyway.
type mapStore struct {
	mu        sync.RWMutex
	manifests map[string]*pullthrough.Manifest // by repository and tag or digest
	blobs     map[string][]byte                // by repository and digest
}

func (s *mapStore) Manifest(_ context.Context, repo pullthrough.Repo, ref string) (*pullthrough.Manifest, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if m, ok := s.manifests[repo.Name+" "+ref]; ok {
		return m, nil
	}
	return nil, fs.ErrNotExist // the one error that means "I do not have it"
}

func (s *mapStore) PutManifest(_ context.Context, repo pullthrough.Repo, m *pullthrough.Manifest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	untagged := *m
	untagged.Tag = ""
	if key := repo.Name + " " + m.Descriptor.Digest.String(); s.manifests[key] == nil {
		s.manifests[key] = &untagged // a second tag must not change what is known of the first
	}
	if m.Tag != "" {
		s.manifests[repo.Name+" "+m.Tag] = m
	}
	return nil
}

func (s *mapStore) Blob(_ context.Context, repo pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if b, ok := s.blobs[repo.Name+" "+d.String()]; ok {
		return pullthrough.NewBlob(d, b), nil
	}
	return nil, fs.ErrNotExist
}

func (s *mapStore) PutBlob(_ context.Context, repo pullthrough.Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	b, err := io.ReadAll(r) // before the lock
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[repo.Name+" "+desc.Digest.String()] = b
	return nil
}

// exampleHosts are the three kinds of host, each over the map-based Store.
func exampleHosts(up *pullthroughtest.Upstream) map[string]http.Handler {
	rules := pullthrough.StaticRules{{Prefix: prefix, UpstreamURL: up.URL()}}
	newProxy := func() *pullthrough.Proxy {
		return &pullthrough.Proxy{Store: &mapStore{manifests: map[string]*pullthrough.Manifest{}, blobs: map[string][]byte{}}, Rules: rules}
	}
	own := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e := &emulator{newProxy()}
		parts := strings.SplitN(strings.TrimPrefix(r.URL.Path, "/v2/"+prefix+"/a/"), "/", 2)
		switch {
		case len(parts) == 2 && parts[0] == "manifests":
			e.getManifest(w, r, prefix+"/a", parts[1])
		case len(parts) == 2 && parts[0] == "blobs":
			e.getBlob(w, r, prefix+"/a", parts[1])
		default:
			e.getManifest(w, r, "own/a", "1")
		}
	})
	foreign := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not the proxy's", http.StatusTeapot) })
	mux := http.NewServeMux()
	mount(mux, newProxy(), foreign)
	return map[string]http.Handler{"own handlers": own, "a foreign registry": wrap(foreign, rules), "no registry": mux}
}

func TestTheEmbeddingsInTheREADMEWork(t *testing.T) {
	up := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	up.Push("a", "1", img)
	for name, h := range exampleHosts(up) {
		t.Run(name, func(t *testing.T) {
			s := serve(t, h)
			body, status := getBody(t, s.URL+"/v2/"+prefix+"/a/manifests/1")
			assert.Equal(t, http.StatusOK, status)
			assert.Equal(t, img.Content, body)
			body, status = getBody(t, s.URL+"/v2/"+prefix+"/a/blobs/"+img.Blobs()[0].Digest.String())
			assert.Equal(t, http.StatusOK, status)
			assert.Equal(t, img.Blobs()[0].Digest.Encoded(), fmt.Sprintf("%x", sha256.Sum256(body)))
			_, status = getBody(t, s.URL+"/v2/apis")
			assert.NotEqual(t, http.StatusOK, status)
			assert.Positive(t, up.Count("GET /v2/a/manifests/1 200"))
		})
	}
}

func getBody(t *testing.T, url string) ([]byte, int) {
	t.Helper()
	resp, err := http.Get(url)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return body, resp.StatusCode
}

// TestTheREADMEShowsTestedCode: every Go block of the README stands in this
// file, or, for the first one, in the package comment.
func TestTheREADMEShowsTestedCode(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	tested := readFile(t, "example_test.go") + strings.ReplaceAll(readFile(t, "pullthrough.go"), "//\t", "")
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	require.NotEmpty(t, blocks)
	for _, block := range blocks {
		for part := range strings.SplitSeq(strings.TrimSpace(block[1]), "\n\n") {
			assert.Contains(t, tested, part)
		}
	}
}
