package serve

import (
	"bytes"
	"errors"
	"net/http"
)

// errKept is what a handler gets that writes more than is kept.
var errKept = errors.New("the answer is too long to be kept")

// Kept is the ResponseWriter of an answer that is kept in memory, up to a limit. It is for
// one goroutine.
type Kept struct {
	header http.Header
	status int // 0: nothing was written yet
	body   bytes.Buffer
	limit  int
	cut    bool
}

// NewKept returns a Kept for a body of that many bytes.
func NewKept(limit int) *Kept { return &Kept{header: http.Header{}, limit: limit} }

// Status is the status of the answer.
func (k *Kept) Status() int {
	k.WriteHeader(http.StatusOK)
	return k.status
}

// Body is the whole body. The error is for one that was too long.
func (k *Kept) Body() ([]byte, error) {
	if k.cut {
		return nil, errKept
	}
	return k.body.Bytes(), nil
}

// Header implements [http.ResponseWriter].
func (k *Kept) Header() http.Header { return k.header }

// WriteHeader implements [http.ResponseWriter]. Informational answers are dropped.
func (k *Kept) WriteHeader(status int) {
	if k.status == 0 && status >= http.StatusOK {
		k.status = status
	}
}

// Write implements [http.ResponseWriter].
func (k *Kept) Write(p []byte) (int, error) {
	k.WriteHeader(http.StatusOK)
	if k.cut = k.cut || k.body.Len()+len(p) > k.limit; k.cut {
		return 0, errKept
	}
	return k.body.Write(p)
}
