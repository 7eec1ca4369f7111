// Package hostname compares the host names of registries.
package hostname

import (
	"net/url"
	"strconv"
	"strings"
)

// Valid reports whether s is a host name, with or without a port, and nothing
// else.
func Valid(s string) bool {
	u, err := url.Parse("https://" + s)
	if err != nil || u.Host != s || u.Hostname() == "" || strings.HasSuffix(s, ":") {
		return false
	}
	_, err = strconv.ParseUint(u.Port(), 10, 16)
	return err == nil || u.Port() == ""
}

// Canonical returns the host of an upstream, which is given as a host or a URL, in the
// spelling in which hosts are compared. It is in lower case, and the three names of Docker
// Hub become one.
func Canonical(upstream string) string {
	host := strings.ToLower(upstream)
	if _, rest, ok := strings.Cut(host, "://"); ok {
		host = rest
	}
	host, _, _ = strings.Cut(host, "/")
	switch host {
	case "docker.io", "index.docker.io":
		return DockerHub
	}
	return host
}

// DockerHub is the canonical name of Docker Hub's registry.
const DockerHub = "registry-1.docker.io"

// IsAt reports whether clients that ask for host mean the registry at u. Both may have the
// port of u's scheme, or leave it out.
func IsAt(u *url.URL, host string) bool {
	port := ":443"
	if u.Scheme == "http" {
		port = ":80"
	}
	return Canonical(strings.TrimSuffix(u.Host, port)) == Canonical(strings.TrimSuffix(host, port))
}
