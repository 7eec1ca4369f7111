package upstream_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// certify makes a certificate for the registry and its token server, which the
// proxy trusts. change may make something else of it.
func (s *siege) certify(t *testing.T, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"registry.test", "auth.registry.test"},
		NotBefore: time.Now().AddDate(-1, 0, 0), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true,
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	s.roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// secured returns a way to upstream by TLS of this test's own.
func (s *siege) secured(t *testing.T, c *tls.Config) dialFunc {
	t.Helper()
	l := testkit.NewPipes()
	srv := &http.Server{Handler: s.Up, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { assert.ErrorIs(t, srv.Serve(tls.NewListener(l, c)), http.ErrServerClosed) }()
	t.Cleanup(func() { assert.NoError(t, srv.Close()) })
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := l.Dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		b := &buffered{Conn: conn}
		b.changed.L = &b.mu
		go b.fill()
		return b, nil
	}
}

// buffered is a pipe's end that takes what comes before it is read, as sockets
// do: a client that breaks off a handshake has to get its alert out while the
// server still writes.
type buffered struct {
	net.Conn
	mu      sync.Mutex
	changed sync.Cond
	content bytes.Buffer
	err     error
}

func (b *buffered) fill() {
	for p := make([]byte, 4<<10); ; {
		n, err := b.Conn.Read(p)
		b.mu.Lock()
		b.content.Write(p[:n])
		b.err = err
		b.mu.Unlock()
		b.changed.Broadcast()
		if err != nil {
			return
		}
	}
}

func (b *buffered) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.content.Len() == 0 && b.err == nil {
		b.changed.Wait()
	}
	if b.content.Len() == 0 {
		return 0, b.err
	}
	return b.content.Read(p)
}

// distrust are servers that may not be who they should be.
var distrust = map[string]func(t *testing.T, s *siege) *tls.Config{
	"a certificate that has expired": func(t *testing.T, s *siege) *tls.Config {
		return with(s.certify(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }))
	},
	"one that is not valid yet": func(t *testing.T, s *siege) *tls.Config {
		return with(s.certify(t, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }))
	},
	"one for another name": func(t *testing.T, s *siege) *tls.Config {
		return with(s.certify(t, func(c *x509.Certificate) { c.DNSNames = []string{"registry.test.other.test", "other.test"} }))
	},
	"one for no server": func(t *testing.T, s *siege) *tls.Config {
		return with(s.certify(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }))
	},
	"one that nobody vouches for": func(t *testing.T, s *siege) *tls.Config {
		return with((&siege{roots: x509.NewCertPool()}).certify(t, nil))
	},
	"an old version of TLS": func(t *testing.T, s *siege) *tls.Config {
		c := with(s.certify(t, nil))
		c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		return c
	},
}

func with(c tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{c}} }

// nonsense are servers that do not speak TLS at all.
var nonsense = map[string]func(conn io.ReadWriter){
	"http where https should be": func(conn io.ReadWriter) { _, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") },
	"noise":                      func(conn io.ReadWriter) { _, _ = io.WriteString(conn, kilobyte) },
	"an alert":                   func(conn io.ReadWriter) { _, _ = conn.Write([]byte{21, 3, 3, 0, 2, 2, 40}) },
}

func testBadCertificates(t *testing.T) {
	for name, server := range distrust {
		t.Run(name, func(t *testing.T) {
			distrusted(t, func(t *testing.T, s *siege) dialFunc { return s.secured(t, server(t, s)) })
		})
	}
	for name, server := range nonsense {
		t.Run(name, func(t *testing.T) {
			distrusted(t, func(*testing.T, *siege) dialFunc {
				return serving(func(conn io.ReadWriter) {
					go func() { _, _ = io.Copy(io.Discard, conn) }() // as much as the client likes to say
					server(conn)
				})
			})
		})
	}
	t.Run("by the proxy's own transport", func(t *testing.T) {
		w := testkit.NewWorld(t, pullthroughtest.Config{TLS: true, Auth: pullthroughtest.Basic, Users: testkit.Users}, testkit.WithSecret(nil))
		_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
		assert.ErrorIs(t, err, pullthrough.ErrUnavailable)
		var unknown x509.UnknownAuthorityError
		assert.ErrorAs(t, err, &unknown)
		assert.Empty(t, w.Up.Log())
	})
}

// distrusted pulls from a registry, and one that has its tokens from a server,
// with which there is no secure connection.
func distrusted(t *testing.T, server func(t *testing.T, s *siege) dialFunc) {
	t.Run("registry", func(t *testing.T) {
		besieged(t, pullthroughtest.Config{TLS: true, Auth: pullthroughtest.Basic, Users: testkit.Users}, func(t *testing.T, s *siege) {
			s.login()
			s.at("registry.test", server(t, s))
			assert.Zero(t, elapsed(func() { s.refuse(t, "1", pullthrough.ErrUnavailable) }))
			assert.Empty(t, s.Up.Log())
			assert.Equal(t, []string{"registry.test:443"}, s.dials(), "it is not tried again, nor without TLS")
		})
	})
	t.Run("token server", func(t *testing.T) {
		config := pullthroughtest.Config{TLS: true, Auth: pullthroughtest.Bearer, Users: testkit.Users, Realm: "https://auth.registry.test/token"}
		besieged(t, config, func(t *testing.T, s *siege) {
			s.login()
			s.rule(pullthrough.Policy{RealmHosts: []string{"auth.registry.test"}})
			s.at("auth.registry.test", server(t, s))
			assert.Zero(t, elapsed(func() { s.refuse(t, "1", pullthrough.ErrUnavailable) }))
			assert.Equal(t, []string{"GET /v2/a/manifests/1 401"}, s.Up.Log())
			assert.Equal(t, []string{"registry.test:443", "auth.registry.test:443"}, s.dials(), "it is not tried again, nor without TLS")
			s.at("auth.registry.test", s.Up.DialPipe)
		})
	})
}

// dials are the addresses that were connected to.
func (s *siege) dials() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.dialled...)
}
