package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/ecr-pullthrough/pullthrough/fakeecr"
)

// healthTimeout is how long a fakeecr may take to say that it can serve.
const healthTimeout = 5 * time.Second

// checkHealth asks the fakeecr that listens where c says. In an image that has nothing but
// this program, nothing else could. It trusts any certificate, since it sends no secret and
// believes nothing but the status.
func checkHealth(ctx context.Context, c *config, stdout io.Writer) error {
	host, port, _ := net.SplitHostPort(c.listen)
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "localhost"
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.tls.scheme()+"://"+net.JoinHostPort(host, port)+fakeecr.HealthPath, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", r.URL, resp.Status)
	}
	_, err = fmt.Fprintln(stdout, "healthy")
	return err
}
