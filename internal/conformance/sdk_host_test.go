package conformance_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/ecrapi"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

// host is a fake ECR in this process, for what needs functions of the host's.
type host struct {
	url     string
	api     *ecrapi.API
	proxy   *pullthrough.Proxy
	catalog *ecrapi.Catalog
}

// hostECR starts one. change, if not nil, may change it before its first use.
func hostECR(t *testing.T, change func(*host)) *host {
	t.Helper()
	h := &host{api: &ecrapi.API{}, catalog: &ecrapi.Catalog{}}
	h.catalog.Template, h.catalog.Excluded = h.api.Template, h.api.Excluded
	h.proxy = &pullthrough.Proxy{
		Store: h.catalog.Around(memstore.New()), Rules: h.api, Credentials: h.api.Credentials,
		OnEvent: h.catalog.RecordPull, SpoolDir: t.TempDir(),
	}
	h.api.Images = &ecrapi.Images{Proxy: h.proxy, Catalog: h.catalog, RegistryURL: func(*http.Request, string, string) string { return h.url }}
	if change != nil {
		change(h)
	}
	t.Cleanup(func() { assert.NoError(t, h.proxy.Shutdown(context.Background())) })
	mux := http.NewServeMux()
	mux.Handle("/v2/", h.proxy)
	mux.Handle("/", h.api)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	h.url = server.URL
	return h
}

// client is the SDK before the host.
func (h *host) client() *ecr.Client { return ecr.New(sdkOptions(h.url)) }

// post sends a body past the SDK.
func (h *host) post(t *testing.T, target, body string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url+"/", strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	r.Header.Set("X-Amz-Target", target)
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	content, err := io.ReadAll(resp.Body)
	require.NoError(t, errors.Join(err, resp.Body.Close()))
	return resp, string(content)
}
