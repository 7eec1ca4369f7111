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

type Pipes struct {
	Conns chan net.Conn
	Done  chan struct{}
	once  sync.Once
}

func (l *Pipes) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.Conns <- server:
		return client, nil
	case <-l.Done:
	case <-ctx.Done():
	}
	return nil, net.ErrClosed
}

func (l *Pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.Conns:
		return c, nil
	case <-l.Done:
		return nil, net.ErrClosed
	}
}

func (l *Pipes) Close() error {
	l.once.Do(func() { close(l.Done) })
	return nil
}

func (l *Pipes) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }

func (pipeAddr) String() string { return "pipe" }

type RoundTripper func(*http.Request) (*http.Response, error)

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
			Rules:     pullthrough.StaticRules{{Prefix: Prefix, UpstreamURL: up.URL()}},
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
