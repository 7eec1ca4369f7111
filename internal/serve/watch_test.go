package serve_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/serve"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

// host is a server in a bubble, with a Watch.
type host struct {
	watch *serve.Watch
	pipes *testkit.Pipes

	mu    sync.Mutex
	ended []time.Duration // how long those were silent that were ended
	short []bool
}

// newHost serves what write writes. change may change the server; nil: it does not.
func newHost(t *testing.T, watch *serve.Watch, change func(*http.Server), write http.HandlerFunc) *host {
	h := &host{watch: watch, pipes: testkit.NewPipes()}
	if watch.Files == nil {
		watch.Files = func() (int64, int64) { return 0, 1000 }
	}
	watch.Ended = func(_ *http.Request, silent time.Duration, short bool) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.ended, h.short = append(h.ended, silent), append(h.short, short)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w, a := watch.Answer(w, r)
		write(w, r)
		a.End()
	})}
	if change != nil {
		change(srv)
	}
	go func() { assert.ErrorIs(t, srv.Serve(h.pipes), http.ErrServerClosed) }()
	t.Cleanup(func() { assert.NoError(t, srv.Close()) })
	return h
}

// told is how long those were silent that were ended so far.
func (h *host) told() []time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ended
}

// ask opens a connection and sends a request, and reads nothing.
func (h *host) ask(t *testing.T, header string) net.Conn {
	t.Helper()
	c, err := h.pipes.Dial(t.Context(), "", "")
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_, err = fmt.Fprintf(c, "GET /%s HTTP/1.1\r\nHost: x\r\n%s\r\n", strings.TrimSpace(header), header)
	require.NoError(t, err)
	return c
}

// alive reports whether the server still keeps the connection. It reads a byte.
func alive(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	return err == nil || os.IsTimeout(err)
}

var (
	large       = bytes.Repeat([]byte("0123456789abcdef"), 256<<10) // 4 MiB
	largeDigest = digest.FromBytes(large)
)

// opaque is content that is no file, no seeker, and read slowly.
type opaque struct {
	io.Reader
	wait func()
}

func (o opaque) Read(p []byte) (int, error) {
	o.wait()
	return o.Reader.Read(p)
}

// answers are the ways in which content is written.
func answers(t *testing.T) map[string]http.HandlerFunc {
	name := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(name, large, 0o600))
	blob := func(open func() io.Reader) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if complete, _ := serve.Blob(w, r, largeDigest, int64(len(large)), open()); !complete {
				panic(http.ErrAbortHandler)
			}
		}
	}
	return map[string]http.HandlerFunc{
		"a manifest": func(w http.ResponseWriter, r *http.Request) {
			serve.Manifest(w, r, largeDigest, "application/x", large)
		},
		"a small manifest": func(w http.ResponseWriter, r *http.Request) {
			serve.Manifest(w, r, digest.FromString("x"), "application/x", []byte("x"))
		},
		"an error": func(w http.ResponseWriter, _ *http.Request) { serve.Error(w, 404, "NAME_UNKNOWN", "none") },
		"memory":   blob(func() io.Reader { return bytes.NewReader(large) }),
		"no seeker": blob(func() io.Reader {
			return opaque{bytes.NewReader(large), func() {}}
		}),
		"a file": blob(func() io.Reader {
			f, err := os.Open(name)
			assert.NoError(t, err)
			t.Cleanup(func() { _ = f.Close() })
			return f
		}),
	}
}

func TestAClientThatReadsNothingIsEnded(t *testing.T) {
	for name, write := range answers(t) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, &serve.Watch{}, nil, write)
				c := h.ask(t, "")
				time.Sleep(serve.DefaultSilence - time.Second)
				assert.Empty(t, h.told())
				time.Sleep(2 * time.Second)
				assert.Len(t, h.told(), 1)
				assert.False(t, alive(c))
			})
		})
	}
}

