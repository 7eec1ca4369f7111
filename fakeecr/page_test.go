package fakeecr_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/fakeecr"
)

func TestThePageShowsPulls(t *testing.T) {
	up, img := newUpstream(t), newImage()
	up.Push("app", "v1", img)
	i := start(t, fakeecr.Config{
		Rules:       []pullthrough.Rule{ruleTo("p", up.URL), ruleTo("open", up.URL)},
		Credentials: map[string]pullthrough.Credential{"p": me},
		Secrets:     map[string]pullthrough.Credential{hubName: me},
	})
	i.ok(t, "CreatePullThroughCacheRule", hubRule)
	i.pull(t, "p/app", "v1", img)
	i.pull(t, "p/app", "v1", img)

	resp, body := i.get(t, fakeecr.PagePath+"?format=json")
	assert.Equal(t, "application/json", resp.Header.Get("Content-Type"))
	var page struct {
		Title      string
		Totals     struct{ Requests, Filled int64 }
		Registries []struct {
			Account, Region string
			Rules           []struct {
				Prefix     string
				Credential bool
			}
		}
	}
	require.NoError(t, json.Unmarshal(body, &page), string(body))
	assert.Equal(t, "fakeecr", page.Title)
	assert.EqualValues(t, 2*(1+len(img.Blobs())), page.Totals.Requests)
	assert.EqualValues(t, 1+len(img.Blobs()), page.Totals.Filled)
	require.Len(t, page.Registries, 1)
	assert.Equal(t, "123456789012 us-east-1", page.Registries[0].Account+" "+page.Registries[0].Region)
	credentials := map[string]bool{}
	for _, rule := range page.Registries[0].Rules {
		credentials[rule.Prefix] = rule.Credential
	}
	assert.Equal(t, map[string]bool{"p": true, "open": false, "docker-hub": true}, credentials)
	assert.NotContains(t, string(body), secret)

	resp, body = i.get(t, fakeecr.PagePath+"/metrics")
	assert.Contains(t, resp.Header.Get("Content-Type"), "version=0.0.4")
	assert.Contains(t, string(body), `pullthrough_requests_total{`)
	for _, path := range []string{fakeecr.PagePath, fakeecr.PagePath + "/"} {
		resp, body = i.get(t, path)
		assert.Equal(t, 200, resp.StatusCode)
		assert.Contains(t, string(body), "<title>fakeecr")
	}
}

// A client that is not on this machine sees the page only if DebugPage says so.
func TestWhoSeesThePage(t *testing.T) {
	for name, c := range map[string]struct {
		from, host string
		local      bool
	}{
		"loopback":                 {"127.0.0.1:1234", "127.0.0.1:5000", true},
		"localhost":                {"127.0.0.1:1234", "localhost:5000", true},
		"localhost in capitals":    {"127.0.0.1:1234", "LOCALHOST", true},
		"IPv6":                     {"[::1]:1234", "[::1]:5000", true},
		"IPv6 without a port":      {"[::1]:1234", "[::1]", true},
		"IPv4 in IPv6":             {"[::ffff:127.0.0.1]:1234", "localhost:5000", true},
		"another machine":          {"192.168.1.7:1234", "192.168.1.6:5000", false},
		"another, lying":           {"192.168.1.7:1234", "localhost:5000", false},
		"a web site's name for us": {"127.0.0.1:1234", "rebound.test:5000", false},
		"one that begins like us":  {"127.0.0.1:1234", "127.0.0.1.rebound.test:5000", false},
		"no host":                  {"127.0.0.1:1234", "", false},
		"a pipe":                   {"@", "localhost:5000", false},
	} {
		t.Run(name, func(t *testing.T) {
			for mode, want := range map[fakeecr.PageAccess]bool{"": c.local, fakeecr.PageLocal: c.local, fakeecr.PageAll: true, fakeecr.PageOff: false} {
				ecr, err := fakeecr.New(fakeecr.Config{DebugPage: mode})
				require.NoError(t, err)
				for _, path := range []string{fakeecr.PagePath, fakeecr.PagePath + "/metrics"} {
					req := httptest.NewRequest(http.MethodGet, path, nil)
					req.RemoteAddr, req.Host = c.from, c.host
					w := httptest.NewRecorder()
					ecr.ServeHTTP(w, req)
					assert.Equal(t, want, w.Code == 200, "%s %s: %d", mode, path, w.Code)
				}
			}
		})
	}
}
