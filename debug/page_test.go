package debug_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/debug"
	"github.com/ecr-pullthrough/pullthrough/memstore"
)

var _ http.Handler = (*debug.Page)(nil)

func TestFormats(t *testing.T) {
	page := &debug.Page{}
	for name, tc := range map[string]struct{ target, accept, want string }{
		"browser":                  {"/debug/pullthrough", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"},
		"curl":                     {"/debug/pullthrough", "*/*", "text/html"},
		"nothing said":             {"/debug/pullthrough/", "", "text/html"},
		"stripped":                 {"/", "", "text/html"},
		"JSON wanted":              {"/debug/pullthrough", "application/json", "application/json"},
		"JSON wanted first":        {"/debug/pullthrough", "application/json, text/html", "application/json"},
		"JSON wanted less":         {"/debug/pullthrough", "application/json;q=0.5, text/html", "text/html"},
		"JSON not wanted":          {"/debug/pullthrough", "application/json;q=0, */*", "text/html"},
		"no Accept at all":         {"/debug/pullthrough", `;;,"q=,application/json;q=NaN;q=2`, "text/html"},
		"parameter":                {"/debug/pullthrough?format=json", "text/html", "application/json"},
		"parameter over path":      {"/debug/pullthrough/metrics?format=html", "", "text/html"},
		"Prometheus":               {"/debug/pullthrough/metrics", "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1", "text/plain"},
		"Prometheus, slash":        {"/debug/pullthrough/metrics/", "application/json", "text/plain"},
		"Prometheus by parameter":  {"/x?format=prometheus", "", "text/plain"},
		"Prometheus, stripped off": {"/metrics", "", "text/plain"},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, tc.target, nil)
			r.Header.Set("Accept", tc.accept)
			w := httptest.NewRecorder()
			page.ServeHTTP(w, r)
			assert.Equal(t, http.StatusOK, w.Code)
			assert.True(t, strings.HasPrefix(w.Header().Get("Content-Type"), tc.want), "%s", w.Header().Get("Content-Type"))
		})
	}
}

func TestWhatIsRefused(t *testing.T) {
	page := &debug.Page{}
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"} {
		w := httptest.NewRecorder()
		page.ServeHTTP(w, httptest.NewRequest(method, "/", nil))
		assert.Equal(t, http.StatusMethodNotAllowed, w.Code)
		assert.Equal(t, "GET, HEAD", w.Header().Get("Allow"))
	}
	w := httptest.NewRecorder()
	page.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/?format=<script>", nil))
	assert.Equal(t, http.StatusBadRequest, w.Code)
	assert.NotContains(t, w.Body.String(), "script")
}

func TestHeadersOfEveryAnswer(t *testing.T) {
	s := httptest.NewServer(http.StripPrefix("/debug/pullthrough", &debug.Page{}))
	t.Cleanup(s.Close)
	for _, target := range []string{"", "/", "/metrics", "?format=json", "?format=none"} {
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
			r, err := http.NewRequestWithContext(t.Context(), method, s.URL+"/debug/pullthrough"+target, nil)
			require.NoError(t, err)
			resp, err := s.Client().Do(r)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			assert.Equal(t, "no-store", resp.Header.Get("Cache-Control"))
			assert.Equal(t, "nosniff", resp.Header.Get("X-Content-Type-Options"))
			policy := resp.Header.Get("Content-Security-Policy")
			assert.Contains(t, policy, "default-src 'none'; ")
			assert.NotContains(t, policy, "unsafe")
			assert.NotEmpty(t, resp.Header.Get("Content-Type"))
		}
	}
}

