package pullthroughtest

import (
	"bytes"
	_ "crypto/sha256" // go-digest supports only the algorithms that are linked in
	_ "crypto/sha512"
	"encoding/binary"
	"io"
	"math/rand/v2"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blob is a config or a layer. It is immutable and safe for concurrent use.
type Blob struct {
	MediaType string
	Digest    digest.Digest
	Size      int64

	Annotations map[string]string // of its descriptor; nil: none

	content io.ReaderAt
}

// Descriptor describes the blob the way a manifest does.
func (b *Blob) Descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: b.MediaType, Digest: b.Digest, Size: b.Size, Annotations: b.Annotations}
}

// Open returns a new reader of the blob's content. The reader can also seek and read at any offset.
func (b *Blob) Open() *io.SectionReader { return io.NewSectionReader(b.content, 0, b.Size) }

func newBlob(mediaType string, algorithm digest.Algorithm, content []byte) *Blob {
	return &Blob{
		MediaType: mediaType,
		Digest:    algorithm.FromBytes(content),
		Size:      int64(len(content)),
		content:   bytes.NewReader(content),
	}
}

// noise is endless content that repeats one random block. Each repetition is stamped with its number, so shifted or
// spliced content never passes for the original. Reading costs one copy.
type noise struct {
	block []byte // noiseBlock bytes, or fewer if the content is shorter
}

const (
	noiseBlock = 1 << 20
	noiseStamp = 8
)

func newNoise(size, seed int64, index int) *noise {
	source := rand.New(rand.NewPCG(uint64(seed), uint64(index)))
	n := &noise{block: make([]byte, min(size, noiseBlock))}
	var word [8]byte
	for at := 0; at < len(n.block); at += len(word) {
		binary.LittleEndian.PutUint64(word[:], source.Uint64())
		copy(n.block[at:], word[:])
	}
	return n
}

// ReadAt implements io.ReaderAt. It never fails and knows no end: the caller, an io.SectionReader, ends the content.
func (n *noise) ReadAt(p []byte, offset int64) (int, error) {
	for done := 0; done < len(p); {
		at := offset + int64(done)
		number, from := at/noiseBlock, int(at%noiseBlock)
		if number > 0 && from < noiseStamp {
			done += copy(p[done:], n.stamp(number)[from:])
			continue
		}
		done += copy(p[done:], n.block[from:])
	}
	return len(p), nil
}

// stamp returns the bytes that replace the first ones of a repetition. number is its number, which is not 0.
func (n *noise) stamp(number int64) []byte {
	first := binary.LittleEndian.Uint64(n.block)
	return binary.LittleEndian.AppendUint64(nil, first^uint64(number))
}
