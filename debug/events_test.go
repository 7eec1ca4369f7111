package debug_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/debug"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// formats are all that the page can be asked for.
var formats = []string{"/", "/?format=json", "/metrics"}

func TestCounters(t *testing.T) {
	page := &debug.Page{}
	tell := func(n int, e pullthrough.Event) {
		for range n {
			page.Record(t.Context(), e)
		}
	}
	head := pullthrough.Request{Head: true}
	tell(5, pullthrough.Event{Kind: pullthrough.EventManifest, Source: pullthrough.SourceHit, Bytes: 10})
	tell(1, pullthrough.Event{Kind: pullthrough.EventManifest, Source: pullthrough.SourceRevalidated, Bytes: 10, Request: head})
	tell(2, pullthrough.Event{Kind: pullthrough.EventBlob, Source: pullthrough.SourceFill, Bytes: 100})
	tell(3, pullthrough.Event{Kind: pullthrough.EventBlob, Source: pullthrough.SourceShared, Bytes: 100})
	tell(1, pullthrough.Event{Kind: pullthrough.EventReferrers, Source: pullthrough.SourceStale, Bytes: 7})
	tell(2, pullthrough.Event{Kind: pullthrough.EventBlob, Err: &pullthrough.Error{Kind: pullthrough.ErrDenied, Err: pullthrough.ErrNotFound}})
	tell(1, pullthrough.Event{Kind: pullthrough.EventBlob, Err: fmt.Errorf("reading: %w", context.Canceled), Request: head})
	tell(1, pullthrough.Event{Kind: pullthrough.EventManifest, Err: errors.New("of the host")})
	tell(2, pullthrough.Event{Kind: pullthrough.EventFetch, Object: pullthrough.EventBlob, Rule: "hub", Bytes: 100, Upstream: 2, Duration: 3 * time.Second})
	tell(1, pullthrough.Event{Kind: pullthrough.EventFetch, Object: pullthrough.EventManifest, Rule: "quay", Upstream: 4, Err: &pullthrough.Error{Kind: pullthrough.ErrRateLimited}, Warnings: []string{"a", "b"}, Anonymous: true})
	tell(1, pullthrough.Event{Kind: pullthrough.EventFetch, Object: pullthrough.EventManifest, Rule: "quay", WrongDigest: true})
	tell(4, pullthrough.Event{Kind: pullthrough.EventStoreFailed, Err: errors.New("disk full")})
	tell(1, pullthrough.Event{Kind: "of tomorrow"})
	tell(1, pullthrough.Event{Kind: pullthrough.EventManifest, Source: 99})

	s := getJSON(t, page)
	assert.Equal(t, map[string]int64{
		"running": 0, "readers": 0, "requests": 16, "heads": 2, "failed": 4, "stored": 7, "shared": 3, "filled": 2, "sent": 0, "bytes": 5*10 + 2*100 + 3*100 + 7,
		"fetches": 4, "failedFetches": 1, "fetchedBytes": 200, "upstream": 8, "storeFailures": 4, "warnings": 2, "anonymous": 1, "wrongDigests": 1,
	}, s.Totals)
	assert.Equal(t, []shownFailure{{"denied", 2, 0}, {"rate-limited", 0, 1}, {"canceled", 1, 0}, {"internal", 1, 0}}, s.Failures)
	assert.Equal(t, map[string]any{"source": "shared", "manifests": 0.0, "blobs": 3.0, "referrers": 0.0, "bytes": 300.0}, s.Answers[2])
	assert.Equal(t, map[string]any{"rule": "hub", "fetched": 2.0, "failed": 0.0, "upstream": 4.0, "bytes": 200.0, "meanMicros": 3e6}, s.Fetches[0])
	assert.Equal(t, map[string]any{"rule": "quay", "fetched": 1.0, "failed": 1.0, "upstream": 4.0, "bytes": 0.0, "meanMicros": 0.0}, s.Fetches[1])
	assert.Len(t, s.Events, 26)
	assert.Subset(t, metricsOf(t, page), map[string]float64{
		`pullthrough_requests_total{object="manifest",source="hit"}`:                      5,
		`pullthrough_requests_total{object="manifest",source="none"}`:                     1,
		`pullthrough_requests_total{object="blob",source="none"}`:                         3,
		`pullthrough_head_requests_total{object="manifest"}`:                              1,
		`pullthrough_request_failures_total{object="blob",kind="denied"}`:                 2,
		`pullthrough_bytes_total{object="manifest",source="revalidated"}`:                 0,
		`pullthrough_bytes_total{object="referrers",source="stale"}`:                      7,
		`pullthrough_fetches_total{rule="quay",object="manifest",outcome="rate-limited"}`: 1,
		`pullthrough_fetches_total{rule="quay",object="manifest",outcome="ok"}`:           1,
		`pullthrough_fetch_duration_seconds_sum{rule="hub"}`:                              6,
		`pullthrough_store_failures_total`:                                                4,
		`pullthrough_warnings_total`:                                                      2,
		`pullthrough_anonymous_fetches_total`:                                             1,
		`pullthrough_wrong_digests_total`:                                                 1,
	})
}

