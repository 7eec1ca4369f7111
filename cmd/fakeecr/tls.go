package main

import (
	"crypto/tls"
	"encoding/pem"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/ecr-pullthrough/pullthrough/internal/selfsigned"
)

// keyPair says which certificate is shown. The zero keyPair is none: the server is http.
type keyPair struct {
	certFile, keyFile string
	selfSigned        string   // a file to write the certificate to
	names             []string // of the self-signed certificate
}

func (k *keyPair) scheme() string {
	if k.certFile == "" && k.selfSigned == "" {
		return "http"
	}
	return "https"
}

// selfSignedLife is long enough for every test, and short enough for clients that refuse
// certificates which live for years.
const selfSignedLife = 365 * 24 * time.Hour

// certificate is what the server shows to new connections.
type certificate struct {
	current atomic.Pointer[tls.Certificate]
}

// load reads the certificate from its files, or makes it. The error is a *flagError, and
// nothing has changed then.
func (x *certificate) load(c *config) error {
	var pair tls.Certificate
	var err error
	switch {
	case c.tls.certFile != "":
		if pair, err = tls.LoadX509KeyPair(c.tls.certFile, c.tls.keyFile); err != nil {
			return badFlag("-tls-cert", c.tls.certFile, err.Error())
		}
	case c.tls.selfSigned != "" && x.current.Load() == nil:
		if pair, err = c.selfSign(); err != nil {
			return badFlag("-tls-self-signed", c.tls.selfSigned, err.Error())
		}
	default:
		return nil
	}
	x.current.Store(&pair)
	return nil
}

// config returns nil if the server is http.
func (x *certificate) config() *tls.Config {
	if x.current.Load() == nil {
		return nil
	}
	return &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return x.current.Load(), nil }}
}

// selfSign makes a certificate and writes it, without its key, to the file.
func (c *config) selfSign() (tls.Certificate, error) {
	now := time.Now()
	pair, err := selfsigned.New(c.certificateNames(), now.Add(-time.Hour), now.Add(selfSignedLife))
	if err != nil {
		return pair, err
	}
	content := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})
	temp := c.tls.selfSigned + ".new"
	if err := os.WriteFile(temp, content, 0o644); err != nil {
		return pair, err
	}
	return pair, os.Rename(temp, c.tls.selfSigned)
}

// certificateNames are the names that clients may use: those of this machine, and those that
// the registry and the API of the account have in AWS.
func (c *config) certificateNames() []string {
	names := []string{
		"localhost", "127.0.0.1", "::1",
		c.Account + ".dkr.ecr." + c.Region + ".amazonaws.com", "api.ecr." + c.Region + ".amazonaws.com", "ecr." + c.Region + ".amazonaws.com",
	}
	if host, _, err := net.SplitHostPort(c.listen); err == nil && host != "" {
		names = append(names, host)
	}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	return append(names, c.tls.names...)
}
