package fakeecr_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/fakeecr"
)

// A whole ECR for a test. Its rules may name a registry of the test, too.
func Example() {
	ecr, err := fakeecr.New(fakeecr.Config{
		Rules: []pullthrough.Rule{{Prefix: "docker-hub", UpstreamURL: "registry-1.docker.io"}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer ecr.Shutdown(context.Background())
	server := httptest.NewServer(ecr)
	defer server.Close()

	resp, err := http.Get(server.URL + "/v2/")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
	// Output: 200 OK
}
