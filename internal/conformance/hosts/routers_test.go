package hosts_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	"github.com/labstack/echo/v4"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/fakeecr"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// own is what a host has beside ECR, here for every path: API Gateway at /v2/apis, DynamoDB and others at POST /, and
// ECR's operations on repositories of its own.
func own(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("X-Host", "own")
	_, _ = io.WriteString(w, r.Method+" "+r.URL.Path+" "+string(body))
}

// serveECR answers what is ECR's, and reports whether it did. Else the request is as it was.
func serveECR(ecr *fakeecr.Server, w http.ResponseWriter, r *http.Request) bool {
	if pullthrough.IsRegistryRequest(r) { // at /v2/, without API Gateway's /v2/apis
		ecr.Proxy.ServeHTTP(w, r)
		return true
	}
	return ecr.API.TryServe(w, r)
}

func onNetHTTP(ecr *fakeecr.Server) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !serveECR(ecr, w, r) {
			own(w, r)
		}
	})
}

func onGin(ecr *fakeecr.Server) http.Handler {
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	engine.Use(func(c *gin.Context) {
		if serveECR(ecr, c.Writer, c.Request) {
			c.Abort()
		}
	})
	engine.NoRoute(func(c *gin.Context) { c.Status(http.StatusOK); own(c.Writer, c.Request) })
	engine.POST("/", func(c *gin.Context) { own(c.Writer, c.Request) })
	return engine
}

func onEcho(ecr *fakeecr.Server) http.Handler {
	e := echo.New()
	e.Pre(func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			if serveECR(ecr, c.Response(), c.Request()) {
				return nil
			}
			return next(c)
		}
	})
	e.Any("/*", func(c echo.Context) error { own(c.Response(), c.Request()); return nil })
	return e
}

func onChi(ecr *fakeecr.Server) http.Handler {
	r := chi.NewRouter()
	r.Use(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !serveECR(ecr, w, r) {
				next.ServeHTTP(w, r)
			}
		})
	})
	r.HandleFunc("/*", own)
	return r
}

const target = "AmazonEC2ContainerRegistry_V20150921."

// ask returns the answer's status, whether it is the host's own, and its body.
func ask(t *testing.T, method, url, amzTarget, body string) (status int, isOwn bool, answer string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	if amzTarget != "" {
		r.Header.Set("X-Amz-Target", amzTarget)
	}
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, resp.Header.Get("X-Host") != "", string(content)
}

func TestAnECRInsideOfARouter(t *testing.T) {
	for name, host := range map[string]func(*fakeecr.Server) http.Handler{"net/http": onNetHTTP, "gin": onGin, "echo": onEcho, "chi": onChi} {
		t.Run(name, func(t *testing.T) {
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 2, LayerSize: 2 << 20})
			ecr := pullthroughtest.NewECR(t, nil, fakeecr.Config{})
			ecr.Upstream.Push("library/alpine", "3.22", img)
			server := httptest.NewServer(host(ecr.Server))
			defer server.Close()

			at := strings.TrimPrefix(server.URL, "http://")
			pull(t, at+"/docker-hub/library/alpine:3.22")
			ecr.Idle()
			pull(t, at+"/docker-hub/library/alpine:3.22")
			assert.Equal(t, 1+len(img.Blobs()), len(ecr.Upstream.Log()), "%s", ecr.Upstream.Log())

			for _, c := range []struct {
				method, path, target, body string
				isOwn                      bool
				status                     int
				want                       string
			}{
				{"GET", "/v2/", "", "", false, 200, "{}"},
				{"GET", "/v2/docker-hub/library/alpine/tags/list", "", "", false, 200, `"3.22"`},
				{"GET", "/v2/mine/app/manifests/1", "", "", false, 404, "NAME_UNKNOWN"},
				{"GET", "/v2/apis", "", "", true, 200, "GET /v2/apis "},
				{"PUT", "/bucket/key", "", "the object", true, 200, "PUT /bucket/key the object"},
				{"POST", "/", "DynamoDB_20120810.ListTables", `{"Limit":1}`, true, 200, `POST / {"Limit":1}`},
				{"POST", "/", target + "DescribePullThroughCacheRules", `{}`, false, 200, `"docker-hub"`},
				{"POST", "/", target + "DescribeImages", `{"repositoryName":"docker-hub/library/alpine"}`, false, 200, img.Digest.String()},
				{"POST", "/", target + "DescribeImages", `{"repositoryName":"mine/app"}`, true, 200, `POST / {"repositoryName":"mine/app"}`},
				{"POST", "/", target + "PutImage", `{"repositoryName":"mine/app"}`, true, 200, `POST / {"repositoryName":"mine/app"}`},
			} {
				status, isOwn, answer := ask(t, c.method, server.URL+c.path, c.target, c.body)
				assert.Equal(t, c.status, status, "%s %s %s", c.method, c.path, c.target)
				assert.Equal(t, c.isOwn, isOwn, "%s %s %s", c.method, c.path, c.target)
				assert.Contains(t, answer, c.want)
			}
		})
	}
}

// A host that has a registry of its own asks the proxy first: a pull that a rule covers is answered, and all else is the
// registry's.
func TestAPullThroughCacheBeforeTheRegistryOfARouter(t *testing.T) {
	for name, host := range map[string]func(*pullthrough.Proxy) http.Handler{
		"gin": func(proxy *pullthrough.Proxy) http.Handler {
			engine := gin.New()
			engine.Any("/v2/*rest", func(c *gin.Context) {
				if !proxy.TryServe(c.Writer, c.Request) {
					own(c.Writer, c.Request)
				}
			})
			return engine
		},
		"echo": func(proxy *pullthrough.Proxy) http.Handler {
			e := echo.New()
			e.Any("/v2/*", func(c echo.Context) error {
				if !proxy.TryServe(c.Response(), c.Request()) {
					own(c.Response(), c.Request())
				}
				return nil
			})
			return e
		},
	} {
		t.Run(name, func(t *testing.T) {
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
			ecr := pullthroughtest.NewECR(t, nil, fakeecr.Config{})
			ecr.Upstream.Push("library/alpine", "3.22", img)
			server := httptest.NewServer(host(ecr.Proxy))
			defer server.Close()
			status, isOwn, answer := ask(t, "GET", server.URL+"/v2/docker-hub/library/alpine/manifests/3.22", "", "")
			assert.Equal(t, 200, status)
			assert.False(t, isOwn)
			assert.Equal(t, string(img.Content), answer)
			for _, c := range [][3]string{
				{"GET", "/v2/mine/app/manifests/1"},
				{"GET", "/v2/docker-hub/library/alpine/tags/list"},
				{"PUT", "/v2/docker-hub/library/alpine/manifests/mine", "a manifest"},
				{"HEAD", "/v2/docker-hub/library/alpine/blobs/" + img.Layers[0].Digest.String()},
			} {
				status, isOwn, answer := ask(t, c[0], server.URL+c[1], "", c[2])
				assert.Equal(t, 200, status, c[1])
				assert.True(t, isOwn, c[1])
				if c[0] != "HEAD" {
					assert.Equal(t, c[0]+" "+c[1]+" "+c[2], answer)
				}
			}
			ecr.Idle()
			assert.Equal(t, []string{"GET /v2/library/alpine/manifests/3.22 200"}, ecr.Upstream.Log())
		})
	}
}
