package ecrapi_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A fake ECR: a rule that is created by its JSON API is pulled through at /v2/.
func Example() {
	upstream, err := pullthroughtest.Start(pullthroughtest.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer upstream.Close()
	upstream.Push("org/hello", "latest", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))

	api := &ecrapi.API{Account: "123456789012", Region: "us-east-1"}
	mux := http.NewServeMux()
	mux.Handle("/", api)
	mux.Handle("/v2/", &pullthrough.Proxy{
		Store: memstore.New(), Rules: api, Credentials: api.Credentials,
		Endpoint: func(context.Context, pullthrough.Repo, pullthrough.Rule) (*url.URL, error) {
			return url.Parse(upstream.URL) // where quay.io is in this test
		},
	})
	server := httptest.NewServer(mux)
	defer server.Close()

	r, err := http.NewRequest(http.MethodPost, server.URL, strings.NewReader(`{"ecrRepositoryPrefix":"quay","upstreamRegistryUrl":"quay.io"}`))
	if err != nil {
		log.Fatal(err)
	}
	r.Header.Set("X-Amz-Target", "AmazonEC2ContainerRegistry_V20150921.CreatePullThroughCacheRule")
	for _, do := range []func() (*http.Response, error){
		func() (*http.Response, error) { return http.DefaultClient.Do(r) },
		func() (*http.Response, error) { return http.Get(server.URL + "/v2/quay/org/hello/manifests/latest") },
	} {
		resp, err := do()
		if err != nil {
			log.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		fmt.Println(resp.Status)
	}
	// Output:
	// 200 OK
	// 200 OK
}
