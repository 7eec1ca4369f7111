package pullthroughtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/hostcall"
)

// storeTest is one check of one Store.
type storeTest struct {
	reporter
	store    pullthrough.Store
	patience time.Duration
	rule     *storeRule // of the check
}

// The tenants of the checks. Most checks use the first one only.
const (
	storeAccount, storeRegion = "111122223333", "us-east-1"
	otherAccount, otherRegion = "444455556666", "eu-west-1"
)

// storeOrigin and storeTime are the Origin and CheckedAt of the manifests that the
// checks put. The time has a fraction and a zone, as a proxy's clock may have.
const storeOrigin = "registry.example:5000"

var storeTime = time.Date(2026, 3, 4, 5, 6, 7, 891_234_567, time.FixedZone("", 3*60*60))

func storeRepo(name string) pullthrough.Repo {
	return pullthrough.Repo{Account: storeAccount, Region: storeRegion, Name: "store-test/" + name}
}

func storeImage(seed int64) *Image { return NewImage(ImageOptions{Seed: seed}) }

// manifestOf returns img as a proxy passes it to its Store.
func manifestOf(img *Image, tag string) *pullthrough.Manifest {
	return &pullthrough.Manifest{
		Descriptor: ocispec.Descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: int64(len(img.Content))},
		Content:    img.Content, Tag: tag, CheckedAt: storeTime, Origin: storeOrigin, Source: pullthrough.SourceFill,
	}
}

// offer puts the image with everything that it refers to. It returns the first error.
func (s *storeTest) offer(repo pullthrough.Repo, img *Image, tag string) error {
	for _, child := range img.Children {
		if err := s.offer(repo, child, ""); err != nil {
			return err
		}
	}
	for _, b := range img.Blobs() {
		if err := s.putBlob(s.Context(), repo, b.Digest, b.Size, b.Open()); err != nil {
			return fmt.Errorf("PutBlob of %s: %w", b.Digest, err)
		}
	}
	return s.store.PutManifest(s.Context(), repo, manifestOf(img, tag))
}

// put is offer for images that every Store must accept.
func (s *storeTest) put(repo pullthrough.Repo, img *Image, tag string) {
	s.Helper()
	if err := s.offer(repo, img, tag); err != nil {
		s.Fatalf("put of %s:%s failed: %v", repo.Name, tag, err)
	}
}

// putManifest puts a manifest whose blobs are in the Store already.
func (s *storeTest) putManifest(repo pullthrough.Repo, m *pullthrough.Manifest) {
	s.Helper()
	if err := s.store.PutManifest(s.Context(), repo, m); err != nil {
		s.Fatalf("PutManifest of %s:%s (Source %q) failed: %v", repo.Name, m.Tag, m.Source, err)
	}
}

// move moves a tag to img, and reports whether the Store allows it.
func (s *storeTest) move(repo pullthrough.Repo, img *Image, tag string) bool {
	s.Helper()
	err := s.offer(repo, img, tag)
	switch {
	case errors.Is(err, pullthrough.ErrImmutable):
		s.Logf("the Store moves no tag: %v", err)
		return false
	case err != nil:
		s.under(ruleMove).Fatalf("the tag %s:%s could not be moved: %v", repo.Name, tag, err)
	}
	return true
}

// manifest returns a manifest that must be there.
func (s *storeTest) manifest(repo pullthrough.Repo, ref string) *pullthrough.Manifest {
	s.Helper()
	m, err := s.store.Manifest(s.Context(), repo, ref)
	if err != nil {
		s.Fatalf("Manifest(%s, %s) failed, which was put: %v", repo.Name, ref, err)
	}
	if m == nil {
		s.under(ruleMiss).Fatalf("Manifest(%s, %s) returned no manifest and no error", repo.Name, ref)
	}
	return m
}

// wantManifest checks that ref names want and that the content is the same byte for byte.
func (s *storeTest) wantManifest(repo pullthrough.Repo, ref string, want *pullthrough.Manifest) *pullthrough.Manifest {
	s.Helper()
	m := s.manifest(repo, ref)
	for _, complaint := range manifestComplaints(m, ref, want) {
		s.Errorf("Manifest(%s, %s): %v", repo.Name, ref, complaint)
	}
	return m
}

