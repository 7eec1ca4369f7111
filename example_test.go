package pullthrough_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/memstore"
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
		Store: memstore.New(),
		Rules: pullthrough.StaticRules{{Prefix: "docker-hub", UpstreamURL: upstream.URL}},
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
	p := &pullthrough.Proxy{Store: memstore.New(), Rules: pullthrough.StaticRules{}}
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

// What ECR's JSON API answers for the same error.
func ExampleAWS() {
	err := pullthrough.Rule{Prefix: "hub", UpstreamURL: "docker.example.com"}.Validate("123456789012", "us-east-1")
	exception, _, _ := pullthrough.AWS(err, "CreatePullThroughCacheRule")
	fmt.Println(exception)
	// Output:
	// UnsupportedUpstreamRegistryException
}

// A registry of one's own keeps what no rule covers.
func ExampleProxy_Handler() {
	upstream, err := pullthroughtest.Start(pullthroughtest.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer upstream.Close()
	upstream.Push("library/hello", "latest", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))

	own := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "the own registry", http.StatusTeapot)
	})
	proxy := &pullthrough.Proxy{
		Store: memstore.New(),
		Rules: pullthrough.StaticRules{{Prefix: "docker-hub", UpstreamURL: upstream.URL}},
	}
	registry := httptest.NewServer(proxy.Handler(own))
	defer registry.Close()

	for _, path := range []string{"docker-hub/library/hello/manifests/latest", "team/app/manifests/v1", "apis"} {
		resp, err := http.Get(registry.URL + "/v2/" + path)
		if err != nil {
			log.Fatal(err)
		}
		_ = resp.Body.Close()
		fmt.Println(resp.StatusCode, path)
	}
	// Output:
	// 200 docker-hub/library/hello/manifests/latest
	// 418 team/app/manifests/v1
	// 418 apis
}

// A pull without HTTP: the manifest, then a layer.
func ExampleProxy_Manifest() {
	upstream, err := pullthroughtest.Start(pullthroughtest.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer upstream.Close()
	image := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 3000})
	upstream.Push("library/hello", "latest", image)

	proxy := &pullthrough.Proxy{
		Store: memstore.New(),
		Rules: pullthrough.StaticRules{{Prefix: "docker-hub", UpstreamURL: upstream.URL}},
	}
	ctx := context.Background()
	repo := pullthrough.Repo{Account: "123456789012", Region: "us-east-1", Name: "docker-hub/library/hello"}

	m, err := proxy.Manifest(ctx, pullthrough.Request{Repo: repo, Ref: "latest"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(m.Descriptor.MediaType, m.Source)

	b, err := proxy.Blob(ctx, pullthrough.Request{Repo: repo, Ref: image.Layers[0].Digest.String()})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Body.Close()
	n, err := io.Copy(io.Discard, b.Body) // an error means that the content was wrong or cut
	fmt.Println(n, err)
	// Output:
	// application/vnd.oci.image.manifest.v1+json fill
	// 3000 <nil>
}

// A whole image is brought in ahead of time.
func ExampleProxy_Import() {
	upstream, err := pullthroughtest.Start(pullthroughtest.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer upstream.Close()
	upstream.Push("library/hello", "latest", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 3}))

	proxy := &pullthrough.Proxy{
		Store: memstore.New(),
		Rules: pullthrough.StaticRules{{Prefix: "docker-hub", UpstreamURL: upstream.URL}},
	}
	var mu sync.Mutex
	stored := 0
	_, err = proxy.Import(context.Background(), pullthrough.Request{
		Repo: pullthrough.Repo{Name: "docker-hub/library/hello"}, Ref: "latest",
	}, pullthrough.ImportOptions{Progress: func(_ ocispec.Descriptor, _ int64, isStored bool, _ error) {
		if isStored {
			mu.Lock()
			defer mu.Unlock()
			stored++
		}
	}})
	fmt.Println(stored, "objects:", err) // the manifest, the config and the layers
	// Output:
	// 5 objects: <nil>
}

// What is stored is served, and what is missing is said plainly: no network.
func ExamplePolicy_offline() {
	registry := &pullthrough.Proxy{
		Store: memstore.New(),
		Rules: pullthrough.StaticRules{{Prefix: "docker-hub", UpstreamURL: "registry-1.docker.io"}},
		Policy: func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{Offline: true}
		},
	}
	_, err := registry.Manifest(context.Background(), pullthrough.Request{
		Repo: pullthrough.Repo{Name: "docker-hub/library/alpine"}, Ref: "3.20",
	})
	_, _, message := pullthrough.OCI(err)
	fmt.Println(message)
	// Output:
	// offline: docker-hub/library/alpine:3.20 is not stored
}

