package pullthroughtest

import (
	"archive/tar"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// layer is a layer and the digest of what is in it, unpacked, which a config lists.
type layer struct {
	*Blob
	diffID digest.Digest
}

// layers makes the layers of an image: one of files, and the others of a size.
func (o ImageOptions) layers() (layers []layer) {
	if o.Files != nil && o.Layers > 0 {
		layers = append(layers, o.fileLayer())
	}
	for i := len(layers); i < o.Layers; i++ {
		layers = append(layers, o.sizedLayer(i))
	}
	return layers
}

func (o ImageOptions) fileLayer() layer {
	a := newArchive(o.packing())
	if err := a.addFiles(o.Files); err != nil {
		panic(fmt.Sprintf("pullthroughtest: read Files: %v", err))
	}
	a.close(0)
	return o.newLayer(a.packed, a.plain)
}

// sizedLayer makes a layer of exactly LayerSize: an archive of one file of noise, as long as the size leaves room for. Where
// not even an empty file has room it is noise without an archive.
func (o ImageOptions) sizedLayer(index int) layer {
	noise := newNoise(o.LayerSize, o.Seed, index)
	name := fmt.Sprintf("layer-%d", index)
	for size := o.LayerSize; ; {
		a := newArchive(o.packing())
		a.add(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: epoch}, noise)
		spare := a.spare(o.LayerSize)
		if spare >= 0 {
			a.close(spare)
			return o.newLayer(a.packed, a.plain)
		}
		if size == 0 {
			break
		}
		size = max(size+spare, 0)
	}
	var all pieces
	all.add(noise, o.LayerSize)
	return o.newLayer(all, all)
}

func (o ImageOptions) newLayer(packed, plain pieces) layer {
	return layer{
		Blob:   &Blob{MediaType: o.layerType(), Digest: o.hash(&packed), Size: packed.size, content: &packed},
		diffID: o.hash(&plain),
	}
}

func (o ImageOptions) hash(p *pieces) digest.Digest {
	d, err := o.Algorithm.FromReader(p.reader())
	if err != nil {
		panic(fmt.Sprintf("pullthroughtest: hash layer: %v", err)) // it reads without errors
	}
	return d
}

func (o ImageOptions) packing() *packing {
	p, ok := packings[o.Compression]
	if !ok {
		panic(fmt.Sprintf("pullthroughtest: unknown Compression %q", o.Compression))
	}
	return p
}

func (o ImageOptions) layerType() string {
	if o.Docker {
		return o.packing().docker
	}
	return o.packing().oci
}
