package main

import (
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/debug"
)

const pagePath = "/debug/pullthrough"

func (r *registry) newPage() *debug.Page {
	return &debug.Page{
		Proxy: r.proxy, Title: "fakeecr",
		Registries: []debug.Registry{{Account: r.config.account, Region: r.config.region}},
		Credential: r.config.tellsSecret,
	}
}

// tellsSecret reports whether the rule's upstream is told a secret.
func (c *config) tellsSecret(rule pullthrough.Rule) bool {
	u := c.upstreams.given(rule)
	return rule.CredentialARN != "" || u != nil && u.credential != (pullthrough.Credential{})
}

func isPage(path string) bool {
	return path == pagePath || strings.HasPrefix(path, pagePath+"/")
}

// servePage tells names of images and upstreams, and so what people work on: to this
// machine only, unless -debug-page says otherwise.
func (r *registry) servePage(w http.ResponseWriter, req *http.Request) {
	if r.config.debugPage == "local" && !isLocal(req) {
		http.Error(w, "fakeecr: this page is for clients on the same machine, see -debug-page", http.StatusForbidden)
		return
	}
	r.page.ServeHTTP(w, req)
}

// isLocal reports whether the client is on this machine. One that calls us by a name
// that anybody could give to 127.0.0.1 may be a browser that a web site has sent here
// (DNS rebinding): that counts as elsewhere.
func isLocal(req *http.Request) bool {
	from, err := netip.ParseAddrPort(req.RemoteAddr)
	if err != nil || !from.Addr().Unmap().IsLoopback() {
		return false
	}
	host, _, err := net.SplitHostPort(req.Host)
	if err != nil {
		host = strings.Trim(req.Host, "[]")
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return strings.EqualFold(host, "localhost")
}
