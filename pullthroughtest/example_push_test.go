package pullthroughtest_test

import (
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// Images, indexes and artifacts in a line each. They are the same on every run.
func ExampleUpstream_Push() {
	up, err := pullthroughtest.Start(pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer up.Close()
	amd := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1, Layers: 3, LayerSize: 1 << 20})
	arm := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, Platform: ocispec.Platform{OS: "linux", Architecture: "arm64"}})
	index := pullthroughtest.NewIndex(amd, arm, pullthroughtest.NewAttestation(amd))
	signature := pullthroughtest.NewImage(pullthroughtest.ImageOptions{ArtifactType: "application/vnd.example.signature", Subject: amd})
	up.Push("library/alpine", "latest", index)
	up.Push("library/alpine", "", signature) // by digest only

	resp, err := up.Client().Get(up.URL + "/v2/library/alpine/manifests/latest")
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = resp.Body.Close()
	fmt.Println(up.Log()) // it wants a token
	fmt.Println(up.Count("* 401"))
	// Output:
	// [GET /v2/library/alpine/manifests/latest 401]
	// 1
}