// manifestComplaints compares m with want. Tag and CheckedAt are compared only if
// ref is a tag.
func manifestComplaints(m *pullthrough.Manifest, ref string, want *pullthrough.Manifest) (all []*brokenRule) {
	add := func(r *storeRule, format string, args ...any) { all = append(all, breaks(r, format, args...)) }
	if m.Descriptor.Digest != want.Descriptor.Digest {
		add(ruleDescriptor, "its digest is %s, want %s", m.Descriptor.Digest, want.Descriptor.Digest)
	}
	if !bytes.Equal(m.Content, want.Content) {
		add(ruleContent, "its content is %.200q, want %.200q", m.Content, want.Content)
	}
	if m.Descriptor.MediaType != want.Descriptor.MediaType {
		add(ruleDescriptor, "its media type is %q, want %q", m.Descriptor.MediaType, want.Descriptor.MediaType)
	}
	if m.Descriptor.Size != int64(len(want.Content)) {
		add(ruleDescriptor, "its size is %d, want %d", m.Descriptor.Size, len(want.Content))
	}
	if m.Origin != want.Origin {
		add(ruleOrigin, "its origin is %q, want %q", m.Origin, want.Origin)
	}
	if ref == want.Descriptor.Digest.String() {
		return all
	}
	if m.Tag != ref {
		add(ruleTag, "its tag is %q, want %q", m.Tag, ref)
	}
	if !sameTime(m.CheckedAt, want.CheckedAt) {
		add(ruleChecked, "it was checked at %v, want %v", m.CheckedAt, want.CheckedAt)
	}
	return all
}

func sameTime(got, want time.Time) bool {
	if got.IsZero() || want.IsZero() {
		return got.IsZero() == want.IsZero()
	}
	return got.Sub(want).Abs() < time.Second
}

// missComplaint says what is wrong with the error of a look-up that must miss; "":
// nothing.
func missComplaint(err error) string {
	switch {
	case err == nil:
		return "returned something, want a miss"
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("returned %q, want an error that Is fs.ErrNotExist", err)
	}
	return ""
}

// wantMiss complains about the error of a look-up that must miss. An error of another kind breaks ruleMiss, whatever the
// check is about.
func (s *storeTest) wantMiss(call string, err error, why string) {
	s.Helper()
	complaint := missComplaint(err)
	if complaint == "" {
		return
	}
	if err != nil {
		s = s.under(ruleMiss)
	}
	s.Errorf("%s %s: %s", call, complaint, why)
}

// wantNoManifest checks that ref is a miss. why completes the message.
func (s *storeTest) wantNoManifest(repo pullthrough.Repo, ref, why string) {
	s.Helper()
	_, err := s.store.Manifest(s.Context(), repo, ref)
	s.wantMiss(fmt.Sprintf("Manifest(%s, %s)", repo.Name, ref), err, why)
}

func (s *storeTest) wantNoBlob(repo pullthrough.Repo, d digest.Digest, why string) {
	s.Helper()
	_, err := s.readBlob(s.Context(), repo, d)
	s.wantMiss(fmt.Sprintf("Blob(%s, %s)", repo.Name, d), err, why)
}

// putBlob calls PutBlob as the proxy does: with a [hostcall.Body] over r, which is
// of no use once PutBlob has returned.
func (s *storeTest) putBlob(ctx context.Context, repo pullthrough.Repo, d digest.Digest, size int64, r io.ReadSeeker) error {
	lent := &lentReader{ReadSeeker: hostcall.NewBody(ctx, r, size, nil)}
	defer lent.returned.Store(true)
	desc := ocispec.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: size}
	return s.store.PutBlob(ctx, repo, desc, lent)
}

// mustPutBlob puts content under its sha256.
func (s *storeTest) mustPutBlob(repo pullthrough.Repo, content []byte) digest.Digest {
	s.Helper()
	d := digest.FromBytes(content)
	if err := s.putBlob(s.Context(), repo, d, int64(len(content)), bytes.NewReader(content)); err != nil {
		s.Fatalf("PutBlob of %d bytes into %s failed: %v", len(content), repo.Name, err)
	}
	return d
}

