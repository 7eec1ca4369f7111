package dirstore_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/dirstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// Images outlive the process that pulled them.
func Example() {
	dir, err := os.MkdirTemp("", "images")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	upstream, err := pullthroughtest.Start(pullthroughtest.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer upstream.Close()
	upstream.Push("library/hello", "latest", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))

	for range 2 {
		store, err := dirstore.Open(dir)
		if err != nil {
			log.Fatal(err)
		}
		proxy := &pullthrough.Proxy{
			Store: store,
			Rules: pullthrough.StaticRules{{Prefix: "docker-hub", UpstreamURL: upstream.URL}},
		}
		ctx := context.Background()
		m, err := proxy.Manifest(ctx, pullthrough.Request{
			Repo: pullthrough.Repo{Name: "docker-hub/library/hello"}, Ref: "latest",
		})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(m.Source, upstream.Log())
		upstream.Reset()
		if err := proxy.Shutdown(ctx); err != nil {
			log.Fatal(err)
		}
		if err := store.Close(); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// fill [GET /v2/library/hello/manifests/latest 200]
	// hit []
}
