// Command quickstart pulls an image through a pull through cache twice and
// prints what went over the wire each time. It needs no network: the upstream
// registry runs in the same process.
//
//	go run ./examples/quickstart
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func main() {
	if err := run(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run(w io.Writer) error {
	// An upstream registry with one image of three layers. Like Docker Hub, it sends
	// each client to a token server first.
	upstream, err := pullthroughtest.Start(pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	if err != nil {
		return err
	}
	defer upstream.Close()
	image := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 3, LayerSize: 4 << 20})
	upstream.Push("library/hello", "latest", image)

	// The cache: a store for images and a rule. A host needs no more than this.
	proxy := &pullthrough.Proxy{
		Store: memstore.New(),
		Rules: pullthrough.StaticRules{{Prefix: "docker-hub", UpstreamURL: upstream.URL}},
	}
	server := httptest.NewServer(proxy)
	defer server.Close()

	const repo = "docker-hub/library/hello"
	for _, which := range []string{"First", "Second"} {
		upstream.Reset()
		objects, size, err := pull(server.URL+"/v2/"+repo, "latest", image.Descriptor().Digest)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s pull of %s:latest: %d objects, %.1f MiB, every digest verified.\n", which, repo, objects, float64(size)/(1<<20))
		printLog(w, upstream.Log())
		// The first pull costs one 401, one token and one GET per object, the second nothing.
		if want := map[string]int{"First": 2 + objects, "Second": 0}[which]; len(upstream.Log()) != want {
			return fmt.Errorf("%s pull: %d requests to the upstream registry, not %d", which, len(upstream.Log()), want)
		}
	}
	// Shut down the server first and the proxy second.
	server.Close()
	return proxy.Shutdown(context.Background())
}

// pull does what docker pull does: it gets the manifest by tag, and then everything that
// the manifest names by digest.
func pull(repo, tag string, want digest.Digest) (objects int, size int64, err error) {
	raw, err := fetch(repo+"/manifests/"+tag, want)
	if err != nil {
		return 0, 0, err
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(raw, &manifest); err != nil {
		return 0, 0, err
	}
	objects, size = 1, int64(len(raw))
	for _, blob := range append([]ocispec.Descriptor{manifest.Config}, manifest.Layers...) {
		content, err := fetch(repo+"/blobs/"+blob.Digest.String(), blob.Digest)
		if err != nil {
			return 0, 0, err
		}
		objects, size = objects+1, size+int64(len(content))
	}
	return objects, size, nil
}

// fetch gets an object and verifies it.
func fetch(url string, want digest.Digest) ([]byte, error) {
	resp, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", url, err)
	}
	if got := digest.FromBytes(content); resp.StatusCode != http.StatusOK || got != want {
		return nil, fmt.Errorf("GET %s: %s, digest %s, not %s", url, resp.Status, got, want)
	}
	return content, nil
}

// printLog prints the upstream registry's log, lines like "GET /v2/… 401".
func printLog(w io.Writer, lines []string) {
	fmt.Fprintln(w, "The upstream registry was asked for")
	if len(lines) == 0 {
		fmt.Fprintln(w, "     nothing")
	}
	for _, line := range lines {
		fields := strings.Fields(line)
		path, hex, isBlob := strings.Cut(fields[1], "sha256:")
		if isBlob {
			path += "sha256:" + hex[:12] + "…"
		}
		fmt.Fprintf(w, "     %s  %s %s\n", fields[2], fields[0], path)
	}
	fmt.Fprintln(w)
}
