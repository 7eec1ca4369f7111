package pullthroughtest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"sort"
	"time"
)

// archive is a tar file and the packed form of it. Both are read in place: of long content no copy is made. The packing
// is written down here in place of the standard library's, so that an image has the same digest with every version of Go.
type archive struct {
	packing *packing
	gap     bytes.Buffer // what comes before the next content: padding and headers
	plain   pieces
	packed  pieces
}

func newArchive(p *packing) *archive {
	a := &archive{packing: p}
	a.packed.addBytes(p.begin)
	return a
}

// add adds a file with as much of content as the header says.
func (a *archive) add(header *tar.Header, content io.ReaderAt) {
	if err := tar.NewWriter(&a.gap).WriteHeader(header); err != nil {
		panic(fmt.Sprintf("pullthroughtest: archive %s: %v", header.Name, err))
	}
	a.flush()
	if header.Size == 0 {
		return
	}
	a.plain.add(content, header.Size)
	a.raw(content, header.Size, false)
	a.gap.Write(make([]byte, -header.Size&(tarBlock-1)))
}

// addFiles adds all of files, in the order of their names. Owners and times are left out, since they are not the same everywhere.
func (a *archive) addFiles(files fs.FS) error {
	return fs.WalkDir(files, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		var content []byte
		var target string
		switch info.Mode().Type() {
		case 0:
			content, err = fs.ReadFile(files, name)
		case fs.ModeSymlink:
			target, err = fs.ReadLink(files, name)
		}
		if err != nil {
			return err
		}
		header, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		plain := &tar.Header{
			Typeflag: header.Typeflag, Name: name, Linkname: target, Mode: header.Mode, Size: int64(len(content)), ModTime: epoch,
		}
		if entry.IsDir() {
			plain.Name += "/"
		}
		a.add(plain, bytes.NewReader(content))
		return nil
	})
}

// close ends the archive, and adds so many zero bytes that nothing can make shorter. Readers of archives ignore them.
func (a *archive) close(zeros int64) {
	a.gap.Write(make([]byte, 2*tarBlock))
	a.flush()
	end := bytes.NewReader(make([]byte, zeros))
	a.plain.add(end, zeros)
	a.raw(end, zeros, true)
	if a.packing.trailer {
		sum := crc32.NewIEEE()
		_, _ = io.Copy(sum, a.plain.reader()) // neither can fail
		a.packed.addBytes(gzipTrailer(sum.Sum32(), a.plain.size))
	}
}

// spare is what close may add in zero bytes for a packed size; negative: it is too much already.
func (a *archive) spare(size int64) int64 {
	tail := bytes.NewBuffer(a.gap.Bytes())
	tail.Write(make([]byte, 2*tarBlock))
	size -= a.packed.size + int64(len(a.packing.runs(tail.Bytes()))+len(a.packing.raw(0, true)))
	if a.packing.trailer {
		size -= gzipTrailerSize
	}
	return size
}

func (a *archive) flush() {
	gap := bytes.Clone(a.gap.Bytes())
	a.gap.Reset()
	a.plain.addBytes(gap)
	a.packed.addBytes(a.packing.runs(gap))
}

func (a *archive) raw(content io.ReaderAt, size int64, last bool) {
	b := &blocks{content: content, size: size, packing: a.packing, last: last}
	a.packed.add(b, b.length())
}

const tarBlock = 512

// epoch is the time of all files.
var epoch = time.Unix(0, 0)

// pieces is content that is made of pieces. Safe for concurrent use when nothing is added any more.
type pieces struct {
	list []piece
	size int64
}

type piece struct {
	content io.ReaderAt
	end     int64 // where the next one begins
}

func (p *pieces) add(content io.ReaderAt, size int64) {
	if size > 0 {
		p.size += size
		p.list = append(p.list, piece{content, p.size})
	}
}

func (p *pieces) addBytes(content []byte) { p.add(bytes.NewReader(content), int64(len(content))) }

func (p *pieces) reader() *io.SectionReader { return io.NewSectionReader(p, 0, p.size) }

// ReadAt implements io.ReaderAt.
func (p *pieces) ReadAt(buf []byte, offset int64) (done int, err error) {
	i := sort.Search(len(p.list), func(i int) bool { return p.list[i].end > offset })
	for ; done < len(buf) && i < len(p.list); i++ {
		begin := int64(0)
		if i > 0 {
			begin = p.list[i-1].end
		}
		at := offset + int64(done)
		part := buf[done:]
		part = part[:min(int64(len(part)), p.list[i].end-at)]
		n, err := p.list[i].content.ReadAt(part, at-begin)
		done += n
		if n < len(part) {
			return done, err
		}
	}
	if done < len(buf) {
		return done, io.EOF
	}
	return done, nil
}

// blocks is content in blocks with a header each, which is how both gzip and zstd write down what cannot be packed.
type blocks struct {
	content io.ReaderAt
	size    int64
	packing *packing
	last    bool // the last block is the last of all
}

// length is that of the content with the headers. What is last has a header also if it is empty.
func (b *blocks) length() int64 {
	count := (b.size + b.packing.block - 1) / b.packing.block
	if b.last {
		count = max(count, 1)
	}
	return b.size + count*b.headerSize()
}

func (b *blocks) headerSize() int64 { return int64(len(b.packing.raw(0, false))) }

// ReadAt implements io.ReaderAt for what is within the length.
func (b *blocks) ReadAt(buf []byte, offset int64) (done int, err error) {
	headerSize := b.headerSize()
	for done < len(buf) {
		at := offset + int64(done)
		begin := at / (headerSize + b.packing.block) * b.packing.block
		within := at % (headerSize + b.packing.block)
		size := min(b.packing.block, b.size-begin)
		if within < headerSize {
			done += copy(buf[done:], b.packing.raw(size, b.last && begin+size == b.size)[within:])
			continue
		}
		part := buf[done:]
		part = part[:min(int64(len(part)), headerSize+size-within)]
		n, err := b.content.ReadAt(part, begin+within-headerSize)
		done += n
		if n < len(part) {
			return done, err
		}
	}
	return done, nil
}
