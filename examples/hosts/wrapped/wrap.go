// Package wrapped puts a pull through cache in front of any registry that is an
// http.Handler, such as that of go-containerregistry or distribution.
package wrapped

import (
	"net/http"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/handlerstore"
)

// Wrap returns a handler to serve instead of the registry, and its proxy. Shut the proxy
// down after the server. Images that are pulled through are stored in the registry. The
// registry answers all requests that no rule covers, and all pushes.
func Wrap(registry http.Handler, rules pullthrough.RuleSource) (http.Handler, *pullthrough.Proxy) {
	proxy := &pullthrough.Proxy{
		Store: &handlerstore.Store{Handler: registry},
		Rules: rules,
		Fill:  pullthrough.FillEager, // registries want layers before manifests
	}
	return proxy.Handler(registry), proxy
}
