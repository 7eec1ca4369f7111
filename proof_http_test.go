package pullthrough_test

import (
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"reflect"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// C17, in flight, in a Store's stage that becomes full: ranges that lie in the
// one place, in the other and over the border of both.
func TestProofRangesOverTwoPlaces(t *testing.T) {
	const size, border = 4 << 20, 3 << 20
	baseline(t)
	store := &filling{files: newFiles(t.TempDir()), room: border}
	f := newFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store = store })
	layer := f.layer(size)
	path, content := blobPath("a", layer.Digest), blobContent(t, layer)
	g := newGate(t)
	f.stall(g, layer, size-100<<10)
	leader, err := http.Get(f.srv.URL + path)
	require.NoError(t, err)
	part := http.StatusPartialContent
	there := []rangeCase{
		{"first byte", "bytes=0-0", 0, 1, part},
		{"in the first", "bytes=300-399", 300, 400, part},
		{"over the border", fmt.Sprintf("bytes=%d-%d", border-600_000, border+600_000), border - 600_000, border + 600_001, part},
		{"at the border", fmt.Sprintf("bytes=%d-%d", border-1, border), border - 1, border + 1, part},
		{"in the second", fmt.Sprintf("bytes=%d-%d", border+500_000, border+500_009), border + 500_000, border + 500_010, part},
	}
	for _, c := range there {
		t.Run(c.name, func(t *testing.T) { assertRange(t, f.get(t, path, "Range", c.header), c, content) })
	}
	type answer struct {
		rangeCase
		resp *http.Response
	}
	var coming []answer
	for _, c := range rangeCases(size) {
		if c.status != part || c.to < size-200<<10 {
			continue
		}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.srv.URL+path, nil)
		require.NoError(t, err)
		r.Header.Set("Range", c.header)
		resp, err := f.srv.Client().Transport.RoundTrip(r)
		require.NoError(t, err)
		coming = append(coming, answer{c, resp}) // its header is there before its bytes
	}
	assert.Greater(t, len(coming), 3)
	g.open()
	for _, a := range coming {
		assertRange(t, read(t, a.resp), a.rangeCase, content)
	}
	all := read(t, leader)
	assert.NoError(t, all.err)
	assertSame(t, content, all.content)
	f.settled(t)
	store.assertEnded(t)
	for _, c := range rangeCases(size) {
		t.Run("stored, "+c.name, func(t *testing.T) { assertRange(t, f.get(t, path, "Range", c.header), c, content) })
	}
	assert.Equal(t, []string{upstreamGet(path, 200)}, f.up.Log())
	http.DefaultClient.CloseIdleConnections()
}

// Who leaves with a range leaves the download to others.
func TestProofRangesThatLeave(t *testing.T) {
	baseline(t)
	s := newStalled(t, pullthroughtest.Fault{})
	for _, header := range []string{"bytes=0-", "bytes=3000000-", "bytes=-1"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.srv.URL+s.path, nil)
		require.NoError(t, err)
		r.Header.Set("Range", header)
		resp, err := s.srv.Client().Transport.RoundTrip(r)
		require.NoError(t, err)
		assert.Equal(t, 206, resp.StatusCode)
		require.NoError(t, resp.Body.Close())
	}
	s.release()
	assertSame(t, s.content, s.waitLeader(t).content)
	s.settled(t)
	assert.Equal(t, []string{upstreamGet(s.path, 200)}, s.up.Log())
	assertEmptyDir(t, s.SpoolDir)
}

// recovering are middlewares that keep panics from net/http, which then cannot
// abort the answer by itself.
var recovering = map[string]func(http.Handler) http.Handler{
	"silent": func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() { _ = recover() }()
			h.ServeHTTP(w, r)
		})
	},
	"with a page": func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				if recover() != nil {
					http.Error(w, "Internal Server Error", http.StatusInternalServerError)
				}
			}()
			h.ServeHTTP(w, r)
		})
	},
}

