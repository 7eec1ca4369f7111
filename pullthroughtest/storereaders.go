package pullthroughtest

import (
	"bytes"
	"errors"
	"io"
	"sync/atomic"
	"testing/iotest"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
)

var readerChecks = []storeCheck{
	{name: "a reader may be slow and stubborn", rule: ruleReader, run: checkPieces},
	{name: "a reader that fails leaves nothing", rule: ruleWhole, run: checkFailing},
	{name: "a reader that fails leaves what was there", rule: ruleWhole, run: checkFailingAgain},
	{name: "content without its digest", rule: ruleWhole, run: checkWrong},
	{name: "a reader that calls the Store", rule: ruleLock, run: checkCalls},
	{name: "a reader that panics leaves nothing and no lock", rule: ruleLock, run: checkPanics},
}

var errReader = errors.New("the reader failed, as the check wants it")

// scriptedReader reads content. Each time when it has reached the offset at, it
// calls then before it returns any byte after that offset.
type scriptedReader struct {
	content []byte
	off     int64
	at      int64
	then    func() error
}

func (r *scriptedReader) Read(p []byte) (int, error) {
	end := int64(len(r.content))
	if r.off == r.at {
		if err := r.then(); err != nil {
			return 0, err
		}
	} else if r.off < r.at {
		end = min(end, r.at)
	}
	if r.off >= int64(len(r.content)) {
		return 0, io.EOF
	}
	n := copy(p, r.content[r.off:end])
	r.off += int64(n)
	return n, nil
}

func (r *scriptedReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.off
	case io.SeekEnd:
		offset += int64(len(r.content))
	}
	if offset < 0 {
		return 0, errors.New("seek before the start")
	}
	r.off = offset
	return offset, nil
}

// failAt returns a reader of content that fails at the offset at.
func failAt(content []byte, at int64) *scriptedReader {
	return &scriptedReader{content: content, at: at, then: func() error { return errReader }}
}

// stubborn has the Read of one reader and the Seek of another.
type stubborn struct {
	io.Seeker
	io.Reader
}

func checkPieces(s *storeTest) {
	repo := storeRepo("pieces")
	for i, wrap := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.HalfReader, iotest.DataErrReader, hesitant} {
		content := storeNoise(int64(20+i), 100_000)
		d, r := digest.FromBytes(content), bytes.NewReader(content)
		if err := s.putBlob(s.Context(), repo, d, int64(len(content)), stubborn{r, wrap(r)}); err != nil {
			s.Errorf("PutBlob from a reader that gives little at a time failed: %v", err)
			continue
		}
		s.wantBlob(repo, d, content)
	}
}

// hesitant returns a reader that reads little at a time. Every second Read returns
// no bytes and no error.
func hesitant(r io.Reader) io.Reader { return &hesitantReader{Reader: r} }

type hesitantReader struct {
	io.Reader
	calls int
}

func (r *hesitantReader) Read(p []byte) (int, error) {
	if r.calls++; r.calls%2 == 1 {
		return 0, nil
	}
	return r.Reader.Read(p[:min(len(p), 9000)])
}

func checkFailing(s *storeTest) {
	repo := storeRepo("failing")
	for i, failed := range []struct {
		size   int
		reader func(content []byte) io.ReadSeeker
	}{
		{200_000, func(c []byte) io.ReadSeeker { return failAt(c, 0) }},
		{200_000, func(c []byte) io.ReadSeeker { return failAt(c, 100_000) }},
		{200_000, func(c []byte) io.ReadSeeker { return failAt(c, 199_999) }},
		{200_000, func(c []byte) io.ReadSeeker { return bytes.NewReader(c[:199_999]) }},
		{200_000, func([]byte) io.ReadSeeker { return bytes.NewReader(nil) }},
		{6 << 20, func(c []byte) io.ReadSeeker { return failAt(c, 5<<20) }},
		{6 << 20, func(c []byte) io.ReadSeeker { return bytes.NewReader(c[:5<<20]) }},
	} {
		content, size := storeNoise(int64(30+i), failed.size), int64(failed.size)
		d := digest.FromBytes(content)
		if err := s.putBlob(s.Context(), repo, d, size, failed.reader(content)); err == nil {
			s.Errorf("PutBlob returned no error though its reader failed or ended early (case %d)", i)
		}
		s.wantNoBlob(repo, d, "after its put has failed: nothing half-done is kept")
		if err := s.putBlob(s.Context(), repo, d, size, bytes.NewReader(content)); err != nil {
			s.Errorf("PutBlob failed after another put of the blob had failed: %v", err)
			continue
		}
		s.wantBlob(repo, d, content)
	}
}

