package history_test

import (
	"encoding/json"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// The upstream registries of a world.
const (
	public  = iota // the rule hub leads here
	other          // the rule hub leads here now and then: the same names, other images
	private        // each tenant may pull one repository of it
	upstreams
)

// versions is how many images each tag of a repository can point at, one after the
// other. A tag never goes back to an image that it has had.
const versions = 6

// tags are those of every upstream repository.
var tags = []string{"stable", "edge"}

// object is a document or blob that exists somewhere, with all that may be said of it.
type object struct {
	content   []byte
	mediaType string // of a manifest; "": it is a blob
	home      home   // where it belongs; zero name: it is shared or pushed locally
}

// home is an upstream repository.
type home struct {
	upstream int
	name     string
}

// edition is an image of a repository: what a tag points at for a while.
type edition struct {
	*pullthroughtest.Image
	version int
}

// library is all content of all worlds. It is made once, and it is the truth about bytes.
type library struct {
	editions  map[home]map[string][]edition
	signature map[home]*pullthroughtest.Image // it refers to the first edition of the first tag
	local     []*pullthroughtest.Image        // what clients push: each has the base layer of public's app
	full      *pullthroughtest.Blob           // as large as all room for downloads
	objects   map[digest.Digest]object
}

// homes are the repositories of the upstream registries.
var homes = []home{
	{public, "app"}, {public, "base"}, {public, "tool"},
	{other, "app"}, {other, "base"}, {other, "tool"},
	{private, "a/secret"}, {private, "b/secret"},
}

// Sizes of layers: verified before they are shown, in memory, and in files.
var (
	baseSizes = []int64{1_300_000, 90_000, 2_400_000, 700, 1_100_000, 70_000, 1_500_000, 65_537}
	ownSizes  = []int64{300, 64 << 10, 130_000, 40, 66_000, 9000}
)

// theLibrary makes the library on first use.
var theLibrary = sync.OnceValue(newLibrary)

func newLibrary() *library {
	l := &library{editions: map[home]map[string][]edition{}, signature: map[home]*pullthroughtest.Image{}, objects: map[digest.Digest]object{}}
	for i, h := range homes {
		base := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(1000 * (i + 1)), LayerSize: baseSizes[i]}).Layers[0]
		l.editions[h] = map[string][]edition{}
		for t, tag := range tags {
			for v := range versions {
				img := newImage(int64(1000*(i+1)+100*t+10*v+1), base, h.name == "base")
				l.editions[h][tag] = append(l.editions[h][tag], edition{img, v})
				l.keep(img, h)
			}
		}
		first := l.editions[h][tags[0]][0].Image
		if len(first.Children) == 0 {
			l.signature[h] = pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: int64(i), ArtifactType: "application/vnd.example.signature", Subject: first})
			l.keep(l.signature[h], h)
		}
	}
	shared := l.editions[homes[0]][tags[0]][0].Layers[0]
	for i := range 24 {
		img := newImage(int64(900_000+10*i), shared, false)
		l.keep(img, home{})
		l.local = append(l.local, img)
	}
	l.full = pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: 77, LayerSize: spoolBytes}).Layers[0]
	l.keepBlob(l.full, home{})
	return l
}

// newImage returns an image of two layers, one of them shared, or an index of two such
// images.
func newImage(seed int64, base *pullthroughtest.Blob, index bool) *pullthroughtest.Image {
	if index {
		var children []*pullthroughtest.Image
		for i, arch := range []string{"amd64", "arm64"} {
			child := newImage(seed+int64(i), base, false)
			child.Platform = ocispec.Platform{OS: "linux", Architecture: arch}
			children = append(children, child)
		}
		return pullthroughtest.NewIndex(children...)
	}
	own := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Seed: seed, LayerSize: ownSizes[seed%int64(len(ownSizes))]})
	content, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: own.MediaType, Config: own.Config.Descriptor(),
		Layers: []ocispec.Descriptor{base.Descriptor(), own.Layers[0].Descriptor()},
	})
	if err != nil {
		panic(err) // a type of our own
	}
	return &pullthroughtest.Image{
		MediaType: own.MediaType, Digest: digest.FromBytes(content), Content: content,
		Config: own.Config, Layers: []*pullthroughtest.Blob{base, own.Layers[0]},
	}
}

func (l *library) keep(img *pullthroughtest.Image, h home) {
	l.objects[img.Digest] = object{img.Content, img.MediaType, h}
	for _, child := range img.Children {
		l.keep(child, h)
	}
	for _, b := range img.Blobs() {
		l.keepBlob(b, h)
	}
}

// keepBlob notes a blob. One that is in several places has no home.
func (l *library) keepBlob(b *pullthroughtest.Blob, h home) {
	if have, ok := l.objects[b.Digest]; ok {
		if have.home != h && b.MediaType == ocispec.MediaTypeEmptyJSON {
			have.home = home{}
			l.objects[b.Digest] = have
		}
		return
	}
	content, err := io.ReadAll(b.Open())
	if err != nil {
		panic(err) // it is in memory
	}
	l.objects[b.Digest] = object{content, "", h}
}

// parts are all manifests and blobs of an image.
func parts(img *pullthroughtest.Image) (manifests, blobs []digest.Digest) {
	manifests = append(manifests, img.Digest)
	for _, child := range img.Children {
		m, b := parts(child)
		manifests, blobs = append(manifests, m...), append(blobs, b...)
	}
	for _, b := range img.Blobs() {
		blobs = append(blobs, b.Digest)
	}
	return manifests, blobs
}
