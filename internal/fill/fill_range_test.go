package fill_test

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
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// A download runs, and the Store's stage becomes full: ranges lie in the one place, in
// the other and over the border of both.
func TestRangesOverTwoPlaces(t *testing.T) {
	const size, border = 4 << 20, 3 << 20
	testkit.Baseline(t)
	store := &filling{files: newFiles(t.TempDir()), room: border}
	f := testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Store = store })
	layer := f.Layer(size)
	path, content := testkit.BlobPath("a", layer.Digest), testkit.BlobContent(t, layer)
	g := testkit.NewGate(t)
	stall(f.World, g, layer, size-100<<10)
	leader, err := http.Get(f.Server.URL + path)
	require.NoError(t, err)
	part := http.StatusPartialContent
	there := []testkit.RangeCase{
		{Name: "first byte", Header: "bytes=0-0", From: 0, To: 1, Status: part},
		{Name: "in the first", Header: "bytes=300-399", From: 300, To: 400, Status: part},
		{Name: "over the border", Header: fmt.Sprintf("bytes=%d-%d", border-600_000, border+600_000), From: border - 600_000, To: border + 600_001, Status: part},
		{Name: "at the border", Header: fmt.Sprintf("bytes=%d-%d", border-1, border), From: border - 1, To: border + 1, Status: part},
		{Name: "in the second", Header: fmt.Sprintf("bytes=%d-%d", border+500_000, border+500_009), From: border + 500_000, To: border + 500_010, Status: part},
	}
	for _, c := range there {
		t.Run(c.Name, func(t *testing.T) { testkit.AssertRange(t, f.Get(t, path, "Range", c.Header), c, content) })
	}
	type answer struct {
		testkit.RangeCase
		resp *http.Response
	}
	var coming []answer
	for _, c := range testkit.RangeCases(size) {
		if c.Status != part || c.To < size-200<<10 {
			continue
		}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.Server.URL+path, nil)
		require.NoError(t, err)
		r.Header.Set("Range", c.Header)
		resp, err := f.Server.Client().Transport.RoundTrip(r)
		require.NoError(t, err)
		coming = append(coming, answer{c, resp}) // its header is there before its bytes
	}
	assert.Greater(t, len(coming), 3)
	g.Open()
	for _, a := range coming {
		testkit.AssertRange(t, testkit.ReadReply(t, a.resp), a.RangeCase, content)
	}
	all := testkit.ReadReply(t, leader)
	assert.NoError(t, all.Err)
	testkit.AssertSame(t, content, all.Content)
	f.Settled(t)
	store.assertEnded(t)
	for _, c := range testkit.RangeCases(size) {
		t.Run("stored, "+c.Name, func(t *testing.T) { testkit.AssertRange(t, f.Get(t, path, "Range", c.Header), c, content) })
	}
	assert.Equal(t, 1, f.Up.Count(testkit.UpstreamGet(path, 200)))
	assert.Len(t, f.Up.Log(), 1+f.Up.Count(testkit.UpstreamGet(path, 206)))
	http.DefaultClient.CloseIdleConnections()
}

