package conformance_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"strings"
	"sync"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	chimiddleware "github.com/go-chi/chi/v5/middleware"
	"github.com/gorilla/mux"
	"github.com/labstack/echo/v4"
	echomiddleware "github.com/labstack/echo/v4/middleware"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

// leaf is a registry's handler: rest is what its router says follows /v2/.
type leaf func(w http.ResponseWriter, r *http.Request, rest string)

func newGin(l leaf, change func(*gin.Engine)) http.Handler {
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	change(e)
	e.Any("/v2/*rest", func(c *gin.Context) { l(c.Writer, c.Request, c.Param("rest")) })
	return e
}

func newChi(l leaf, middlewares ...func(http.Handler) http.Handler) http.Handler {
	m := chi.NewRouter()
	m.Use(middlewares...)
	m.HandleFunc("/v2/*", func(w http.ResponseWriter, r *http.Request) { l(w, r, chi.URLParam(r, "*")) })
	return m
}

func newEcho(l leaf, change func(*echo.Echo)) http.Handler {
	e := echo.New()
	change(e)
	e.Any("/v2/*", func(c echo.Context) error { l(c.Response(), c.Request(), c.Param("*")); return nil })
	return e
}

func newGorilla(l leaf, change func(*mux.Router) *mux.Router) http.Handler {
	m := change(mux.NewRouter())
	m.HandleFunc("/v2/{rest:.*}", func(w http.ResponseWriter, r *http.Request) { l(w, r, mux.Vars(r)["rest"]) })
	return m
}

// routers are those in front of a registry's handler, as they come and with the settings
// that change how they read a path.
var routers = map[string]func(leaf) http.Handler{
	"none": func(l leaf) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { l(w, r, strings.TrimPrefix(r.URL.Path, "/v2/")) })
	},
	"ServeMux": func(l leaf) http.Handler {
		m := http.NewServeMux()
		m.HandleFunc("/v2/{rest...}", func(w http.ResponseWriter, r *http.Request) { l(w, r, r.PathValue("rest")) })
		return m
	},
	"chi":                func(l leaf) http.Handler { return newChi(l) },
	"chi, clean":         func(l leaf) http.Handler { return newChi(l, chimiddleware.CleanPath) },
	"chi, without slash": func(l leaf) http.Handler { return newChi(l, chimiddleware.StripSlashes) },
	"gin":                func(l leaf) http.Handler { return newGin(l, func(*gin.Engine) {}) },
	"gin, raw":           func(l leaf) http.Handler { return newGin(l, func(e *gin.Engine) { e.UseRawPath = true }) },
	"gin, raw and escaped": func(l leaf) http.Handler {
		return newGin(l, func(e *gin.Engine) { e.UseRawPath, e.UnescapePathValues = true, false })
	},
	"gin, extra slashes and fixed paths": func(l leaf) http.Handler {
		return newGin(l, func(e *gin.Engine) { e.RemoveExtraSlash, e.RedirectFixedPath = true, true })
	},
	"echo": func(l leaf) http.Handler { return newEcho(l, func(*echo.Echo) {}) },
	"echo, without slash": func(l leaf) http.Handler {
		return newEcho(l, func(e *echo.Echo) { e.Pre(echomiddleware.RemoveTrailingSlash()) })
	},
	"gorilla": func(l leaf) http.Handler { return newGorilla(l, func(m *mux.Router) *mux.Router { return m }) },
	"gorilla, encoded": func(l leaf) http.Handler {
		return newGorilla(l, func(m *mux.Router) *mux.Router { return m.UseEncodedPath().SkipClean(true) })
	},
}

// raw sends a request line as it is, and follows no redirect.
func raw(t *testing.T, server *httptest.Server, method, uri string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: registry.test\r\nConnection: close\r\n\r\n", method, uri)
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	require.NoError(t, err)
	return resp
}

