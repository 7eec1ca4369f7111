package diststore

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"path"
	"strings"
	"time"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
	"github.com/ecr-pullthrough/pullthrough/internal/layout/filing"
)

const (
	// maxPut is the size of the largest blob that is sent in one request, from
	// memory, in bytes. The driver's Writer needs three at least.
	maxPut     = 4 << 20
	copyBuffer = 256 << 10

	// An upload begins with its time. One that is a day old was left behind by a proxy
	// that has died.
	uploadTime   = "20060102T150405Z"
	uploadsKept  = 24 * time.Hour
	uploadsSwept = 100 // at a time
)

// upload makes name an object with the size bytes of r, which is not seen before
// it is whole.
func (s *Store) upload(ctx context.Context, name string, r io.Reader, size int64) error {
	r = filing.WithContext(ctx, io.LimitReader(r, size+1))
	switch {
	case s.sentAtOnce(size):
		return s.sendAtOnce(ctx, name, r, size)
	case s.habits.atomic:
		return s.send(ctx, name, r, size)
	}
	s.sweep(ctx)
	temp := path.Join(layout.Uploads, time.Now().UTC().Format(uploadTime)+"-"+rand.Text())
	if err := s.send(ctx, temp, r, size); err != nil {
		return err
	}
	err := s.bucket.move(ctx, temp, name)
	if err != nil {
		s.tidy(ctx, func(ctx context.Context) { _ = s.bucket.remove(ctx, temp) })
	}
	return err
}

// sentAtOnce reports whether a blob is sent in one request.
func (s *Store) sentAtOnce(size int64) bool { return size <= maxPut && s.habits.wholePuts }

func (s *Store) sendAtOnce(ctx context.Context, name string, r io.Reader, size int64) error {
	content := make([]byte, size+1)
	n, err := io.ReadFull(r, content)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	if err == nil {
		err = layout.CheckWritten(int64(n), size)
	}
	if err != nil {
		return err
	}
	return s.bucket.put(ctx, name, content[:n])
}

// send writes through the driver's Writer. Of what fails, or panics in r, nothing
// stays.
func (s *Store) send(ctx context.Context, name string, r io.Reader, size int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w, err := s.bucket.driver.Writer(ctx, key(name), false)
	if err != nil {
		return fault(ctx, "write", name, err)
	}
	committed := false
	defer func() {
		if !committed {
			s.tidy(ctx, func(ctx context.Context) { _ = w.Cancel(ctx) })
		}
	}()
	buffered := bufio.NewWriterSize(&driverWriter{ctx, name, w}, copyBuffer)
	n, err := buffered.ReadFrom(r)
	if err == nil {
		err = layout.CheckWritten(n, size)
	}
	if err == nil {
		err = buffered.Flush()
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	if err := w.Commit(ctx); err != nil {
		return fault(ctx, "write", name, err)
	}
	committed = true
	return fault(ctx, "write", name, w.Close())
}

// tidy runs what must be done even if ctx has ended.
func (s *Store) tidy(ctx context.Context, undo func(context.Context)) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTime)
	defer cancel()
	undo(ctx)
}

// sweep removes what proxies that have died left behind. It asks once a day, and
// what cannot be removed is in nobody's way.
func (s *Store) sweep(ctx context.Context) {
	now := time.Now()
	last := s.sweptAt.Load()
	if now.Sub(time.Unix(0, last)).Abs() < uploadsKept || !s.sweptAt.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	names, err := s.bucket.list(ctx, layout.Uploads)
	if err != nil {
		return
	}
	swept := 0
	for _, name := range names {
		started, _, _ := strings.Cut(name, "-")
		at, err := time.Parse(uploadTime, started)
		if err != nil || now.Sub(at) < uploadsKept {
			continue
		}
		if swept++; swept > uploadsSwept || errors.Is(s.bucket.remove(ctx, path.Join(layout.Uploads, name)), context.Canceled) {
			return
		}
	}
}

// driverWriter tells the driver's errors from those of the reader.
type driverWriter struct {
	ctx  context.Context
	name string
	w    storagedriver.FileWriter
}

func (w *driverWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	return n, fault(w.ctx, "write", w.name, err)
}
