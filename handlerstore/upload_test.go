package handlerstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/handlerstore"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

// pushServer takes one blob, in its own way.
type pushServer struct {
	location string // of the first answer; "": none. %d is the number of the answer
	minChunk string
	noChunks int // status of PATCH; 0: taken
	fails    string
	there    int64 // size of what it has already; 0: nothing

	log     []string
	upload  bytes.Buffer
	largest int64
	stored  map[string]digest.Digest
}

func (p *pushServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.log = append(p.log, strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Method, r.URL.RequestURI(), r.Header.Get("Content-Range"))))
	p.largest = max(p.largest, r.ContentLength)
	if r.Method == p.fails {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	if p.location != "" && r.Method != http.MethodHead {
		w.Header().Set("Location", strings.ReplaceAll(p.location, "%d", fmt.Sprint(len(p.log))))
	}
	switch r.Method {
	case http.MethodHead:
		if p.there == 0 {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(p.there))
	case http.MethodPost:
		p.upload.Reset()
		w.Header().Set("OCI-Chunk-Min-Length", p.minChunk)
		w.WriteHeader(http.StatusAccepted)
	case http.MethodPatch:
		if p.noChunks != 0 {
			w.WriteHeader(p.noChunks)
			return
		}
		p.take(w, r, http.StatusAccepted)
	case http.MethodPut:
		if p.take(w, r, http.StatusCreated) {
			p.stored = map[string]digest.Digest{r.URL.Query().Get("digest"): digest.FromBytes(p.upload.Bytes())}
		}
	case http.MethodDelete:
		w.WriteHeader(http.StatusNoContent)
	}
}

func (p *pushServer) take(w http.ResponseWriter, r *http.Request, status int) bool {
	n, err := p.upload.ReadFrom(r.Body)
	if err != nil || n != r.ContentLength {
		w.WriteHeader(http.StatusBadRequest)
		return false
	}
	w.WriteHeader(status)
	return true
}

func (p *pushServer) put(ctx context.Context, content []byte, r io.ReadSeeker) error {
	desc := ocispec.Descriptor{Digest: digest.FromBytes(content), Size: int64(len(content))}
	return (&handlerstore.Store{Handler: p}).PutBlob(ctx, testkit.Repo("a"), desc, r)
}

const uploads = "/v2/hub/a/blobs/uploads/"

func TestUploads(t *testing.T) {
	small, large := newBlobServer(1000).content, newBlobServer(9<<20+5).content
	q := func(content []byte) string { return "digest=sha256%3A" + digest.FromBytes(content).Encoded() }
	at := func(s string) string { return "/v2/hub/a/blobs/" + s }
	head := func(content []byte) string { return "HEAD " + at(digest.FromBytes(content).String()) }
	for name, tc := range map[string]struct {
		server  *pushServer
		content []byte
		want    []string
	}{
		"small": {&pushServer{location: uploads + "1"}, small, []string{head(small), "POST " + uploads, "PUT " + uploads + "1?" + q(small)}},
		"empty": {&pushServer{location: uploads + "1"}, nil, []string{head(nil), "POST " + uploads, "PUT " + uploads + "1?" + q(nil)}},
		"large": {&pushServer{location: uploads + "1"}, large, []string{
			head(large), "POST " + uploads, "PATCH " + uploads + "1 0-4194303", "PATCH " + uploads + "1 4194304-8388607", "PATCH " + uploads + "1 8388608-9437188", "PUT " + uploads + "1?" + q(large),
		}},
		"a new location each time": {&pushServer{location: "/elsewhere/%d?_state=a%2Fb=="}, large, []string{
			head(large), "POST " + uploads, "PATCH /elsewhere/2?_state=a%2Fb== 0-4194303", "PATCH /elsewhere/3?_state=a%2Fb== 4194304-8388607",
			"PATCH /elsewhere/4?_state=a%2Fb== 8388608-9437188", "PUT /elsewhere/5?_state=a%2Fb==&" + q(large),
		}},
		"an absolute location": {&pushServer{location: "https://registry.example:5000" + uploads + "1?x=y"}, small, []string{head(small), "POST " + uploads, "PUT " + uploads + "1?x=y&" + q(small)}},
		"a relative location":  {&pushServer{location: "1"}, small, []string{head(small), "POST " + uploads, "PUT " + uploads + "1?" + q(small)}},
		"no chunks":            {&pushServer{location: uploads + "1", noChunks: 405}, large, []string{head(large), "POST " + uploads, "PATCH " + uploads + "1 0-4194303", "DELETE " + uploads + "1", "POST " + uploads, "PUT " + uploads + "1?" + q(large)}},
		"large chunks only":    {&pushServer{location: uploads + "1", minChunk: "99999999"}, large, []string{head(large), "POST " + uploads, "DELETE " + uploads + "1", "POST " + uploads, "PUT " + uploads + "1?" + q(large)}},
		"chunks not so large":  {&pushServer{location: uploads + "1", minChunk: "1048576"}, small, []string{head(small), "POST " + uploads, "PUT " + uploads + "1?" + q(small)}},
		"it has it, cut":       {&pushServer{location: uploads + "1", there: 999}, small, []string{head(small), "POST " + uploads, "PUT " + uploads + "1?" + q(small)}},
		"it has it":            {&pushServer{location: uploads + "1", there: 1000}, small, []string{head(small)}},
	} {
		t.Run(name, func(t *testing.T) {
			// A reader like the proxy's: it gives what it likes.
			r := bytes.NewReader(tc.content)
			require.NoError(t, tc.server.put(t.Context(), tc.content, oddReader{iotest.HalfReader(r), r}))
			assert.Equal(t, tc.want, tc.server.log)
			if tc.server.there == int64(len(tc.content)) && len(tc.content) > 0 {
				return
			}
			d := digest.FromBytes(tc.content)
			assert.Equal(t, map[string]digest.Digest{d.String(): d}, tc.server.stored)
			if !strings.Contains(name, "chunks") {
				assert.LessOrEqual(t, tc.server.largest, int64(4<<20), "no more than that is in memory")
			}
		})
	}
}