func TestTheLastEventsAreKept(t *testing.T) {
	for _, tc := range []struct{ max, told, want int }{{0, 150, 150}, {0, 500, 200}, {3, 2, 2}, {3, 3, 3}, {3, 8, 3}, {1, 5, 1}, {-1, 5, 0}} {
		page := &debug.Page{Events: tc.max}
		for i := range tc.told {
			page.Record(t.Context(), pullthrough.Event{Kind: pullthrough.EventManifest, Request: pullthrough.Request{Ref: fmt.Sprint(i + 1)}})
		}
		s := getJSON(t, page)
		require.Len(t, s.Events, tc.want)
		for i, e := range s.Events {
			assert.EqualValues(t, tc.told-i, e.Number)
			assert.Equal(t, fmt.Sprint(tc.told-i), e.Ref)
		}
		assert.EqualValues(t, tc.told, s.Totals["requests"])
	}
}

// hostile are texts that others have chosen.
var hostile = []string{
	`"><script>alert(1)</script><img src=x onerror=alert(1)>`, `</script></style></title><!--`, `'"` + "`${alert(1)}`]]>", "a\nb\r\n\x00\x1b[31m",
	"\xff\xfe\xc0\x80", "\u202egnp.exe\u2066\u200b\ufeff\u2028", `{{.Title}} {{template "x"}}`, `\u003cscript\u003e &lt;b&gt; &#60;`, "javascript:alert(1)", strings.Repeat("é", 100_000),
}

func TestHostileTextsAreHarmless(t *testing.T) {
	for _, text := range hostile {
		page := &debug.Page{Title: text, Registries: []debug.Registry{{text, text}}, Proxy: &pullthrough.Proxy{
			Rules: pullthrough.StaticRules{{Prefix: text, UpstreamURL: text, UpstreamPrefix: text}},
		}}
		request := pullthrough.Request{Repo: pullthrough.Repo{Account: text, Region: text, Name: text}, Ref: text}
		for _, kind := range []string{pullthrough.EventManifest, pullthrough.EventFetch, pullthrough.EventStoreFailed, text} {
			for _, err := range []error{nil, errors.New(text), &pullthrough.Error{Kind: pullthrough.ErrDenied, Host: text, Err: errors.New(text)}} {
				page.Record(t.Context(), pullthrough.Event{Kind: kind, Object: pullthrough.EventBlob, Rule: text, Request: request, Digest: text, Err: err, Warnings: []string{text, text, text, text}})
			}
		}
		for _, format := range formats {
			body := get(t, page, format).Body.String()
			assert.True(t, utf8.ValidString(body))
			assert.Less(t, len(body), 200_000)
			for _, control := range []string{"\x00", "\x1b", "\u202e", "\u2028"} {
				assert.False(t, strings.Contains(body, control), "%q in %s", control, format)
			}
		}
		assert.NotContains(t, get(t, page, "/?format=json").Body.String(), "<")
		html := get(t, page, "/").Body.String()
		for _, element := range []string{"script", "style", "title", "main"} {
			assert.Equal(t, 1, strings.Count(html, "</"+element+">"), "%.40q closes a %s", text, element)
			assert.Equal(t, 1, strings.Count(html, "<"+element+">"), "%.40q opens a %s", text, element)
		}
		assert.False(t, strings.Contains(html, "<img"))
		metricsOf(t, page)
		assert.Len(t, getJSON(t, page).Events, 12)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	page := &debug.Page{}
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	for i := range 300 {
		// What is kept must not hold on to what it was cut from.
		text := func() string { return strings.Repeat(fmt.Sprintf("%09d ", i), 5000) }
		page.Record(t.Context(), pullthrough.Event{
			Kind: pullthrough.EventFetch, Object: pullthrough.EventBlob, Rule: text(), Digest: text(), Warnings: []string{text()},
			Request: pullthrough.Request{Repo: pullthrough.Repo{Account: text(), Region: text()[:20], Name: text()}, Ref: text()},
			Err:     map[bool]error{true: errors.New(text())}[i%2 == 0],
		})
	}
	assert.Less(t, heap()-before, int64(2<<20))
	s := getJSON(t, page)
	assert.Len(t, s.Events, 200)
	assert.Len(t, s.Fetches, 101)
	runtime.KeepAlive(page)
}

func TestRecordAndServeAtOnce(t *testing.T) {
	page := &debug.Page{Proxy: &pullthrough.Proxy{Store: memstore.New(), Rules: pullthrough.StaticRules{{Prefix: prefix, UpstreamURL: "x"}}}}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 200 {
				page.Record(context.Background(), pullthrough.Event{Kind: pullthrough.EventFetch, Object: pullthrough.EventBlob, Rule: fmt.Sprint(n), Request: pullthrough.Request{Repo: pullthrough.Repo{Account: fmt.Sprint(i)}}})
				page.Record(context.Background(), pullthrough.Event{Kind: pullthrough.EventBlob, Source: pullthrough.SourceHit, Bytes: 1})
			}
		})
		wg.Go(func() {
			for range 3 {
				for _, format := range formats {
					page.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", format, nil))
				}
			}
		})
	}
	wg.Wait()
	s := getJSON(t, page)
	assert.Equal(t, int64(8*200), s.Totals["requests"])
	assert.Equal(t, int64(8*200), s.Totals["bytes"])
	assert.Equal(t, int64(8*200), s.Totals["fetches"])
}

