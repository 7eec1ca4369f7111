package pullthroughtest_test

import (
	"fmt"
	"io"
	"net/http"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A program that is not a test starts the registry itself. Here the first pull of the layer fails half-way.
func Example() {
	up, err := pullthroughtest.Start(pullthroughtest.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer up.Close()
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1, LayerSize: 1 << 20})
	up.Push("library/alpine", "latest", img)
	up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/*", Times: 1, CutAfter: new(int64(1 << 19))})

	for range 2 {
		n, err := download(up.Client(), up.URL+"/v2/library/alpine/blobs/"+img.Layers[0].Digest.String())
		fmt.Println(n, err)
	}
	fmt.Println(up.Count("GET /v2/*/blobs/*"), "requests")
	// Output:
	// 524288 unexpected EOF
	// 1048576 <nil>
	// 2 requests
}

func download(client *http.Client, url string) (int64, error) {
	resp, err := client.Get(url)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return io.Copy(io.Discard, resp.Body)
}
