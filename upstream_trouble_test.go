package pullthrough_test

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// tunnel is a connection that the network may forget: what is sent then gets
// lost, and nobody says so.
type tunnel struct {
	net.Conn
	lost atomic.Bool
}

func (c *tunnel) Write(p []byte) (int, error) {
	if c.lost.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *tunnel) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if err != nil || !c.lost.Load() {
			return n, err
		}
	}
}

// unreadable is a connection on which an answer is an error.
type unreadable struct {
	net.Conn
	err error
}

func (c unreadable) Read([]byte) (int, error) {
	return 0, &net.OpError{Op: "read", Net: "tcp", Err: c.err}
}

// roomy is a connection with room for what the other side has not read yet, as
// the network has: both sides of a TLS handshake may write at the same time.
type roomy struct {
	net.Conn
	room chan []byte
	gone chan struct{}
	once sync.Once
}

func newRoomy(_ int, plain net.Conn) (net.Conn, error) {
	c := &roomy{Conn: plain, room: make(chan []byte, 100), gone: make(chan struct{})}
	go func() {
		for {
			select {
			case p := <-c.room:
				_, _ = c.Conn.Write(p) // the next Read tells
			case <-c.gone:
				return
			}
		}
	}()
	return c, nil
}

func (c *roomy) Write(p []byte) (int, error) {
	select {
	case c.room <- bytes.Clone(p):
		return len(p), nil
	case <-c.gone:
		return 0, net.ErrClosed
	}
}

func (c *roomy) Close() error {
	c.once.Do(func() { close(c.gone) })
	return c.Conn.Close()
}

// deaf is a connection to nobody.
func deaf(_ int, plain net.Conn) (net.Conn, error) {
	c := &tunnel{Conn: plain}
	c.lost.Store(true)
	return c, nil
}

// tooLong is a dial's own time-out, as package net makes it.
func tooLong(int, net.Conn) (net.Conn, error) {
	return (&net.Dialer{Deadline: time.Unix(1, 0)}).Dial("tcp", "127.0.0.1:1")
}

// undialled fails a dial.
func undialled(err error) func(int, net.Conn) (net.Conn, error) {
	return func(int, net.Conn) (net.Conn, error) { return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err} }
}

// trouble is what may happen to connections before there is an answer.
type trouble struct {
	config  pullthroughtest.Config
	through func(int, net.Conn) (net.Conn, error)
	fault   *pullthroughtest.Fault
	change  func(*pullthrough.Proxy)
	before  func(*testing.T, *pipeworks)
	again   bool
}

var troubles = map[string]trouble{
	"a dial that takes too long":      {through: tooLong, again: true},
	"a TLS handshake that never ends": {config: secure, through: deaf, again: true},
	"a reset before the answer": {again: true, through: func(_ int, plain net.Conn) (net.Conn, error) {
		return unreadable{plain, syscall.ECONNRESET}, nil
	}},
	"an end before the answer":        {fault: &pullthroughtest.Fault{CutAfter: new(int64(-1))}, again: true},
	"an end of TLS before the answer": {config: pullthroughtest.Config{TLS: true}, fault: &pullthroughtest.Fault{CutAfter: new(int64(-1))}, again: true},
	"a reset of an HTTP/2 stream":     {config: secure, fault: &pullthroughtest.Fault{CutAfter: new(int64(-1))}, again: true},
	"GOAWAY before the answer":        {config: secure, fault: &pullthroughtest.Fault{Raw: pullthroughtest.GoAway(0, 2), CutAfter: new(int64(-1))}, again: true},
	"a refused connection":            {through: undialled(syscall.ECONNREFUSED)},
	"an unknown host":                 {through: undialled(&net.DNSError{Err: "no such host", Name: "x", IsNotFound: true})},
	"a certificate of nobody": {config: secure, through: newRoomy, before: func(t *testing.T, p *pipeworks) {
		require.NoError(t, p.Connect(testkit.Repo("a"), p.dial, x509.NewCertPool()))
	}},
	"a certificate of another host": {config: secure, through: newRoomy, change: func(p *pullthrough.Proxy) {
		p.Rules = pullthrough.StaticRules{{Prefix: testkit.Prefix, UpstreamURL: "https://registry.example"}}
	}},
	"a certificate that has expired": {config: secure, through: newRoomy, before: func(*testing.T, *pipeworks) { time.Sleep(50 * 365 * 24 * time.Hour) }},
	"a redirect to nowhere":          {fault: &pullthroughtest.Fault{Redirect: "ftp://x/"}},
	"no answer for 30 s":             {fault: &pullthroughtest.Fault{HeaderRate: 1}},
}

func testBrokenConnectionsAreTriedAgain(t *testing.T) {
	for name, c := range troubles {
		for _, once := range []bool{true, false} {
			if once && !c.again {
				continue
			}
			t.Run(fmt.Sprintf("%s, once: %v", name, once), func(t *testing.T) {
				inTime(t, c.config, c.change, func(t *testing.T, p *pipeworks) {
					if c.before != nil {
						c.before(t, p)
					}
					if c.through != nil {
						p.through = func(n int, plain net.Conn) (net.Conn, error) {
							if once && n > 1 {
								return plain, nil
							}
							return c.through(n, plain)
						}
					}
					if c.fault != nil {
						fault := *c.fault
						fault.Times = map[bool]int{true: 1}[once]
						p.Up.Fault(fault)
					}
					err := pullsManifest(t.Context(), t, p)
					if once {
						assert.NoError(t, err)
					} else {
						assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
					}
					want := map[bool]int{true: 2, false: 1}[once]
					if !once && c.again {
						want = 4
					}
					assert.Equal(t, want, max(p.connections(), p.Up.Count("*")))
				})
			})
		}
	}
}
