package debug_test

import (
	"net/http"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/debug"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

// A registry on one port, and what it is doing on another that only operators reach.
func Example() {
	proxy := &pullthrough.Proxy{
		Store: memstore.New(),
		Rules: pullthrough.StaticRules{{Prefix: "docker-hub", UpstreamURL: "registry-1.docker.io"}},
	}
	page := &debug.Page{Proxy: proxy}
	proxy.OnEvent = page.Record

	operators := http.NewServeMux()
	operators.Handle("/debug/pullthrough", page)
	operators.Handle("/debug/pullthrough/", page)
	go func() { _ = http.ListenAndServe("127.0.0.1:6060", operators) }()
	_ = http.ListenAndServe(":5000", proxy)
}