// What the page is told and could show if it were careless.
func TestNoSecretIsShown(t *testing.T) {
	secrets := pullthroughtest.NewSecrets(t)
	up := pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: map[string]string{"me": "canary-password-7391"}})
	secrets.Allow("canary-password-7391", up)
	secrets.Watch(up)
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	up.Push("a", "1", img)
	rule := pullthrough.Rule{Prefix: prefix, UpstreamURL: up.URL, CredentialARN: secrets.New(), CustomRoleARN: secrets.New()}
	odd := pullthrough.Rule{Prefix: "odd", UpstreamURL: "https://me:" + secrets.New() + "@quay.io/?token=" + secrets.New() + "#" + secrets.New()}
	page := &debug.Page{}
	page.Proxy = &pullthrough.Proxy{
		Store: memstore.New(), Rules: pullthrough.StaticRules{rule, odd}, SpoolDir: t.TempDir(), OnEvent: page.Record,
		Credentials: func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			return pullthrough.Credential{Username: "me", AccessToken: "canary-password-7391"}, nil
		},
	}
	t.Cleanup(func() { assert.NoError(t, page.Proxy.Shutdown(context.Background())) })
	caller := secrets.New()
	for _, name := range []string{prefix + "/a", prefix + "/none", "odd/a"} {
		_, _ = page.Proxy.Manifest(t.Context(), pullthrough.Request{Repo: pullthrough.Repo{Name: name}, Ref: "1", Caller: caller}) // some fail
	}
	require.NoError(t, page.Proxy.Idle(t.Context()))
	page.Record(t.Context(), pullthrough.Event{Kind: pullthrough.EventStoreFailed, Err: fmt.Errorf(
		"Get \"https://bucket.example/x?X-Amz-Signature=%s&y=1\": redis://:%s@cache/0: %s/long?sig=%s", secrets.New(), secrets.New(), strings.Repeat("x", 8150), secrets.New())})
	// Only so much of a text is looked at: here the end of that is in the middle of a password.
	page.Record(t.Context(), pullthrough.Event{Kind: pullthrough.EventStoreFailed, Err: fmt.Errorf(
		"https://bucket.example/?sig=%s redis://:%s%s@cache/0", strings.Repeat("x", 8100), secrets.New(), strings.Repeat("x", 200))})
	for _, format := range formats {
		body := get(t, page, format).Body.String()
		_, err := io.WriteString(secrets.Writer(), body)
		require.NoError(t, err)
	}
	s := getJSON(t, page)
	assert.Equal(t, []shownRule{{prefix, up.URL, "", true}, {"odd", "...@quay.io/?...", "", false}}, s.Registries[0].Rules)
	assert.Contains(t, s.Events[1].Error, `Get "https://bucket.example/x?...": redis://...@cache/0: `)
}