func checkFailingAgain(s *storeTest) {
	repo, other, content := storeRepo("failing-again"), storeRepo("failing-elsewhere"), storeNoise(40, 200_000)
	d, size := s.mustPutBlob(repo, content), int64(len(content))
	for _, at := range []int64{0, size / 2} {
		_ = s.putBlob(s.Context(), repo, d, size, failAt(content, at)) // the Store need not read a blob that it has
		s.wantBlob(repo, d, content)
		if err := s.putBlob(s.Context(), other, d, size, failAt(content, at)); err != nil {
			s.wantNoBlob(other, d, "after its put has failed")
		} else {
			s.wantBlob(other, d, content)
		}
		s.wantBlob(repo, d, content)
	}
	_ = s.putBlob(s.Context(), repo, d, size, bytes.NewReader(content[:10]))
	s.wantBlob(repo, d, content)
}

// checkWrong puts content that does not have its digest, which a proxy never does. A
// Store may trust the proxy. If it refuses the content, it must not keep it.
func checkWrong(s *storeTest) {
	repo, content := storeRepo("wrong"), storeNoise(42, 50_000)
	d := digest.FromBytes(storeNoise(43, 50_000))
	if err := s.putBlob(s.Context(), repo, d, int64(len(content)), bytes.NewReader(content)); err != nil {
		s.wantNoBlob(repo, d, "after its put was refused, for content of another digest")
	}
	img, other := storeImage(71), storeImage(72)
	s.put(repo, img, "v1")
	wrong := manifestOf(other, "v1")
	wrong.Content = img.Content
	if err := s.store.PutManifest(s.Context(), repo, wrong); err != nil {
		s.wantNoManifest(repo, other.Digest.String(), "after its put was refused, for content of another digest")
		s.wantManifest(repo, "v1", manifestOf(img, "v1"))
	}
}

// checkCalls makes the reader call the Store, as a host's own code may do while its
// Store reads. A Store that reads while it holds its lock deadlocks then.
func checkCalls(s *storeTest) {
	repo, other := storeRepo("calls"), storeRepo("calls-too")
	img, content := storeImage(73), storeNoise(44, 6<<20)
	s.put(repo, img, "v1")
	d := digest.FromBytes(content)
	var called, late atomic.Bool
	r := &scriptedReader{content: content, at: 5 << 20}
	r.then = func() error {
		if called.Swap(true) {
			return nil
		}
		if !s.returnsInTime(func() { s.makeEveryCall(repo, other, img) }) {
			late.Store(true)
			return errReader // releases the calls that wait for this PutBlob
		}
		return nil
	}
	err := s.putBlob(s.Context(), repo, d, int64(len(content)), r)
	switch {
	case late.Load():
		s.Fatalf("while PutBlob reads, another call of the Store takes more than %v", s.patience)
	case err != nil:
		s.Fatalf("PutBlob failed: %v", err)
	}
	s.wantBlob(repo, d, content)
	s.wantManifest(repo, "during", manifestOf(storeImage(74), "during"))
}

// makeEveryCall looks up and puts other content. It may return after the check has ended.
func (s *storeTest) makeEveryCall(repo, other pullthrough.Repo, img *Image) {
	if m, err := s.store.Manifest(s.Context(), repo, "v1"); err == nil && m.Descriptor.Digest != img.Digest {
		s.Errorf("Manifest(%s, v1) is another one while PutBlob reads", repo.Name)
	}
	_, _ = s.readBlob(s.Context(), repo, img.Layers[0].Digest)
	_, _ = s.readBlob(s.Context(), repo, digest.FromString("not there"))
	_ = s.offer(repo, storeImage(74), "during")
	_ = s.offer(other, storeImage(74), "during")
}

func checkPanics(s *storeTest) {
	repo, content := storeRepo("panics"), storeNoise(45, 100_000)
	d, size := digest.FromBytes(content), int64(len(content))
	var err error
	put := func() {
		defer func() {
			if recover() != nil { // a Store may pass the panic on
				err = errReader
			}
		}()
		err = s.putBlob(s.Context(), repo, d, size, &scriptedReader{content: content, at: size / 2, then: func() error { panic(errReader) }})
	}
	if !s.returnsInTime(put) {
		s.Fatalf("PutBlob does not return after its reader has panicked")
	}
	if err == nil {
		s.Errorf("PutBlob returned no error though its reader panicked")
	}
	ok := s.returnsInTime(func() {
		_, _ = s.store.Manifest(s.Context(), repo, "v1")
		if _, err := s.readBlob(s.Context(), repo, d); missComplaint(err) != "" {
			s.Errorf("Blob(%s, %s) %s after its reader has panicked", repo.Name, d, missComplaint(err))
		}
		if err := s.putBlob(s.Context(), repo, d, size, bytes.NewReader(content)); err != nil {
			s.Errorf("PutBlob failed after the reader of another put had panicked: %v", err)
		}
	})
	if !ok {
		s.Fatalf("after a reader has panicked the Store answers no more")
	}
	s.wantBlob(repo, d, content)
}