type oddReader struct {
	io.Reader
	io.Seeker
}

func TestUploadsThatFail(t *testing.T) {
	large := newBlobServer(9 << 20).content
	errBroken := errors.New("broken")
	cut := func(n int, err error) io.ReadSeeker {
		r := bytes.NewReader(large)
		return oddReader{io.MultiReader(io.LimitReader(r, int64(n)), iotest.ErrReader(err)), r}
	}
	canceled, cancel := context.WithCancel(t.Context())
	for name, tc := range map[string]struct {
		server *pushServer
		r      io.ReadSeeker
		is     error  // nil: any
		last   string // the beginning of the last request
	}{
		"the reader, at once":          {&pushServer{location: "1"}, cut(100, errBroken), errBroken, "HEAD "},
		"the reader, later":            {&pushServer{location: "1"}, cut(5<<20, errBroken), errBroken, "DELETE " + uploads + "1"},
		"the reader ends early":        {&pushServer{location: "1"}, bytes.NewReader(large[:5<<20]), io.ErrUnexpectedEOF, "DELETE " + uploads + "1"},
		"the reader of a stream":       {&pushServer{location: "1", noChunks: 405}, &secondTime{Reader: bytes.NewReader(large), err: errBroken}, errBroken, "DELETE " + uploads + "1"},
		"the context":                  {&pushServer{location: "1"}, oddReader{&cancels{bytes.NewReader(large), cancel, 2 << 20}, bytes.NewReader(large)}, context.Canceled, "DELETE " + uploads + "1"},
		"POST":                         {&pushServer{location: "1", fails: "POST"}, bytes.NewReader(large), nil, "POST "},
		"POST that says not where":     {&pushServer{}, bytes.NewReader(large), nil, "POST "},
		"POST that leads to no path":   {&pushServer{location: "mailto:x"}, bytes.NewReader(large), nil, "POST "},
		"PATCH":                        {&pushServer{location: "1", fails: "PATCH"}, bytes.NewReader(large), nil, "DELETE " + uploads + "1"},
		"PUT":                          {&pushServer{location: "1", fails: "PUT"}, bytes.NewReader(large), nil, "DELETE " + uploads + "1"},
		"HEAD":                         {&pushServer{location: "1", fails: "HEAD"}, bytes.NewReader(large), nil, "HEAD "},
		"the stream, which is refused": {&pushServer{location: "1", noChunks: 501, fails: "PUT"}, bytes.NewReader(large), nil, "DELETE " + uploads + "1"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			if tc.is == context.Canceled {
				ctx = canceled
			}
			err := tc.server.put(ctx, large, tc.r)
			require.Error(t, err)
			if tc.is != nil {
				assert.ErrorIs(t, err, tc.is)
			}
			assert.True(t, strings.HasPrefix(tc.server.log[len(tc.server.log)-1], tc.last), "%q", tc.server.log)
			assert.Empty(t, tc.server.stored)
		})
	}
	t.Run("the reader panics", func(t *testing.T) {
		p := &pushServer{location: "1"}
		assert.Panics(t, func() {
			_ = p.put(t.Context(), large, oddReader{&cancels{bytes.NewReader(large), func() { panic("boom") }, 2 << 20}, bytes.NewReader(large)})
		})
		assert.Equal(t, "DELETE "+uploads+"1", p.log[len(p.log)-1])
		assert.Empty(t, p.stored)
	})
}

// secondTime is a reader that fails once it was sought.
type secondTime struct {
	*bytes.Reader
	err    error
	sought bool
}

func (r *secondTime) Seek(offset int64, whence int) (int64, error) {
	r.sought = true
	return r.Reader.Seek(offset, whence)
}

func (r *secondTime) Read(p []byte) (int, error) {
	if r.sought && r.Len() < 4<<20 {
		return 0, r.err
	}
	return r.Reader.Read(p)
}

// cancels calls do when so many bytes are left to read.
type cancels struct {
	*bytes.Reader
	do   func()
	left int
}

func (r *cancels) Read(p []byte) (int, error) {
	if r.Len() <= r.left {
		r.do()
	}
	return r.Reader.Read(p[:min(len(p), 1<<20)])
}

// A registry that reads on when it has answered gets nothing: the reader is the
// caller's again.
func TestLendsABlobForTheRequestOnly(t *testing.T) {
	content := newBlobServer(9 << 20).content
	var kept io.Reader
	s := handlerStore(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPost:
			w.Header().Set("Location", uploads+"1")
			w.Header().Set("OCI-Chunk-Min-Length", "1000000000")
			w.WriteHeader(http.StatusAccepted)
		case http.MethodPut:
			kept = r.Body
			w.WriteHeader(http.StatusCreated)
		default:
			http.NotFound(w, r)
		}
	})
	r := bytes.NewReader(content)
	require.NoError(t, s.PutBlob(t.Context(), testkit.Repo("a"), ocispec.Descriptor{Digest: digest.FromBytes(content), Size: int64(len(content))}, r))
	require.NotNil(t, kept)
	_, err := kept.Read(make([]byte, 1))
	assert.ErrorIs(t, err, http.ErrBodyReadAfterClose)
	assert.Equal(t, len(content), r.Len())
}