// spellings are ways to write the path that somebody may read as the path itself.
func spellings(path string) []string {
	all := []string{path, path + "/", path + "/.", "/" + path, "/." + path, "/x/.." + path, path + "%00", path + "%20", path + ";x", strings.ToUpper(path), strings.ReplaceAll(path, "/", "%2f")}
	for i := range len(path) {
		if strings.HasSuffix(path[:i], "00") {
			continue // a digest has many of them
		}
		escape := fmt.Sprintf("%%%02x", path[i])
		for _, spelled := range []string{escape, strings.ToUpper(escape), "%25" + escape[1:], "%2525" + escape[1:]} {
			all = append(all, path[:i]+spelled+path[i+1:])
		}
		if path[i] == '/' {
			for _, slash := range []string{"//", "/./", "/x/../", "/%2e/", "/x/%2e%2e/", "/x%2f../", "/x%2f%2e%2e%2f", "/%2f", `\`, "%5c", `/x\..\`} {
				all = append(all, path[:i]+slash+path[i+1:])
			}
		}
	}
	return all
}

// readings are what a handler may make of what its router gives it.
func readings(rest string) (all []string) {
	rest = "/v2/" + strings.TrimPrefix(rest, "/")
	for range 3 {
		all = append(all, rest, path.Clean(rest), strings.ReplaceAll(rest, `\`, "/"))
		next, err := url.PathUnescape(rest)
		if err != nil {
			break
		}
		rest = next
	}
	return all
}

// reading is what a registry reads in a path.
func reading(rest string) (ocipath.Path, bool) {
	p, err := ocipath.Parse(&url.URL{Path: rest})
	return p, err == nil
}

// Whatever a router makes of a path: no pull of what a rule covers reaches the
// registry when nobody may pull it.
func TestNoSpellingWalksPastAuthorize(t *testing.T) {
	for name, router := range routers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var reached []string
			next := router(func(_ http.ResponseWriter, _ *http.Request, rest string) {
				mu.Lock()
				defer mu.Unlock()
				reached = append(reached, rest)
			})
			proxy := &pullthrough.Proxy{
				Store: memstore.New(),
				Rules: pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: "http://127.0.0.1:1"}},
				Authorize: func(context.Context, pullthrough.Action, pullthrough.Request) error {
					return errors.New("nobody may")
				},
			}
			server := httptest.NewServer(proxy.Handler(next))
			t.Cleanup(server.Close)
			for _, path := range []string{"/v2/hub/app/manifests/1", "/v2/hub/app/blobs/sha256:" + strings.Repeat("0", 64), "/v2/hub/app/referrers/sha256:" + strings.Repeat("0", 64)} {
				for _, uri := range spellings(path) {
					for _, method := range []string{http.MethodGet, http.MethodHead} {
						if strings.ContainsAny(uri, " ") {
							continue
						}
						status := raw(t, server, method, uri).StatusCode
						mu.Lock()
						for _, rest := range reached {
							for _, r := range readings(rest) {
								p, ok := reading(r)
								assert.False(t, ok && strings.HasPrefix(p.Name, "hub/"), "%s %s: %d, and the registry may read %s", method, uri, status, r)
							}
						}
						reached = nil
						mu.Unlock()
					}
				}
			}
		})
	}
}

// What we pass on after we have read it is read alike: the name, and the colon of a digest.
func TestTheRegistryReadsTheNameThatWeRead(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0", 64)
	for name, router := range routers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got string
			next := router(func(_ http.ResponseWriter, _ *http.Request, rest string) {
				got = "/v2/" + strings.TrimPrefix(rest, "/")
			})
			proxy := &pullthrough.Proxy{
				Store: memstore.New(),
				Rules: pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: "http://127.0.0.1:1"}},
				Policy: func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
					return pullthrough.Policy{Offline: true}
				},
			}
			server := httptest.NewServer(proxy.Handler(next))
			t.Cleanup(server.Close)
			for uri, want := range map[string]string{
				"/v2/hub/app/manifests/1":                                         "",
				"/v2/hub/app/blobs/" + digest:                                     "",
				"/v2/hub/app/blobs/" + strings.Replace(digest, ":", "%3A", 1):     "/v2/hub/app/blobs/" + digest,
				"/v2/hub/app/manifests/" + strings.Replace(digest, ":", "%3a", 1): "/v2/hub/app/manifests/" + digest,
				"/v2/hub/manifests/x/blobs/" + digest:                             "",
				"/v2/mine/app/manifests/1":                                        "",
				"/v2/mine/app/blobs/" + digest:                                    "",
				"/v2/mine/Upper_/manifests/1":                                     "",
			} {
				if want == "" {
					want = uri
				}
				got = ""
				assert.Equal(t, http.StatusOK, raw(t, server, http.MethodGet, uri).StatusCode, uri)
				assert.Equal(t, want, got)
			}
		})
	}
}
