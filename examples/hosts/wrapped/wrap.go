// Package wrapped puts a pull through cache before somebody else's registry, of
// which nothing is known but that it is an http.Handler: go-containerregistry's,
// distribution's, one of one's own.
package wrapped

import (
	"net/http"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/handlerstore"
)

// Wrap returns the handler to serve in the registry's place, and the proxy in it, to
// shut down after the server. What is pulled through is in the registry afterwards,
// and what no rule covers is the registry's own affair.
func Wrap(registry http.Handler, rules pullthrough.RuleSource) (http.Handler, *pullthrough.Proxy) {
	proxy := &pullthrough.Proxy{
		Store: &handlerstore.Store{Handler: registry},
		Rules: rules,
		Fill:  pullthrough.FillEager, // registries want layers before manifests
	}
	return proxy.Handler(registry), proxy
}