// Behind a middleware that recovers, an answer that fails is short of its
// length all the same, and every client sees that.
func TestProofFailuresBehindARecoveringMiddleware(t *testing.T) {
	baseline(t)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 2<<20 + 300_000})
	layer := img.Layers[0]
	path, content := blobPath("a", layer.Digest), blobContent(t, layer)
	for protocol, pull := range protocols {
		for name, middleware := range recovering {
			for _, what := range []string{"last byte wrong", "cut, then gone", "close-delimited"} {
				for _, known := range []bool{true, false} {
					if !known && what != "close-delimited" {
						continue
					}
					t.Run(protocol+", "+name+", "+what+", size known "+strconv.FormatBool(known), func(t *testing.T) {
						w := newWorld(t, pullthroughtest.Config{}, nil)
						w.up.Push("a", "v1", img)
						if known {
							_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "v1"})
							require.NoError(t, err)
						}
						for _, fault := range brokenDownloads[what] {
							fault.Match = blobs
							w.up.Fault(fault)
						}
						r := pull(t, middleware(w.Proxy), path)
						if r.Response != nil && r.StatusCode == http.StatusInternalServerError {
							assert.Equal(t, "with a page", name) // the header was not out
						} else {
							assertBroken(t, r, content)
						}
						w.settled(t)
						_, err := w.store.Blob(t.Context(), repo("a"), layer.Digest)
						assert.ErrorIs(t, err, fs.ErrNotExist)
						w.up.Heal()
						w.up.Reset()
						r = pull(t, middleware(w.Proxy), path)
						assert.NoError(t, r.err)
						assertSame(t, content, r.content)
						assert.Equal(t, []string{upstreamGet(path, 200)}, w.up.Log())
						assertEmptyDir(t, w.SpoolDir)
					})
				}
			}
		}
	}
}

const osFile = "*os.File"

// A stored file, a download that runs, and one that has been handed over, all
// reach net/http as files, which it sends by sendfile.
func TestProofSendfile(t *testing.T) {
	for _, staging := range []bool{false, true} {
		t.Run("staging "+strconv.FormatBool(staging), func(t *testing.T) {
			baseline(t)
			store := newFiles(t.TempDir())
			w := newWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.Store = store
				if staging {
					p.Store = stager{store}
				}
			})
			layer := w.layer(4 << 20)
			path, content := blobPath("a", layer.Digest), blobContent(t, layer)
			g := newGate(t)
			w.stall(g, layer, 2<<20)
			late, err := w.open(t.Context(), layer.Digest)
			require.NoError(t, err)
			ended := make(chan *sink)
			go func() { ended <- serveSink(t.Context(), w.Proxy, path) }()
			g.open()
			assertAllFile(t, <-ended, content)
			w.settled(t)
			s := &sink{header: http.Header{}}
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://registry.test"+path, nil)
			require.NoError(t, err)
			pullthrough.WriteBlob(s, r, late) // after the commit
			assertAllFile(t, s, content)
			assertAllFile(t, serveSink(t.Context(), w.Proxy, path), content)
			assert.Equal(t, 1, w.up.Count("*"))
		})
	}
}

func assertAllFile(t *testing.T, s *sink, content []byte) {
	t.Helper()
	assert.Equal(t, 200, s.status)
	assert.False(t, s.aborted)
	assertSame(t, content, s.body.Bytes())
	assert.Zero(t, s.plain, "bytes that came by Write")
	assert.NotEmpty(t, s.sources)
	for _, source := range s.sources {
		assert.Equal(t, osFile, source)
	}
}

// A Body of ours must not be taken for the file in it: the tail that is held
// back would go out with the rest.
func TestProofBodiesHideTheirFile(t *testing.T) {
	baseline(t)
	w := newWorld(t, pullthroughtest.Config{}, nil)
	layer := w.layer(3 << 20)
	g := newGate(t)
	w.stall(g, layer, 2<<20)
	b, err := w.open(t.Context(), layer.Digest)
	require.NoError(t, err)
	requireRead(t, b.Body, 100)
	assertHidden(t, b.Body)
	g.open()
	w.settled(t)
	requireRead(t, b.Body, 100) // handed over
	assertHidden(t, b.Body)
	require.NoError(t, b.Body.Close())
	b, err = w.open(t.Context(), layer.Digest)
	require.NoError(t, err)
	assertHidden(t, b.Body)
	require.NoError(t, b.Body.Close())
	assert.Equal(t, 1, w.up.Count("*"))
}

func assertHidden(t *testing.T, body io.ReadCloser) {
	t.Helper()
	v := reflect.TypeOf(body)
	for _, name := range []string{"SyscallConn", "Fd", "File"} {
		_, ok := v.MethodByName(name)
		assert.False(t, ok, "%s has %s", v, name)
	}
	assert.False(t, embeds(v, reflect.TypeFor[*os.File]()), "%s embeds a file", v)
}

// embeds reports whether t is or embeds what, at any depth.
func embeds(t, what reflect.Type) bool {
	if t == what || t.Kind() == reflect.Pointer && t.Elem() == what {
		return true
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return false
	}
	for i := range t.NumField() {
		if f := t.Field(i); f.Anonymous && embeds(f.Type, what) {
			return true
		}
	}
	return false
}
