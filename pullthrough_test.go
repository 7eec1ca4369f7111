package pullthrough_test

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestAColdPullCostsOneChallengeOneTokenAndOneGetPerObject(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}, nil)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 5})
	w.Up.Push("library/alpine", "latest", img)

	w.Pull(t, "library/alpine", "latest", img)
	want := []string{"GET /v2/library/alpine/manifests/latest 401", "GET /token 200", "GET /v2/library/alpine/manifests/latest 200"}
	for _, b := range img.Blobs() {
		want = append(want, "GET /v2/library/alpine/blobs/"+b.Digest.String()+" 200")
	}
	assert.Equal(t, want, w.Up.Log())

	w.Up.Reset()
	w.Pull(t, "library/alpine", "latest", img)
	w.Pull(t, "library/alpine", img.Digest.String(), img)
	assert.Empty(t, w.Up.Log(), "a warm pull asks nobody")
}

func TestEveryKindOfImagePulls(t *testing.T) {
	images := map[string]*pullthroughtest.Image{
		"oci image":    pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 1}),
		"docker image": pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 2, Docker: true}),
		"artifact":     pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 3, ArtifactType: "application/vnd.example.chart"}),
		"sha512":       pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 4, Algorithm: digest.SHA512}),
		"empty layer":  pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 5, Layers: 1, LayerSize: -1}),
		"large layer":  pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 6, Layers: 1, LayerSize: 3<<20 + 5}),
	}
	for name, img := range images {
		t.Run(name, func(t *testing.T) {
			w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
			w.Up.Push("a", "1", img)
			ref := "1"
			if img.Digest.Algorithm() != digest.SHA256 {
				ref = img.Digest.String() // by tag a manifest's identity is its sha256
			}
			w.Pull(t, "a", ref, img)
			assert.Equal(t, 1+len(img.Blobs()), w.Up.Count("*"))
			w.Up.Reset()
			w.Pull(t, "a", ref, img)
			assert.Empty(t, w.Up.Log())
		})
	}
}

func TestABadRequestAsksNobody(t *testing.T) {
	w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
		p.Rules = pullthrough.RuleSourceFunc(func(context.Context, string, string) ([]pullthrough.Rule, error) {
			t.Error("a bad name reached the rules")
			return nil, io.EOF
		})
	})
	for _, r := range []pullthrough.Request{
		{Repo: testkit.Repo("../a"), Ref: "1"}, {Repo: testkit.Repo("A"), Ref: "1"}, {Repo: testkit.Repo("a"), Ref: ""},
		{Repo: testkit.Repo("a"), Ref: strings.Repeat("a", 129)}, {Repo: testkit.Repo("a"), Ref: "sha256:" + strings.Repeat("a", 63)},
		{Repo: testkit.Repo("a"), Ref: "md5:d41d8cd98f00b204e9800998ecf8427e"},
	} {
		_, err := w.Manifest(t.Context(), r)
		assert.ErrorIs(t, err, pullthrough.ErrInvalid)
		_, err = w.Blob(t.Context(), r)
		assert.ErrorIs(t, err, pullthrough.ErrInvalid)
	}
	_, err := w.Blob(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "latest"})
	assert.ErrorIs(t, err, pullthrough.ErrInvalid, "a blob has no tags")
	assert.Empty(t, w.Up.Log())
}
