package diststore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough"
)

const (
	// A body that breaks is opened again where it broke: so often in a row without
	// a byte in between, and so often in all.
	maxFailures = 3
	maxReopened = 16
	// stallTime is how long a read may take.
	stallTime = time.Minute
)

// body reads a blob. It holds no connection before it is read, nor after a Seek
// to elsewhere.
type body struct {
	bucket bucket
	place  place
	gone   func() // called when the object turns out not to be there

	ctx    context.Context // of all reads: the request's values and not its end
	cancel context.CancelFunc

	offset   int64
	closed   bool
	open     *opened // nil: not open
	failures int     // since the last byte
	reopened int
}

// opened is the object from an offset on.
type opened struct {
	io.ReadCloser
	cancel context.CancelFunc
	stall  *time.Timer // ends a read that takes too long
}

func newBody(ctx context.Context, b bucket, p place, gone func()) *body {
	y := &body{bucket: b, place: p, gone: gone}
	y.ctx, y.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return y
}

// Read implements [io.Reader].
func (y *body) Read(p []byte) (int, error) {
	switch left := y.place.size - y.offset; {
	case y.closed:
		return 0, fs.ErrClosed
	case len(p) == 0:
		return 0, nil
	case left <= 0:
		return 0, io.EOF
	case int64(len(p)) > left:
		p = p[:left]
	}
	for {
		n, err := y.read(p)
		y.offset += int64(n)
		if n > 0 {
			y.failures = 0
		}
		if err == nil {
			return n, nil
		}
		y.drop()
		if y.offset == y.place.size {
			return n, nil
		}
		if !y.mayReopen(err) {
			return n, err
		}
		if n > 0 {
			return n, nil
		}
	}
}

// mayReopen counts what has broken.
func (y *body) mayReopen(err error) bool {
	if errors.Is(err, fs.ErrNotExist) {
		y.gone()
		return false
	}
	y.reopened++
	y.failures++
	return y.failures < maxFailures && y.reopened < maxReopened && y.ctx.Err() == nil
}

// read is one try.
func (y *body) read(p []byte) (int, error) {
	if y.open == nil {
		if err := y.reopen(); err != nil {
			return 0, err
		}
	}
	y.open.stall.Reset(stallTime)
	n, err := y.open.Read(p)
	y.open.stall.Stop()
	switch {
	case err == io.EOF && y.offset+int64(n) < y.place.size:
		err = fmt.Errorf("%s ends at %d bytes of %d: %w", y.place.data, y.offset+int64(n), y.place.size, io.ErrUnexpectedEOF)
	case err != io.EOF:
		err = fault(y.ctx, "read", y.place.data, err)
	}
	return n, err
}

func (y *body) reopen() error {
	ctx, cancel := context.WithCancel(y.ctx)
	stall := time.AfterFunc(stallTime, cancel)
	r, err := y.bucket.open(ctx, y.place.data, y.offset)
	stall.Stop()
	if err != nil {
		cancel()
		return err
	}
	y.open = &opened{r, cancel, stall}
	return nil
}

// drop lets go of the connection.
func (y *body) drop() {
	if y.open == nil {
		return
	}
	y.open.stall.Stop()
	y.open.cancel()
	_ = y.open.Close() // what was read was read
	y.open = nil
}

// Seek implements [io.Seeker]. It makes no request.
func (y *body) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += y.offset
	case io.SeekEnd:
		offset += y.place.size
	case io.SeekStart:
	default:
		return 0, fmt.Errorf("diststore: seek: whence %d", whence)
	}
	if y.closed {
		return 0, fs.ErrClosed
	}
	if offset < 0 {
		return 0, fmt.Errorf("diststore: seek: offset %d", offset)
	}
	if offset != y.offset {
		y.drop()
	}
	y.offset = offset
	return offset, nil
}

// Close implements [io.Closer].
func (y *body) Close() error {
	y.closed = true
	y.drop()
	y.cancel()
	return nil
}

// redirectBody is a body that sends clients to the bucket.
type redirectBody struct {
	*body
	desc ocispec.Descriptor
}

// ServeHTTP answers a GET with a redirect, and everything itself that the driver
// has no URL for.
func (y *redirectBody) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if url := y.url(r); url != "" {
		w.Header().Set("Location", url)
		w.Header().Set("Docker-Content-Digest", y.desc.Digest.String())
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	pullthrough.WriteBlob(w, r, &pullthrough.Blob{Descriptor: y.desc, Body: y.body})
}

func (y *redirectBody) url(r *http.Request) string {
	if r.Method != http.MethodGet {
		return "" // we know the answer
	}
	url, err := y.bucket.driver.RedirectURL(r, key(y.place.data))
	if err != nil {
		return ""
	}
	return url
}