// The policy lets exactly the page's own script and style through.
func TestTheSecurityPolicyNamesScriptAndStyle(t *testing.T) {
	w := get(t, &debug.Page{}, "/")
	for _, element := range []string{"script", "style"} {
		all := regexp.MustCompile(`(?s)<`+element+`>(.*?)</`+element+`>`).FindAllStringSubmatch(w.Body.String(), -1)
		require.Len(t, all, 1)
		hash := sha256.Sum256([]byte(all[0][1]))
		assert.Contains(t, w.Header().Get("Content-Security-Policy"), element+"-src 'sha256-"+base64.StdEncoding.EncodeToString(hash[:])+"'")
	}
	external := regexp.MustCompile(`(?i)(src|href|action|url)\s*[=(]\s*["']?([^"'\s>]*)`)
	for _, m := range external.FindAllStringSubmatch(w.Body.String(), -1) {
		assert.True(t, strings.HasPrefix(m[2], "?format=") || strings.HasPrefix(m[2], "data:"), "the page loads and links to nothing else: %s", m[0])
	}
	assert.NotRegexp(t, `\s(style|on[a-z]+)=`, w.Body.String())
}

func TestRulesOfNamedRegistriesAndOfThoseSeen(t *testing.T) {
	broken := errors.New("dial postgres://me:secret@db/rules: refused")
	page := &debug.Page{
		Title:      "Mine",
		Registries: []debug.Registry{{"111111111111", "us-east-1"}},
		Credential: func(r pullthrough.Rule) bool { return r.Prefix == "quay" },
		Proxy: &pullthrough.Proxy{Rules: pullthrough.RuleSourceFunc(func(ctx context.Context, account, region string) ([]pullthrough.Rule, error) {
			deadline, ok := ctx.Deadline()
			assert.True(t, ok && time.Until(deadline) <= 2*time.Second, "a view does not wait for ever")
			if account == "222222222222" {
				return nil, broken
			}
			return []pullthrough.Rule{{Prefix: "quay", UpstreamURL: "https://me:secret@quay.io/x?token=secret", UpstreamPrefix: region}, {Prefix: "hub", UpstreamURL: "docker.io"}}, nil
		})},
	}
	for _, e := range []pullthrough.Event{
		{Kind: pullthrough.EventBlob, Request: pullthrough.Request{Repo: pullthrough.Repo{Account: "222222222222", Region: "eu-west-1", Name: "x"}}},
		{Kind: pullthrough.EventBlob, Request: pullthrough.Request{Repo: pullthrough.Repo{Account: "111111111111", Region: "us-east-1", Name: "x"}}},
		{Kind: pullthrough.EventBlob, Request: pullthrough.Request{Repo: pullthrough.Repo{Account: "333333333333", Region: "us-east-1", Name: "x"}}, Err: pullthrough.ErrNoRule},
	} {
		page.Record(t.Context(), e)
	}
	s := getJSON(t, page)
	assert.Equal(t, "Mine", s.Title)
	assert.Equal(t, []shownRegistry{
		{Account: "111111111111", Region: "us-east-1", Rules: []shownRule{{"quay", "...@quay.io/x?...", "us-east-1", true}, {"hub", "docker.io", "", false}}},
		{Account: "222222222222", Region: "eu-west-1", Rules: []shownRule{}, Error: "dial postgres://...@db/rules: refused"},
	}, s.Registries)
}

func TestManyRules(t *testing.T) {
	rules := make(pullthrough.StaticRules, 250)
	page := &debug.Page{Proxy: &pullthrough.Proxy{Store: memstore.New(), Rules: rules}}
	s := getJSON(t, page)
	require.Len(t, s.Registries, 1)
	assert.Len(t, s.Registries[0].Rules, 200)
	assert.Equal(t, 50, s.Registries[0].More)
	assert.Contains(t, get(t, page, "/").Body.String(), "50 more are not shown.")
}

// A Page needs nothing to work.
func TestTheZeroPage(t *testing.T) {
	page := &debug.Page{}
	s := getJSON(t, page)
	assert.Equal(t, "pullthrough", s.Title)
	assert.WithinDuration(t, time.Now(), s.At, time.Minute)
	assert.Empty(t, s.Downloads)
	assert.Empty(t, s.Registries)
	assert.Empty(t, s.Events)
	html := get(t, page, "/").Body.String()
	for _, text := range []string{"Nothing is on its way.", "There are no rules to show.", "Nothing has happened yet.", "Nothing has been fetched."} {
		assert.Contains(t, html, text)
	}
	assert.Zero(t, metricsOf(t, page)[`pullthrough_requests_total{object="manifest",source="hit"}`])
}
