package pullthroughtest

import "encoding/binary"

// packing is a form in which a layer's archive is written down. What packs well, the headers and the padding of a tar,
// goes through runs; the content of files goes as it is.
type packing struct {
	oci, docker string // the media types of layers
	begin       []byte
	runs        func(content []byte) []byte        // packs runs of equal bytes
	raw         func(size int64, last bool) []byte // is the header of a block that is not packed, of a size up to block
	block       int64
	trailer     bool // at the end there is a gzipTrailer
}

const (
	ociLayer    = "application/vnd.oci.image.layer.v1.tar"
	dockerLayer = "application/vnd.docker.image.rootfs.diff.tar"
)

// packings are the values of ImageOptions.Compression.
var packings = map[string]*packing{
	"gzip": {
		oci: ociLayer + "+gzip", docker: dockerLayer + ".gzip",
		begin: []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}, // deflate, no flags, no time, no system
		runs:  deflateRuns, raw: deflateRaw, block: 0xffff, trailer: true,
	},
	"zstd": {
		oci: ociLayer + "+zstd", docker: dockerLayer + ".zstd",
		begin: []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3}, // no size, no checksum, a window of 128 KiB
		runs:  zstdRuns, raw: zstdRaw, block: 128 << 10,
	},
	"none": {
		oci: ociLayer, docker: dockerLayer,
		runs: func(content []byte) []byte { return content },
		raw:  func(int64, bool) []byte { return nil }, block: 1 << 62,
	},
}

// gzipTrailer ends a gzip file: the checksum and the size of what is in it (RFC 1952, section 2.3.1).
func gzipTrailer(sum uint32, size int64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, sum)
	return binary.LittleEndian.AppendUint32(b, uint32(size))
}

const gzipTrailerSize = 8

// deflateRaw is the header of a stored block (RFC 1951, section 3.2.4).
func deflateRaw(size int64, last bool) []byte {
	b := []byte{0}
	if last {
		b[0] = 1
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(size))
	return binary.LittleEndian.AppendUint16(b, ^uint16(size))
}

// deflateRuns makes one block with fixed Huffman codes (RFC 1951, section 3.2.6), and an empty stored block behind it
// that ends at a whole byte.
func deflateRuns(content []byte) []byte {
	var w bitWriter
	w.write(0b01<<1, 3) // not the last block; fixed codes
	eachRun(content, func(value byte, n int) {
		w.symbol(int(value))
		for n--; n > 0; {
			switch {
			case n >= 258:
				w.match(285)
				n -= 258
			case n >= 3:
				length := min(n, 10)
				w.match(257 + length - 3)
				n -= length
			default:
				w.symbol(int(value))
				n--
			}
		}
	})
	w.symbol(256) // the end of the block
	w.write(0, 3) // not the last block; stored
	return append(w.bytes, deflateRaw(0, false)[1:]...)
}

// bitWriter writes bits, the lowest of each byte first.
type bitWriter struct {
	bytes []byte
	count int
}

func (w *bitWriter) write(bits, n int) {
	for i := range n {
		if w.count%8 == 0 {
			w.bytes = append(w.bytes, 0)
		}
		w.bytes[w.count/8] |= byte(bits>>i&1) << (w.count % 8)
		w.count++
	}
}

// symbol writes the fixed code of a literal or a length. The highest bit of a code comes first.
func (w *bitWriter) symbol(s int) {
	code, n := 0b00110000+s, 8
	switch {
	case s >= 280:
		code = 0b11000000 + s - 280
	case s >= 256:
		code, n = s-256, 7
	case s >= 144:
		code, n = 0b110010000+s-144, 9
	}
	for i := n - 1; i >= 0; i-- {
		w.write(code>>i, 1)
	}
}

// match writes a length, and that it repeats the byte before.
func (w *bitWriter) match(length int) {
	w.symbol(length)
	w.write(0, 5)
}

// zstdRaw is the header of a raw block (RFC 8878, section 3.1.1.2).
func zstdRaw(size int64, last bool) []byte {
	header := uint32(size) << 3
	if last {
		header |= 1
	}
	return binary.LittleEndian.AppendUint32(nil, header)[:3]
}

// zstdRuns makes a block of one byte and a count for each long run, and a raw block for all that is between two of them.
func zstdRuns(content []byte) (packed []byte) {
	const long = 8 // from here on a block of its own is shorter
	var between []byte
	raw := func() {
		if len(between) > 0 {
			packed = append(append(packed, zstdRaw(int64(len(between)), false)...), between...)
			between = between[:0]
		}
	}
	eachRun(content, func(value byte, n int) {
		if n < long {
			for range n {
				between = append(between, value)
			}
			return
		}
		raw()
		header := zstdRaw(int64(n), false)
		header[0] |= 1 << 1 // the block repeats one byte
		packed = append(append(packed, header...), value)
	})
	raw()
	return packed
}

// eachRun calls f for each run of equal bytes.
func eachRun(content []byte, f func(value byte, n int)) {
	for len(content) > 0 {
		n := 1
		for n < len(content) && content[n] == content[0] {
			n++
		}
		f(content[0], n)
		content = content[n:]
	}
}