// lentReader is a reader that a Store may use until PutBlob returns. It implements
// io.ReadSeeker and no other interface, so a Store cannot take a shortcut with it.
type lentReader struct {
	io.ReadSeeker
	returned atomic.Bool
}

func (r *lentReader) Read(p []byte) (int, error) {
	if r.returned.Load() {
		return 0, errors.New("PutBlob has returned: its reader must not be used any more")
	}
	return r.ReadSeeker.Read(p)
}

// wantBlob checks that the blob is there and that its content is the same byte for byte.
func (s *storeTest) wantBlob(repo pullthrough.Repo, d digest.Digest, content []byte) {
	s.Helper()
	got, err := s.readBlob(s.Context(), repo, d)
	switch {
	case err != nil:
		s.Errorf("Blob(%s, %s) cannot be read, which was put: %v", repo.Name, d, err)
	case !bytes.Equal(got, content):
		s.Errorf("Blob(%s, %s) has %d bytes that are not the %d that were put", repo.Name, d, len(got), len(content))
	}
}

// open returns a blob that must be there.
func (s *storeTest) open(repo pullthrough.Repo, d digest.Digest) *pullthrough.Blob {
	s.Helper()
	b, err := s.lookUpBlob(s.Context(), repo, d)
	if err != nil {
		s.Fatalf("Blob(%s, %s) failed, which was put: %v", repo.Name, d, err)
	}
	return b
}

func (s *storeTest) lookUpBlob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	b, err := s.store.Blob(ctx, repo, d)
	if err == nil && (b == nil || b.Body == nil) {
		err = breaks(ruleMiss, "no blob and no error")
	}
	return b, err
}

// readBlob reads the whole blob in every way that its Body supports.
func (s *storeTest) readBlob(ctx context.Context, repo pullthrough.Repo, d digest.Digest) (content []byte, err error) {
	b, err := s.lookUpBlob(ctx, repo, d)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closed := b.Body.Close(); err == nil && closed != nil {
			err = fmt.Errorf("close: %w", closed)
		}
	}()
	if b.Descriptor.Digest != d {
		return nil, breaks(ruleSize, "its descriptor has the digest %q", b.Descriptor.Digest)
	}
	if onlyWrites(b) {
		return fetchBody(ctx, b.Body.(http.Handler), repo, d)
	}
	content, err = io.ReadAll(b.Body)
	if _, seeks := b.Body.(io.Seeker); err == nil && (!seeks || b.Descriptor.Size != 0) && b.Descriptor.Size != int64(len(content)) {
		err = breaks(ruleSize, "it has %d bytes and its descriptor says %d", len(content), b.Descriptor.Size)
	}
	if h, ok := b.Body.(http.Handler); ok && err == nil {
		written, fetchErr := fetchBody(ctx, h, repo, d)
		if err = fetchErr; err == nil && !bytes.Equal(written, content) {
			err = fmt.Errorf("its handler writes %d bytes that are not the %d that its Read returns", len(written), len(content))
		}
	}
	return content, err
}

// onlyWrites reports whether the Body only answers requests itself and must not be
// read. A Body that can be read as well can also seek.
func onlyWrites(b *pullthrough.Blob) bool {
	_, writes := b.Body.(http.Handler)
	_, seeks := b.Body.(io.Seeker)
	return writes && !seeks
}

// fetchBody returns what a client gets from a Body that answers requests itself.
// It follows a redirect.
func fetchBody(ctx context.Context, h http.Handler, repo pullthrough.Repo, d digest.Digest) ([]byte, error) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/v2/"+repo.Name+"/blobs/"+d.String(), nil))
	resp := w.Result()
	if to := resp.Header.Get("Location"); resp.StatusCode/100 == 3 && to != "" {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, to, nil)
		if err != nil {
			return nil, err
		}
		if resp, err = http.DefaultClient.Do(r); err != nil {
			return nil, err
		}
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("its handler answers %s", resp.Status)
	}
	return io.ReadAll(resp.Body)
}

// returnsInTime reports whether f returns within the check's patience. f goes on
// if it does not, and must return some time.
func (s *storeTest) returnsInTime(f func()) bool {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f()
	}()
	timer := time.NewTimer(s.patience)
	defer timer.Stop()
	select {
	case <-ended:
		return true
	case <-timer.C:
		return false
	}
}