// A rule's secret becomes what its upstream registry is told. Endpoint says where
// that registry really is, here in a test.
func ExampleCredential() {
	upstream, err := pullthroughtest.Start(pullthroughtest.Config{
		Auth: pullthroughtest.Bearer, Users: map[string]string{"robot": "token-of-the-robot"},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer upstream.Close()
	upstream.Push("library/hello", "latest", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))

	secrets := map[string]pullthrough.Credential{
		"arn:aws:secretsmanager:us-east-1:123456789012:secret:ecr-pullthroughcache/hub": {Username: "robot", AccessToken: "token-of-the-robot"},
	}
	proxy := &pullthrough.Proxy{
		Store: memstore.New(),
		Rules: pullthrough.StaticRules{{
			Prefix: "docker-hub", UpstreamURL: "registry-1.docker.io",
			CredentialARN: "arn:aws:secretsmanager:us-east-1:123456789012:secret:ecr-pullthroughcache/hub",
		}},
		Credentials: func(_ context.Context, _ pullthrough.Repo, rule pullthrough.Rule) (pullthrough.Credential, error) {
			return secrets[rule.CredentialARN], nil
		},
		Endpoint: func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) {
			return url.Parse(upstream.URL)
		},
	}
	_, err = proxy.Manifest(context.Background(), pullthrough.Request{
		Repo: pullthrough.Repo{Name: "docker-hub/library/hello"}, Ref: "latest",
	})
	fmt.Println(err)
	fmt.Println(upstream.Log())
	// Output:
	// <nil>
	// [GET /v2/library/hello/manifests/latest 401 GET /token 200 GET /v2/library/hello/manifests/latest 200]
}

// Every request is told of, hits too.
func ExampleEvent() {
	upstream, err := pullthroughtest.Start(pullthroughtest.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer upstream.Close()
	upstream.Push("library/hello", "latest", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))

	proxy := &pullthrough.Proxy{
		Store: memstore.New(),
		Rules: pullthrough.StaticRules{{Prefix: "docker-hub", UpstreamURL: upstream.URL}},
		OnEvent: func(_ context.Context, e pullthrough.Event) {
			if e.Kind == pullthrough.EventManifest && !e.Request.Head { // a HEAD is no pull
				fmt.Println(e.Request.Repo.Name, e.Request.Ref, e.Source, e.Err)
			}
		},
	}
	for range 2 {
		_, _ = proxy.Manifest(context.Background(), pullthrough.Request{
			Repo: pullthrough.Repo{Name: "docker-hub/library/hello"}, Ref: "latest",
		})
		_ = proxy.Idle(context.Background()) // until the Store has it
	}
	// Output:
	// docker-hub/library/hello latest fill <nil>
	// docker-hub/library/hello latest hit <nil>
}

// Accounts and Regions by the host name of the request, as on Amazon ECR.
func ExampleHostIdentity() {
	r := httptest.NewRequest(http.MethodGet, "http://123456789012.dkr.ecr.eu-west-1.localhost:5000/v2/", nil)
	id, _ := pullthrough.HostIdentity(r) // fits Proxy.Identify
	fmt.Println(id.Account, id.Region)
	// Output:
	// 123456789012 eu-west-1
}

// The order of an orderly end: the server, the proxy, the Store.
func ExampleProxy_Shutdown() {
	dir, err := os.MkdirTemp("", "images")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	store, err := dirstore.Open(dir)
	if err != nil {
		log.Fatal(err)
	}
	proxy := &pullthrough.Proxy{
		Store: store,
		Rules: pullthrough.StaticRules{{Prefix: "docker-hub", UpstreamURL: "registry-1.docker.io"}},
	}
	server := &http.Server{Handler: proxy}

	ctx := context.Background()
	fmt.Println(server.Shutdown(ctx)) // no new requests, and the running ones end
	fmt.Println(proxy.Shutdown(ctx))  // downloads that are still running end, and are stored
	fmt.Println(store.Close())
	// Output:
	// <nil>
	// <nil>
	// <nil>
}
