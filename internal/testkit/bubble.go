package testkit

import (
	"context"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// ServePiped serves h on connections in memory, for tests in a bubble, and returns
// a transport to it.
func ServePiped(t *testing.T, h http.Handler) *http.Transport {
	t.Helper()
	l := NewPipes()
	srv := &http.Server{Handler: h}
	go func() { assert.ErrorIs(t, srv.Serve(l), http.ErrServerClosed) }()
	transport := &http.Transport{DialContext: l.Dial, DisableCompression: true}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		assert.NoError(t, srv.Close())
	})
	return transport
}

// Pipes is a listener whose connections are in memory. Only its Dial makes them.
type Pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// NewPipes returns a listener that nobody has dialled yet.
func NewPipes() *Pipes { return &Pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

// Dial returns the client's end of a new connection, whatever the address.
func (l *Pipes) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.done:
	case <-ctx.Done():
	}
	return nil, net.ErrClosed
}

// Accept returns the server's end of the next connection.
func (l *Pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept and Dial. It may be called twice.
func (l *Pipes) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr is no address.
func (l *Pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

// RoundTripper is a function as an http.RoundTripper.
type RoundTripper func(*http.Request) (*http.Response, error)

// RoundTrip calls the function.
func (f RoundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Piped returns a world whose time is synctest's: it must be called outside the
// bubble, and the function it returns inside.
func Piped(t *testing.T, c pullthroughtest.Config) (*pullthroughtest.Upstream, func(*testing.T) *World) {
	t.Helper()
	up := pullthroughtest.New(t, c)
	dir := t.TempDir()
	return up, func(t *testing.T) *World {
		w := &World{Up: up, Mem: memstore.New(), Secrets: pullthroughtest.NewSecrets(t)}
		transport := &http.Transport{DialContext: up.DialPipe, DisableCompression: true}
		w.Proxy = &pullthrough.Proxy{
			Store:     w.Mem,
			Rules:     pullthrough.StaticRules{{Prefix: Prefix, UpstreamURL: up.URL}},
			SpoolDir:  dir,
			Transport: transport,
		}
		w.Watch()
		t.Cleanup(func() {
			assert.NoError(t, w.Shutdown(context.Background()))
			transport.CloseIdleConnections()
		})
		return w
	}
}

// InBubble runs test with a world whose time is synctest's.
func InBubble(t *testing.T, c pullthroughtest.Config, test func(*testing.T, *World)) {
	t.Helper()
	_, enter := Piped(t, c)
	synctest.Test(t, func(t *testing.T) { test(t, enter(t)) })
}