// HTTP/2: the connection is others', so only the stream ends.
func TestAStreamThatNobodyReadsIsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		twice := append(large[:len(large):len(large)], large...)
		both := new(http.Protocols)
		both.SetUnencryptedHTTP2(true)
		h := newHost(t, &serve.Watch{}, func(s *http.Server) { s.Protocols = both }, func(w http.ResponseWriter, r *http.Request) {
			assert.Equal(t, 2, r.ProtoMajor)
			serve.Manifest(w, r, largeDigest, "application/x", twice)
		})
		transport := &http.Transport{DialContext: h.pipes.Dial, Protocols: both}
		defer transport.CloseIdleConnections()
		get := func(ctx context.Context) *http.Response {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://x/", nil)
			require.NoError(t, err)
			resp, err := transport.RoundTrip(r)
			require.NoError(t, err)
			return resp
		}
		silent := get(t.Context()) // the window is 4 MiB
		time.Sleep(serve.DefaultSilence + time.Second)
		assert.Len(t, h.told(), 1)
		_, err := io.Copy(io.Discard, silent.Body)
		assert.Error(t, err)
		other := get(t.Context())
		n, err := io.Copy(io.Discard, other.Body)
		assert.NoError(t, err)
		assert.EqualValues(t, len(twice), n)
		assert.Len(t, h.told(), 1)
	})
}

// One write of 1 MiB in ten minutes is 1,748 bytes a second.
func TestASlowClientIsServed(t *testing.T) {
	for name, write := range answers(t) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, &serve.Watch{}, nil, write)
				readSlowly(h.ask(t, "Connection: close\r\n"), 2000)
				assert.Empty(t, h.told())
			})
		})
	}
	for _, name := range []string{"a manifest", "a file"} {
		t.Run(name+", too slow", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, &serve.Watch{}, nil, answers(t)[name])
				readSlowly(h.ask(t, ""), 1500)
				synctest.Wait() // until the end of the connection has been told
				assert.Len(t, h.told(), 1)
			})
		})
	}
}

// readSlowly reads to the end.
func readSlowly(c net.Conn, bytesPerSecond int) {
	for buf := make([]byte, bytesPerSecond); ; time.Sleep(time.Second) {
		if _, err := io.ReadFull(c, buf); err != nil {
			return
		}
	}
}

// What an answer waits for is not the client's fault.
func TestWaitingForContentIsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, &serve.Watch{}, nil, func(w http.ResponseWriter, r *http.Request) {
			complete, err := serve.Blob(w, r, largeDigest, int64(len(large)), opaque{bytes.NewReader(large), func() { time.Sleep(time.Hour) }})
			assert.True(t, complete)
			assert.NoError(t, err)
		})
		resp, err := http.ReadResponse(bufio.NewReader(h.ask(t, "")), nil)
		require.NoError(t, err)
		n, err := io.Copy(io.Discard, resp.Body)
		assert.NoError(t, err)
		assert.EqualValues(t, len(large), n)
		time.Sleep(2 * time.Hour) // until the content has said that this was its end
		assert.Empty(t, h.told())
	})
}

// A connection that is kept is as good as new, however long nobody used it.
func TestAConnectionIsKept(t *testing.T) {
	for name, write := range answers(t) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t, &serve.Watch{}, nil, write)
				transport := &http.Transport{DialContext: h.pipes.Dial}
				defer transport.CloseIdleConnections()
				for range 3 {
					r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://x/", nil)
					require.NoError(t, err)
					resp, err := transport.RoundTrip(r)
					require.NoError(t, err)
					assert.Empty(t, resp.TransferEncoding)
					assert.False(t, resp.Close)
					n, err := io.Copy(io.Discard, resp.Body)
					assert.NoError(t, err)
					assert.Equal(t, resp.ContentLength, n)
					time.Sleep(time.Hour)
				}
				assert.Empty(t, h.told())
			})
		})
	}
}

func TestHowLongAClientMayBeSilent(t *testing.T) {
	for name, c := range map[string]struct {
		silence, writeTimeout time.Duration
		ends                  time.Duration // 0: not in a day
		told                  int
	}{
		"ten minutes":                     {0, 0, 10 * time.Minute, 1},
		"a limit of the host's":           {3 * time.Minute, 0, 3 * time.Minute, 1},
		"negative: for ever":              {-1, 0, 0, 0},
		"a WriteTimeout alone counts":     {time.Minute, 30 * time.Minute, 30 * time.Minute, 0},
		"a WriteTimeout that is shorter":  {0, 20 * time.Second, 20 * time.Second, 0},
		"a WriteTimeout, and no other":    {-1, 20 * time.Second, 20 * time.Second, 0},
		"negative, and descriptors short": {-2, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				watch := &serve.Watch{Silence: c.silence}
				if c.silence == -2 {
					watch.Files = func() (int64, int64) { return 100, 100 }
				}
				h := newHost(t, watch, func(s *http.Server) { s.WriteTimeout = c.writeTimeout }, answers(t)["a manifest"])
				conn := h.ask(t, "")
				start := time.Now()
				b := make([]byte, 1)
				_, err := io.ReadFull(conn, b) // it has begun
				require.NoError(t, err)
				if c.ends == 0 {
					time.Sleep(24 * time.Hour)
					assert.True(t, alive(conn))
					assert.Empty(t, h.told())
					return
				}
				time.Sleep(c.ends - time.Second - time.Since(start))
				assert.Empty(t, h.told())
				time.Sleep(2 * time.Second)
				assert.Len(t, h.told(), c.told)
				assert.False(t, alive(conn))
			})
		})
	}
}

