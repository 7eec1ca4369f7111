package fakeecr

import (
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/debug"
)

// PagePath is the path of the debug page. Its metrics for Prometheus are at
// PagePath + "/metrics".
const PagePath = "/debug/pullthrough"

// PageAccess says who may see the debug page and its metrics. They show the names of
// images and upstreams, which may be confidential.
type PageAccess string

// Who may see the debug page. "" is PageLocal.
const (
	// PageLocal lets clients on this machine see it, if they use the name localhost or
	// an IP address.
	PageLocal PageAccess = "local"
	// PageAll lets every client see it.
	PageAll PageAccess = "all"
	// PageOff has no page: its paths are not found.
	PageOff PageAccess = "off"
)

func (s *Server) newPage() *debug.Page {
	return &debug.Page{
		Proxy: s.Proxy, Title: "fakeecr",
		Registries: []debug.Registry{{Account: s.config.Account, Region: s.config.Region}},
		Credential: s.tellsSecret,
	}
}

// tellsSecret reports whether the rule's upstream is sent a secret.
func (s *Server) tellsSecret(rule pullthrough.Rule) bool {
	return rule.CredentialARN != "" || s.upstreams.Load().credential(rule) != pullthrough.Credential{}
}

func isPage(path string) bool {
	return path == PagePath || strings.HasPrefix(path, PagePath+"/")
}

func (s *Server) servePage(w http.ResponseWriter, r *http.Request) {
	if s.config.DebugPage == PageLocal && !isLocal(r) {
		http.Error(w, "fakeecr: this page is for clients on the same machine, see -debug-page", http.StatusForbidden)
		return
	}
	s.Page.ServeHTTP(w, r)
}

// isLocal reports whether the client is on this machine. A client that uses another name
// than localhost does not count: anybody can give a name to 127.0.0.1, and the client
// may be a browser that a web site has sent here (DNS rebinding).
func isLocal(r *http.Request) bool {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !from.Addr().Unmap().IsLoopback() {
		return false
	}
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = strings.Trim(r.Host, "[]")
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return strings.EqualFold(host, "localhost")
}
