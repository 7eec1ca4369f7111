package pullthroughtest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The Docker counterparts of the OCI media types.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
)

// Image is a manifest with everything that it refers to, ready for [Upstream.Push]. [NewImage] and [NewIndex] make
// well-formed images. For any other, write a literal with a MediaType and any Content. An Image is safe for concurrent
// use as long as nobody changes it. It must not be changed after Push.
type Image struct {
	MediaType string
	Digest    digest.Digest // of Content; empty: Push computes the sha256
	Content   []byte        // the manifest as it is served, byte for byte

	Config   *Blob    // nil: none, as in an index
	Layers   []*Blob  // nil: none
	Children []*Image // of an index; nil: none

	ArtifactType string           // for the referrers list; empty: it is an image
	Subject      digest.Digest    // the manifest that this one refers to; empty: none
	Platform     ocispec.Platform // for the descriptor in an index; zero: the descriptor has none

	Annotations map[string]string // for the descriptor in an index; nil: none
}

// ImageOptions says what [NewImage] makes. The zero value is an OCI image for linux/amd64 with one layer of 1 KiB.
type ImageOptions struct {
	Seed         int64            // images with different seeds share no layer of a LayerSize; 0 is a seed like any other
	Files        fs.FS            // what the first layer has in it, as a fstest.MapFS or an os.DirFS; nil: it is of LayerSize, too
	Layers       int              // how many; 0: one, negative: none
	LayerSize    int64            // of each layer as it is sent, in bytes; 0: 1 KiB, negative: empty layers
	Compression  string           // of the layers: "gzip", "zstd" or "none"; empty: gzip
	Docker       bool             // Docker schema 2 media types; false: OCI
	ArtifactType string           // makes it an artifact with the empty config; empty: an image
	Subject      *Image           // the subject of the manifest, OCI only; nil: none
	Algorithm    digest.Algorithm // of all digests; empty: sha256
	Platform     ocispec.Platform // in the config and in an index; OS empty: linux, Architecture empty: amd64
	Entrypoint   []string         // in the config: the program that a container runs, and its arguments; nil: none
}

// NewImage makes an image. The same options always make the same image, with every version of Go.
//
// Its layers are tar archives that unpack to a root filesystem, and its config lists what they are unpacked. A layer of
// LayerSize holds one file, layer-N, of noise that no program compresses. Under some 200 bytes (with Compression "none" 1,536)
// there is no room for an archive: such a layer is noise, can be pulled and verified, and does not unpack. Even long
// layers take little memory, but it takes time to hash them.
//
// Of Files the names, the contents, the modes and the targets of symbolic links count. Files are owned by root, and their
// time is 1970-01-01. They are stored and not made smaller.
//
// NewImage panics on an unknown Algorithm or Compression, and when Files cannot be read.
func NewImage(o ImageOptions) *Image {
	o = o.withDefaults()
	img := &Image{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: o.ArtifactType, Platform: o.Platform}
	if o.Docker {
		img.MediaType = dockerManifest
	}
	layers := o.layers()
	for _, l := range layers {
		img.Layers = append(img.Layers, l.Blob)
	}
	img.Config = o.config(layers)
	if o.Subject != nil {
		img.Subject = o.Subject.Digest
	}
	img.writeManifest(o.Subject, o.Algorithm)
	return img
}

// writeManifest makes the Content of an image from the rest of it.
func (i *Image) writeManifest(subject *Image, algorithm digest.Algorithm) {
	manifest := ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    i.MediaType,
		ArtifactType: i.ArtifactType,
		Config:       i.Config.Descriptor(),
		Layers:       []ocispec.Descriptor{},
	}
	for _, layer := range i.Layers {
		manifest.Layers = append(manifest.Layers, layer.Descriptor())
	}
	if subject != nil {
		d := subject.Descriptor()
		d.Platform, d.Annotations = nil, nil
		manifest.Subject = &d
	}
	i.Content = marshal(manifest)
	i.Digest = algorithm.FromBytes(i.Content)
}

func (o ImageOptions) withDefaults() ImageOptions {
	if o.Layers == 0 {
		o.Layers = 1
	}
	if o.LayerSize == 0 {
		o.LayerSize = 1 << 10
	}
	o.Layers, o.LayerSize = max(o.Layers, 0), max(o.LayerSize, 0)
	o.Algorithm = cmp.Or(o.Algorithm, digest.SHA256)
	o.Compression = cmp.Or(o.Compression, "gzip")
	o.Platform.OS = cmp.Or(o.Platform.OS, "linux")
	o.Platform.Architecture = cmp.Or(o.Platform.Architecture, "amd64")
	return o
}

// config makes the config blob. It contains the seed, so that images without layers differ too.
func (o ImageOptions) config(layers []layer) *Blob {
	if o.ArtifactType != "" {
		return newBlob(ocispec.MediaTypeEmptyJSON, o.Algorithm, ocispec.DescriptorEmptyJSON.Data)
	}
	config := ocispec.Image{
		Author:   fmt.Sprintf("seed %d", o.Seed),
		Platform: o.Platform,
		Config:   ocispec.ImageConfig{Entrypoint: o.Entrypoint},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}},
	}
	for _, layer := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, layer.diffID)
	}
	mediaType := ocispec.MediaTypeImageConfig
	if o.Docker {
		mediaType = dockerConfig
	}
	return newBlob(mediaType, o.Algorithm, marshal(config))
}

// NewIndex makes an index of the images in the given order. It is a Docker manifest list if there are images and all of
// them are Docker images, and otherwise an OCI index. Its digest is a sha256.
func NewIndex(images ...*Image) *Image {
	index := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{},
	}
	if allDocker(images) {
		index.MediaType = dockerList
	}
	for _, img := range images {
		index.Manifests = append(index.Manifests, img.Descriptor())
	}
	content := marshal(index)
	return &Image{MediaType: index.MediaType, Digest: digest.FromBytes(content), Content: content, Children: images}
}

func allDocker(images []*Image) bool {
	for _, img := range images {
		if img.MediaType != dockerManifest && img.MediaType != dockerList {
			return false
		}
	}
	return len(images) > 0
}

// Descriptor returns the image's descriptor as an index has it, with the platform and the annotations if there are any.
func (i *Image) Descriptor() ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: i.MediaType, Digest: i.Digest, Size: int64(len(i.Content)), Annotations: i.Annotations}
	if i.ArtifactType != "" {
		d.ArtifactType = i.ArtifactType
		return d
	}
	if i.Platform.OS != "" {
		platform := i.Platform
		d.Platform = &platform
	}
	return d
}

// referrer returns the image's descriptor as a list of referrers has it: with the artifact type, without the platform
// and the annotations of an index.
func (i *Image) referrer() ocispec.Descriptor {
	d := i.Descriptor()
	d.Platform, d.Annotations = nil, nil
	if d.ArtifactType == "" && i.Config != nil {
		d.ArtifactType = i.Config.MediaType
	}
	return d
}

// Blobs returns the config, if there is one, and the layers, in the order of the manifest.
func (i *Image) Blobs() []*Blob {
	var blobs []*Blob
	if i.Config != nil {
		blobs = append(blobs, i.Config)
	}
	return append(blobs, i.Layers...)
}

// marshal encodes one of our own types, which cannot fail.
func marshal(document any) []byte {
	content, err := json.Marshal(document)
	if err != nil {
		panic(fmt.Sprintf("pullthroughtest: marshal %T: %v", document, err))
	}
	return content
}
