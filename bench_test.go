package pullthrough_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// inParallel calls f n times at once.
func inParallel(n int, f func(i int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// reads are large enough for the client to cost little beside the server.
var readBuffers = sync.Pool{New: func() any { return new([128 << 10]byte) }}

// client is a registry client that does no more than it must.
type client struct {
	*http.Client
	token string // sent as Bearer; "": none
}

func newClient(b *testing.B, token string) *client {
	transport := &http.Transport{DialContext: pullthroughtest.DialLoopback, MaxIdleConnsPerHost: 64, DisableCompression: true}
	b.Cleanup(transport.CloseIdleConnections)
	return &client{&http.Client{Transport: transport}, token}
}

// get reads what is at url into w, checks its length, and returns how long its
// first byte took. A nil w: nobody wants it.
func (c *client) get(url string, size int64, w io.Writer) (first time.Duration, err error) {
	start := time.Now()
	resp, err := c.open(url)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s: %s", url, resp.Status)
	}
	buf := readBuffers.Get().(*[128 << 10]byte)
	defer readBuffers.Put(buf)
	var got int64
	for {
		n, err := resp.Body.Read(buf[:])
		if got == 0 && n > 0 {
			first = time.Since(start)
		}
		got += int64(n)
		if w != nil && n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return first, err
			}
		}
		switch {
		case err == io.EOF && got == size:
			return first, nil
		case err != nil:
			return first, fmt.Errorf("%s: %w after %d bytes of %d", url, err, got, size)
		}
	}
}

func (c *client) open(url string) (*http.Response, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	return c.Do(req)
}

// verify gets the whole of what is at url once and checks its sha256.
func (c *client) verify(b *testing.B, url string, size int64, d digest.Digest) {
	b.Helper()
	h := sha256.New()
	if _, err := c.get(url, size, h); err != nil {
		b.Fatal(err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != d.Encoded() {
		b.Fatalf("%s has the sha256 %s", url, got)
	}
}

// layerStore keeps blobs in files and the rest in memory: the simplest Store
// that a large layer can pass into. A blob is in all repositories.
type layerStore struct {
	*memstore.Store
	dir string
}

func newLayerStore(b *testing.B) layerStore {
	return layerStore{memstore.New(), b.TempDir()}
}

func (s layerStore) path(d digest.Digest) string { return filepath.Join(s.dir, d.Encoded()) }

func (s layerStore) Blob(_ context.Context, _ pullthrough.Repo, d digest.Digest) (*pullthrough.Blob, error) {
	f, err := os.Open(s.path(d))
	if err != nil {
		return nil, err
	}
	return &pullthrough.Blob{Descriptor: ocispec.Descriptor{Digest: d}, Body: f}, nil
}

func (s layerStore) PutBlob(_ context.Context, _ pullthrough.Repo, desc ocispec.Descriptor, r io.ReadSeeker) error {
	f, err := os.CreateTemp(s.dir, "put-")
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(f.Close(), os.Rename(f.Name(), s.path(desc.Digest)))
}

// stagingStore is a layerStore that lends the place for a download.
type stagingStore struct{ layerStore }

func (s stagingStore) StageBlob(context.Context, pullthrough.Repo, digest.Digest) (pullthrough.Stage, error) {
	f, err := os.CreateTemp(s.dir, "stage-")
	return &layerStage{f, s.layerStore}, err
}

type layerStage struct {
	*os.File
	store layerStore
}

func (s *layerStage) Open() (*os.File, error) { return os.Open(s.Name()) }

func (s *layerStage) Commit(_ context.Context, desc ocispec.Descriptor) error {
	return errors.Join(os.Rename(s.Name(), s.store.path(desc.Digest)), s.Close())
}

func (s *layerStage) Abort() error { return errors.Join(os.Remove(s.Name()), s.Close()) }

// resetPeak forgets the peak resident size so far and returns the present one,
// in bytes; 0 where only Linux tells.
func resetPeak(b *testing.B) int64 {
	b.Helper()
	if runtime.GOOS != "linux" || os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) != nil {
		return 0
	}
	return peakRSS(b)
}

func peakRSS(b *testing.B) int64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib << 10
		}
	}
	b.Fatal("no VmHWM")
	return 0
}
