package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/selfsigned"
)

// clientFor trusts the certificates in the file.
func clientFor(t *testing.T, file string) *http.Client {
	t.Helper()
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(content))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true, DisableKeepAlives: true}
	return &http.Client{Transport: transport}
}

// A client that trusts the file, and no other, can talk to the program under all its names.
func TestSelfSigned(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ca.pem")
	i := start(t, "-tls-self-signed", file, "-tls-name", "ecr.test")
	require.Regexp(t, "^https://", i.url)
	client := clientFor(t, file)
	resp, err := client.Get(i.url + "/v2/")
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, 200, resp.StatusCode)
	assert.Equal(t, 2, resp.ProtoMajor)
	for _, name := range []string{"localhost", "::1", "ecr.test", "123456789012.dkr.ecr.us-east-1.amazonaws.com", "api.ecr.us-east-1.amazonaws.com"} {
		assert.NoError(t, resp.TLS.PeerCertificates[0].VerifyHostname(name), name)
	}
	assert.Error(t, resp.TLS.PeerCertificates[0].VerifyHostname("quay.io"))
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.NotContains(t, string(content), "KEY")
	_, err = http.Get(i.url + "/v2/")
	assert.ErrorContains(t, err, "certificate")
}

// newPair writes a certificate and its key.
func newPair(t *testing.T, cert, key string) {
	t.Helper()
	pair, err := selfsigned.New([]string{"127.0.0.1"}, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	require.NoError(t, err)
	write(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})))
	write(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
}

// SIGHUP shows a certificate that has been renewed; where it is none, the old one stays.
func TestCertificateFromFiles(t *testing.T) {
	cert, key := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	newPair(t, cert, key)
	i := start(t, "-tls-cert", cert, "-tls-key", key)
	get := func(client *http.Client) error {
		resp, err := client.Get(i.url + "/v2/")
		if err == nil {
			err = resp.Body.Close()
		}
		return err
	}
	old := clientFor(t, cert)
	require.NoError(t, get(old))
	newPair(t, cert, key)
	require.NoError(t, get(old))
	i.hup(t, "the files have been read again")
	assert.Error(t, get(old))
	renewed := clientFor(t, cert)
	assert.NoError(t, get(renewed))
	write(t, cert, "no certificate")
	i.hup(t, "the files cannot be used")
	assert.NoError(t, get(renewed))
}

func TestHealth(t *testing.T) {
	ask := func(args ...string) (status int, stdout, stderr string) {
		var out, failed bytes.Buffer
		status = program{append(args, "-health"), nil, &out, &failed, noSignals}.run()
		return status, out.String(), failed.String()
	}
	dir, file := filepath.Join(t.TempDir(), "images"), filepath.Join(t.TempDir(), "ca.pem")
	plain, secured := start(t, "-data", dir), start(t, "-tls-self-signed", file)
	port := plain.url[strings.LastIndexByte(plain.url, ':'):]
	for _, listen := range []string{"127.0.0.1" + port, "0.0.0.0" + port, port} {
		status, stdout, stderr := ask("-listen", listen)
		assert.Equal(t, []any{exitOK, "healthy\n", ""}, []any{status, stdout, stderr}, listen)
	}
	status, stdout, _ := ask("-listen", strings.TrimPrefix(secured.url, "https://"), "-tls-self-signed", filepath.Join(t.TempDir(), "none", "ca.pem"))
	assert.Equal(t, exitOK, status)
	assert.Equal(t, "healthy\n", stdout)

	require.NoError(t, os.Rename(dir, dir+".away"))
	status, stdout, stderr := ask("-listen", "127.0.0.1"+port)
	require.NoError(t, os.Rename(dir+".away", dir))
	assert.Equal(t, exitFailure, status)
	assert.Empty(t, stdout)
	assert.Equal(t, "fakeecr: http://127.0.0.1"+port+"/health: 503 Service Unavailable\n", stderr)
	plain.stop(t)
	status, _, stderr = ask("-listen", "127.0.0.1"+port)
	assert.Equal(t, exitFailure, status)
	assert.Contains(t, stderr, "connection refused")
}

func TestVersion(t *testing.T) {
	var stdout bytes.Buffer
	assert.Equal(t, exitOK, program{args: []string{"-version"}, stdout: &stdout, stderr: io.Discard}.run())
	assert.Regexp(t, `^fakeecr \S+( commit [0-9a-f]+)? go\S+( \S+)* [a-z0-9]+/[a-z0-9]+\n$`, stdout.String())
}
