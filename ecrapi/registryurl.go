package ecrapi

import (
	"context"
	"net"
	"net/http"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/hostname"
	"github.com/ecr-pullthrough/pullthrough/internal/serve"
)

// requestKey is the key of the request that an operation answers, in its context.
type requestKey struct{}

func withRequest(r *http.Request) context.Context {
	return context.WithValue(r.Context(), requestKey{}, r)
}

// registryURL returns a scheme and a host.
func (a *API) registryURL(ctx context.Context, reg registry) string {
	r, _ := ctx.Value(requestKey{}).(*http.Request)
	if a.Images.RegistryURL != nil {
		return strings.TrimSuffix(a.Images.RegistryURL(r, reg.account, reg.region), "/")
	}
	if r == nil {
		return "https://" + ownHost(reg, "localhost")
	}
	scheme, host, ok := strings.Cut(serve.Origin(r), "://")
	if !ok {
		scheme, host = "http", hostOf(r)
	}
	return scheme + "://" + a.hostOfRegistry(reg, host)
}

// hostOf returns the host that the client has used. If it sent none that is valid, it is
// the address that its connection has reached.
func hostOf(r *http.Request) string {
	if hostname.Valid(r.Host) {
		return r.Host
	}
	if addr, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		return addr.String()
	}
	return "localhost"
}

// hostOfRegistry returns the host of a registry on a server that was reached by host. One
// server has registries of several accounts if they have names of their own, as
// [pullthrough.HostIdentity] reads them: so they are named where the server has been
// reached by such a name, and where the account is not the API's own. What has no name,
// and localhost, cannot have names below it.
func (a *API) hostOfRegistry(reg registry, host string) string {
	if own, _ := pullthrough.HostIdentity(&http.Request{Host: host}); own.Account != "" {
		_, domain, _ := strings.Cut(host, "."+own.Region+".")
		return ownHost(reg, domain)
	}
	if reg.account == a.registry("", "").account || !isNamed(host) {
		return host
	}
	return ownHost(reg, host)
}

func ownHost(reg registry, domain string) string {
	return reg.account + ".dkr.ecr." + reg.region + "." + domain
}

// isNamed reports whether the host has a name of its own.
func isNamed(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	return net.ParseIP(strings.Trim(name, "[]")) == nil && !strings.EqualFold(name, "localhost")
}