// The longest silent go first, no more than have to, and none that was not silent.
func TestWhenDescriptorsAreShortTheLongestSilentGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h *host
		var others atomic.Int64 // descriptors beside those of the clients that are silent
		h = newHost(t, &serve.Watch{Files: func() (int64, int64) { return others.Load() + 40 - int64(len(h.told())), 100 }}, nil, answers(t)["a manifest"])
		others.Store(48)
		var conns []net.Conn
		for range 39 {
			conns = append(conns, h.ask(t, ""))
			time.Sleep(10 * time.Second)
		}
		assert.Empty(t, h.told(), "88 of 100 are not short")
		late := h.ask(t, "")
		others.Store(50)
		time.Sleep(700 * time.Millisecond)
		assert.Len(t, h.told(), 15, "90 of 100 are, until 75 are left")
		time.Sleep(5 * time.Second)
		for i, c := range conns {
			assert.Equal(t, i >= 15, alive(c), "connection %d", i)
		}
		assert.True(t, alive(late))
		for i, silent := range h.told() {
			assert.Greater(t, silent, time.Duration(24-i)*10*time.Second, "in order")
			assert.True(t, h.short[i])
		}
		others.Store(100)
		time.Sleep(5 * time.Second)
		assert.Len(t, h.told(), 40, "there are no more")
	})
}

// An idle connection is a descriptor, too.
func TestConnectionsAreNotKeptWhileDescriptorsAreShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		open := int64(95)
		h := newHost(t, &serve.Watch{Files: func() (int64, int64) { return open, 100 }}, nil, answers(t)["a small manifest"])
		read := func() *http.Response {
			resp, err := http.ReadResponse(bufio.NewReader(h.ask(t, "")), nil)
			require.NoError(t, err)
			_, err = io.Copy(io.Discard, resp.Body)
			assert.NoError(t, err)
			time.Sleep(time.Second)
			return resp
		}
		read() // nobody has looked before it
		assert.True(t, read().Close)
		open = 10
		read()
		assert.False(t, read().Close)
	})
}

// plain is a ResponseWriter that a host has wrapped in a way that hides the connection.
type plain struct{ http.ResponseWriter }

func TestAConnectionThatCannotBeEndedIsServed(t *testing.T) {
	watch := &serve.Watch{}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	for name, w := range map[string]http.ResponseWriter{"recorder": httptest.NewRecorder(), "wrapped": plain{httptest.NewRecorder()}} {
		got, a := watch.Answer(w, r)
		assert.Nil(t, a, name)
		assert.Equal(t, w, got, name)
		a.End()
	}
}

// sink is a connection to which the kernel can send files.
type sink struct {
	*httptest.ResponseRecorder
	pieces []int64
}

func (s *sink) SetWriteDeadline(time.Time) error { return nil }

func (s *sink) ReadFrom(src io.Reader) (int64, error) {
	part, ok := src.(*io.LimitedReader)
	if ok {
		if _, ok = part.R.(*os.File); ok {
			s.pieces = append(s.pieces, part.N)
		}
	}
	return io.Copy(s.Body, src)
}

func TestAFileReachesTheConnectionInPieces(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	content := large[:2<<20+5]
	require.NoError(t, os.WriteFile(name, content, 0o600))
	for header, pieces := range map[string][]int64{"": {1 << 20, 1 << 20, 5}, "bytes=7-99": {93}} {
		f, err := os.Open(name)
		require.NoError(t, err)
		w := &sink{ResponseRecorder: httptest.NewRecorder()}
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		if header != "" {
			r.Header.Set("Range", header)
		}
		answer, a := new(serve.Watch).Answer(w, r)
		require.NotNil(t, a)
		complete, err := serve.Blob(answer, r, digest.FromBytes(content), int64(len(content)), f)
		assert.True(t, complete)
		assert.NoError(t, err)
		a.End()
		assert.Equal(t, pieces, w.pieces)
		require.NoError(t, f.Close())
	}
}