// Who leaves with a range leaves the download to others.
func TestRangesThatLeave(t *testing.T) {
	testkit.Baseline(t)
	s := testkit.NewStalled(t, pullthroughtest.Fault{})
	for _, header := range []string{"bytes=0-", "bytes=3000000-", "bytes=-1"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.Server.URL+s.Path, nil)
		require.NoError(t, err)
		r.Header.Set("Range", header)
		resp, err := s.Server.Client().Transport.RoundTrip(r)
		require.NoError(t, err)
		assert.Equal(t, 206, resp.StatusCode)
		require.NoError(t, resp.Body.Close())
	}
	s.Release()
	testkit.AssertSame(t, s.Content, s.WaitLeader(t).Content)
	s.Settled(t)
	assert.Equal(t, 1, s.Up.Count(testkit.UpstreamGet(s.Path, 200)))
	assert.Len(t, s.Up.Log(), 1+s.Up.Count(testkit.UpstreamGet(s.Path, 206)))
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
func TestFailuresBehindARecoveringMiddleware(t *testing.T) {
	testkit.Baseline(t)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 2<<20 + 300_000})
	layer := img.Layers[0]
	path, content := testkit.BlobPath("a", layer.Digest), testkit.BlobContent(t, layer)
	for protocol, pull := range testkit.Protocols {
		for name, middleware := range recovering {
			for _, what := range []string{"last byte wrong", "cut, then gone", "close-delimited"} {
				for _, known := range []bool{true, false} {
					if !known && what != "close-delimited" {
						continue
					}
					t.Run(protocol+", "+name+", "+what+", size known "+strconv.FormatBool(known), func(t *testing.T) {
						w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
						w.Up.Push("a", "v1", img)
						if known {
							_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "v1"})
							require.NoError(t, err)
						}
						for _, fault := range testkit.BrokenDownloads[what] {
							fault.Match = testkit.Blobs
							w.Up.Fault(fault)
						}
						r := pull(t, middleware(w.Proxy), path)
						if r.Response != nil && r.StatusCode == http.StatusInternalServerError {
							assert.Equal(t, "with a page", name) // the header was not out
						} else {
							testkit.AssertBroken(t, r, content)
						}
						w.Settled(t)
						_, err := w.Mem.Blob(t.Context(), testkit.Repo("a"), layer.Digest)
						assert.ErrorIs(t, err, fs.ErrNotExist)
						w.Up.Heal()
						w.Up.Reset()
						r = pull(t, middleware(w.Proxy), path)
						assert.NoError(t, r.Err)
						testkit.AssertSame(t, content, r.Content)
						assert.Equal(t, []string{testkit.UpstreamGet(path, 200)}, w.Up.Log())
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
func TestSendfile(t *testing.T) {
	for _, staging := range []bool{false, true} {
		t.Run("staging "+strconv.FormatBool(staging), func(t *testing.T) {
			testkit.Baseline(t)
			store := newFiles(t.TempDir())
			w := testkit.NewWorld(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) {
				p.Store = store
				if staging {
					p.Store = stager{store}
				}
			})
			layer := w.Layer(4 << 20)
			path, content := testkit.BlobPath("a", layer.Digest), testkit.BlobContent(t, layer)
			g := testkit.NewGate(t)
			stall(w, g, layer, 2<<20)
			late, err := w.Open(t.Context(), layer.Digest)
			require.NoError(t, err)
			ended := make(chan *testkit.Sink)
			go func() { ended <- testkit.ServeSink(t.Context(), w.Proxy, path) }()
			g.Open()
			assertAllFile(t, <-ended, content)
			w.Settled(t)
			s := &testkit.Sink{Headers: http.Header{}}
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://registry.test"+path, nil)
			require.NoError(t, err)
			pullthrough.WriteBlob(s, r, late) // after the commit
			assertAllFile(t, s, content)
			assertAllFile(t, testkit.ServeSink(t.Context(), w.Proxy, path), content)
			assert.Equal(t, 1, w.Up.Count("*"))
		})
	}
}

func assertAllFile(t *testing.T, s *testkit.Sink, content []byte) {
	t.Helper()
	assert.Equal(t, 200, s.Status)
	assert.False(t, s.Aborted)
	testkit.AssertSame(t, content, s.Body.Bytes())
	assert.Zero(t, s.Plain, "bytes that came by Write")
	assert.NotEmpty(t, s.Sources)
	for _, source := range s.Sources {
		assert.Equal(t, osFile, source)
	}
}

// A Body of ours must not be taken for the file in it: the tail that is held
// back would go out with the rest.
func TestBodiesHideTheirFile(t *testing.T) {
	testkit.Baseline(t)
	w := testkit.NewWorld(t, pullthroughtest.Config{}, nil)
	layer := w.Layer(3 << 20)
	g := testkit.NewGate(t)
	stall(w, g, layer, 2<<20)
	b, err := w.Open(t.Context(), layer.Digest)
	require.NoError(t, err)
	testkit.RequireRead(t, b.Body, 100)
	assertHidden(t, b.Body)
	g.Open()
	w.Settled(t)
	testkit.RequireRead(t, b.Body, 100) // handed over
	assertHidden(t, b.Body)
	require.NoError(t, b.Body.Close())
	b, err = w.Open(t.Context(), layer.Digest)
	require.NoError(t, err)
	assertHidden(t, b.Body)
	require.NoError(t, b.Body.Close())
	assert.Equal(t, 1, w.Up.Count("*"))
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
