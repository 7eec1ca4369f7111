package pullthroughtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough"
)

var blobChecks = []storeCheck{
	{name: "blobs come back byte for byte", rule: rulePutBlob, run: checkBlobs},
	{name: "a blob is seen where it was put", rule: ruleVisible, run: checkVisible},
	{name: "readers of one blob are independent", rule: ruleBody, run: checkIndependent},
	{name: "a body that seeks seeks right", rule: ruleBody, run: checkSeek},
	{name: "a body may be closed early", rule: ruleBody, run: checkClose},
}

// blobContent returns the content of one of our own blobs, which can be read without errors.
func blobContent(b *Blob) []byte {
	content, err := io.ReadAll(b.Open())
	if err != nil {
		panic(fmt.Sprintf("pullthroughtest: read noise: %v", err))
	}
	return content
}

// storeNoise returns size bytes that differ for each seed.
func storeNoise(seed int64, size int) []byte {
	content := make([]byte, size)
	_, _ = newNoise(int64(size), seed, 1000).ReadAt(content, 0)
	return content
}

func checkBlobs(s *storeTest) {
	repo := storeRepo("blobs")
	blobs := map[string][]byte{
		"empty": {}, "one byte": {7}, "NUL bytes": make([]byte, 300), "no text": []byte("\xff\xfe\x80\r\n\x00{}"),
		"32 KiB": storeNoise(1, 32<<10), "1 MiB and a byte": storeNoise(2, 1<<20+1), "9 MiB and a bit": storeNoise(3, 9<<20+12_345),
	}
	for name, content := range blobs {
		d := digest.FromBytes(content)
		if err := s.putBlob(s.Context(), repo, d, int64(len(content)), bytes.NewReader(content)); err != nil {
			s.Errorf("%s: PutBlob failed: %v", name, err)
			continue
		}
		s.wantBlob(repo, d, content)
	}
	for _, content := range blobs { // once more, when all are there
		s.wantBlob(repo, digest.FromBytes(content), content)
	}
	content := storeNoise(4, 70_000)
	d := digest.SHA512.FromBytes(content)
	if err := s.putBlob(s.Context(), repo, d, int64(len(content)), bytes.NewReader(content)); err != nil {
		s.Logf("a blob by sha512 is refused, and so would be fetched for every pull: %v", err)
		if _, err := s.readBlob(s.Context(), repo, d); err == nil {
			s.under(ruleWhole).Errorf("Blob(%s, %s) is there, and PutBlob has failed", repo.Name, d)
		}
		return
	}
	s.wantBlob(repo, d, content)
}

func checkVisible(s *storeTest) {
	repo, other, third := storeRepo("seen"), storeRepo("seen-too"), storeRepo("seen/below")
	content := storeNoise(5, 50_000)
	d := s.mustPutBlob(repo, content)
	s.put(other, storeImage(70), "v1") // it is there, and has other blobs
	for _, r := range []pullthrough.Repo{other, third} {
		s.wantNoBlob(r, d, "when it was put into another repository only: who may pull there need not be allowed to pull here")
	}
	s.mustPutBlob(other, content)
	s.wantBlob(other, d, content)
	s.wantNoBlob(third, d, "when it was put into two other repositories only")
	s.wantBlob(repo, d, content)
}

// reader opens a blob and returns its body, or nil if the body must not be read because it answers requests itself.
func (s *storeTest) reader(repo pullthrough.Repo, d digest.Digest) io.ReadCloser {
	s.Helper()
	b := s.open(repo, d)
	if onlyWrites(b) {
		if err := b.Body.Close(); err != nil {
			s.Errorf("Close of a Body that was not used failed: %v", err)
		}
		return nil
	}
	return b.Body
}

func checkIndependent(s *storeTest) {
	repo, content := storeRepo("independent"), storeNoise(6, 200_000)
	d := s.mustPutBlob(repo, content)
	first, second := s.reader(repo, d), s.reader(repo, d)
	if first == nil || second == nil {
		s.wantBlob(repo, d, content)
		return
	}
	var got [2][]byte
	step := make([]byte, 10_000)
	for off := 0; off < len(content); off += len(step) {
		for i, r := range []io.Reader{first, second} {
			if _, err := io.ReadFull(r, step); err != nil {
				s.Fatalf("reader %d of one blob failed at %d: %v", i, off, err)
			}
			got[i] = append(got[i], step...)
			if i == 0 && off == 50_000 { // a third reader that ends must not affect these two
				s.wantBlob(repo, d, content)
			}
		}
	}
	for i, b := range got {
		if !bytes.Equal(b, content) {
			s.Errorf("reader %d of one blob, read by turns with another, got other bytes", i)
		}
	}
	if err := errors.Join(first.Close(), second.Close()); err != nil {
		s.Errorf("Close failed: %v", err)
	}
}

func checkSeek(s *storeTest) {
	repo, content := storeRepo("seek"), storeNoise(7, 300_000)
	d := s.mustPutBlob(repo, content)
	body := s.reader(repo, d)
	seeker, ok := body.(io.ReadSeeker)
	if !ok {
		s.Logf("its bodies do not seek: clients cannot resume a pull by a Range")
		s.wantBlob(repo, d, content)
		return
	}
	defer func() { _ = body.Close() }()
	part := make([]byte, 1000)
	for _, step := range []struct {
		whence         int
		offset, absent int64
	}{
		{io.SeekEnd, 0, int64(len(content))}, {io.SeekStart, 0, 0}, {io.SeekStart, 123_456, 123_456}, {io.SeekCurrent, 1000, 125_456},
		{io.SeekEnd, -1000, int64(len(content)) - 1000}, {io.SeekStart, 5, 5}, {io.SeekCurrent, -1005, 0},
	} {
		at, err := seeker.Seek(step.offset, step.whence)
		if err != nil || at != step.absent {
			s.Fatalf("Seek(%d, %d) returned %d, %v, want %d", step.offset, step.whence, at, err, step.absent)
		}
		n, err := io.ReadFull(seeker, part)
		if want := content[at:min(at+1000, int64(len(content)))]; !bytes.Equal(part[:n], want) {
			s.Fatalf("%d bytes read after a Seek to %d (%v) are not those of the blob", n, at, err)
		}
	}
	if _, err := seeker.Seek(-1, io.SeekStart); err == nil {
		s.Errorf("Seek before the start returned no error")
	}
}

func checkClose(s *storeTest) {
	repo, content := storeRepo("close"), storeNoise(8, 3<<20)
	d := s.mustPutBlob(repo, content)
	for _, n := range []int{0, 1, 40_000, len(content)} {
		body := s.reader(repo, d)
		if body == nil {
			break
		}
		if _, err := io.ReadFull(body, make([]byte, n)); err != nil {
			s.Fatalf("the first %d bytes cannot be read: %v", n, err)
		}
		if err := body.Close(); err != nil {
			s.Errorf("Close after %d bytes failed: %v", n, err)
		}
	}
	s.wantBlob(repo, d, content)
	again := s.mustPutBlob(repo, storeNoise(9, 1000))
	s.wantBlob(repo, again, storeNoise(9, 1000))
}
