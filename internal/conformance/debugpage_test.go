package conformance_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/debug"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

const (
	herdSize    = 12 << 20
	herdStalled = 9 << 20
)

// watched is a proxy with its page, before an upstream whose large layer stalls.
type watched struct {
	up    *pullthroughtest.Upstream
	page  *debug.Page
	url   string // of the page
	img   *pullthroughtest.Image
	stall chan struct{}
	herd  []*pullthrough.Blob
}

// startWatched mounts the page without a slash at the end: links must not need one.
func startWatched(t *testing.T, now func() time.Time) *watched {
	t.Helper()
	w := &watched{up: pullthroughtest.New(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer}), stall: make(chan struct{})}
	w.img = pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 2, LayerSize: herdSize})
	w.up.Push("library/nginx", "1.27", w.img)
	w.page = &debug.Page{Now: now, Title: "Fake ECR", Proxy: &pullthrough.Proxy{
		Store: memstore.New(), SpoolDir: t.TempDir(), Transport: &http.Transport{DialContext: pullthroughtest.DialLoopback},
		Rules: pullthrough.StaticRules{
			{Prefix: "docker-hub", UpstreamURL: w.up.URL, CredentialARN: "arn:aws:secretsmanager:us-east-1:123456789012:secret:canary-arn"},
			{Prefix: "quay", UpstreamURL: "quay.io", UpstreamPrefix: "coreos"},
			{Prefix: "ROOT", UpstreamURL: "public.ecr.aws"},
		},
	}}
	w.page.Proxy.OnEvent = w.page.Record
	mux := http.NewServeMux()
	mux.Handle("/v2/", w.page.Proxy)
	mux.Handle("/debug/pullthrough", w.page)
	mux.Handle("/debug/pullthrough/", w.page)
	server := httptest.NewServer(mux)
	t.Cleanup(func() {
		server.Close()
		assert.NoError(t, w.page.Proxy.Shutdown(context.Background()))
	})
	w.url = server.URL + "/debug/pullthrough"
	return w
}

// gather has clients wait for the rest of both layers, which have read so many MiB.
func (w *watched) gather(t *testing.T, mib ...int64) {
	t.Helper()
	for _, l := range w.img.Layers {
		w.up.Fault(pullthroughtest.Fault{
			Match: "GET /v2/library/nginx/blobs/" + l.Digest.String() + " 200", Times: 1, Stall: w.stall, StallAfter: new(int64(herdStalled)),
		})
		for _, n := range mib {
			b, err := w.page.Proxy.Blob(t.Context(), pullthrough.Request{Repo: pullthrough.Repo{Name: "docker-hub/library/nginx"}, Ref: l.Digest.String()})
			require.NoError(t, err)
			_, err = io.CopyN(io.Discard, b.Body, n<<20)
			require.NoError(t, err)
			w.herd = append(w.herd, b)
		}
	}
}

// disperse lets the clients have the rest.
func (w *watched) disperse(t *testing.T) {
	t.Helper()
	close(w.stall)
	var wg sync.WaitGroup
	for _, b := range w.herd {
		wg.Go(func() {
			_, err := io.Copy(io.Discard, b.Body)
			assert.NoError(t, err)
			assert.NoError(t, b.Body.Close())
		})
	}
	wg.Wait()
}

// desert has a client ask for a manifest that does not come, and leave.
func (w *watched) desert(t *testing.T, repo string) {
	t.Helper()
	w.up.Fault(pullthroughtest.Fault{Match: "GET /v2/" + repo + "/manifests/1", Stall: w.stall})
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := w.page.Proxy.Manifest(ctx, pullthrough.Request{Repo: pullthrough.Repo{Name: "docker-hub/" + repo}, Ref: "1"})
		left <- err
	}()
	require.NoError(t, w.up.Wait(t.Context(), "GET /v2/"+repo+"/manifests/1", 1))
	cancel()
	require.ErrorIs(t, <-left, context.Canceled)
}

// pull asks for a manifest over HTTP.
func (w *watched) pull(t *testing.T, ref string, status int) {
	t.Helper()
	resp, err := http.Get(w.url[:len(w.url)-len("/debug/pullthrough")] + "/v2/" + ref)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, status, resp.StatusCode)
	require.NoError(t, w.page.Proxy.Idle(t.Context())) // an answer does not wait for the Store
}

// read is what a reader finds on the page.
const read = `(() => ({
	tiles: Object.fromEntries([...document.querySelectorAll("#tiles div")].map(d => [d.children[0].textContent, d.children[1].textContent + ", " + d.children[2].textContent])),
	downloads: [...document.querySelectorAll("#downloads li")].map(d => ({
		text: d.querySelector("p").textContent, max: d.querySelector(".bar").ariaValueMax, now: d.querySelector(".bar").ariaValueNow,
		done: d.querySelector(".done").getBoundingClientRect().width / d.querySelector(".track").getBoundingClientRect().width,
		pins: [...d.querySelectorAll("circle")].map(c => c.getAttribute("cx")),
	})),
	answers: Object.fromEntries([...document.querySelectorAll("#answers tr")].map(r => [r.cells[0].textContent, [...r.cells].slice(1).map(c => c.textContent).join(" ")])),
	failures: [...document.querySelectorAll("#failures tr")].map(r => r.textContent),
	events: document.querySelectorAll("#events tr").length,
	charts: [...document.querySelectorAll("#chart svg")].map(s => s.ariaLabel),
	bars: Object.fromEntries(["hit", "shared", "fill", "failed"].map(kind => [kind, document.querySelectorAll("#chart rect." + kind).length])),
}))()`

type readPage struct {
	Tiles     map[string]string
	Downloads []struct {
		Text, Max, Now string
		Done           float64
		Pins           []string
	}
	Answers  map[string]string
	Failures []string
	Events   int
	Charts   []string
	Bars     map[string]int
}

func TestDebugPage(t *testing.T) {
	c := startChromium(t)
	w := startWatched(t, nil)
	w.pull(t, "docker-hub/library/nginx/manifests/1.27", 200)
	w.pull(t, "docker-hub/library/nginx/manifests/1.27", 200)
	w.pull(t, "docker-hub/library/nginx/manifests/2", 404)
	w.gather(t, 0, 0, 1, 1, 1, 3, 8)

	c.do(t, chromedp.Navigate(w.url), chromedp.WaitVisible("#pause"))
	c.until(t, `document.querySelectorAll("#downloads li").length === 2 && [...document.querySelectorAll(".bar")].every(b => b.ariaValueNow === "9437184")`)
	page := eval[readPage](t, c, read)
	assert.Equal(t, "2, 14 readers", page.Tiles["Running downloads"])
	assert.Equal(t, "6 %, 1 of 16 answers from the Store, 12 shared a fetch", page.Tiles["Hit ratio"])
	assert.Equal(t, "17, 0 of them HEAD", page.Tiles["Requests"])
	assert.Equal(t, "1, 1 failed fetch, 0 failures of the Store", page.Tiles["Failed requests"])
	assert.Equal(t, "1 0 0 "+size(len(w.img.Content)), page.Answers["hit"])
	assert.Equal(t, "0 12 0 144.0 MiB", page.Answers["shared"])
	assert.Equal(t, []string{"not-found11"}, page.Failures)
	require.Len(t, page.Downloads, 2)
	for _, d := range page.Downloads {
		assert.Contains(t, d.Text, "9.0 MiB of 12.0 MiB (75 %) ")
		assert.Contains(t, d.Text, "7 readers at 0 B ×2, 1.0 MiB ×3, 3.0 MiB, 8.0 MiB ")
		assert.Equal(t, []string{"0.0%", "8.3%", "25.0%", "66.6%"}, d.Pins)
		assert.Equal(t, "12582912 9437184", d.Max+" "+d.Now)
	}
	c.until(t, `(`+read+`).downloads.every(d => Math.abs(d.done - 0.75) < 0.005)`) // it moves there
	bars := c.named(t, "progressbar")
	require.Len(t, bars, 2)
	for _, name := range bars {
		assert.Regexp(t, `^"docker-hub/library/nginx sha256:[0-9a-f]{12}"$`, name)
	}
	c.shoot(t, "light", 1200, "light")
	c.shoot(t, "dark", 1200, "dark")
	c.shoot(t, "narrow", 400, "light")
	c.shoot(t, "narrow-dark", 320, "dark")

	w.disperse(t)
	c.until(t, `document.querySelectorAll("#downloads li").length === 0`)
	c.until(t, `(`+read+`).tiles["Upstream requests"] === "`+fmt.Sprintf("%d, for 4 fetches", len(w.up.Requests()))+`"`)
	page = eval[readPage](t, c, read)
	assert.Equal(t, "0, 0 readers", page.Tiles["Running downloads"])
	assert.Regexp(t, `^[0-9.]+ (B|KiB), 168\.0 MiB if read whole, 24\.0 MiB fetched$`, page.Tiles["Sent"], "two manifests: the layers were read by callers in this process")
	assert.Equal(t, 21, page.Events, "17 requests, 4 fetches")
	assert.Equal(t, []string{
		"Answers of the last 5 minutes: 1 from the Store, 12 shared a fetch, 3 fetched, 1 failed", "Content of the last 5 minutes: 168.0 MiB answered, whole, 24.0 MiB fetched",
	}, page.Charts)
	for kind, columns := range page.Bars {
		assert.Positive(t, columns, "%s", kind)
	}
	c.shoot(t, "after", 1200, "light")

	c.do(t, chromedp.SendKeys("#filter", "library/nginx"))
	c.until(t, `performance.getEntriesByType("resource").some(r => r.name.endsWith("&repo=library%2Fnginx"))`)
	assert.Equal(t, 21, eval[readPage](t, c, read).Events)
	c.do(t, chromedp.SendKeys("#filter", "-unprivileged"))
	c.until(t, `document.getElementById("events").innerText === "Nothing of such a repository."`)
	assert.Equal(t, "17, 0 of them HEAD", eval[readPage](t, c, read).Tiles["Requests"], "the totals are those of all")

	c.do(t, chromedp.Click("#pause"))
	c.until(t, `document.getElementById("pause").textContent === "Resume"`)
	assert.Empty(t, c.said())
	// The console would have said so.
	eval[chromedp.Void](t, c, `document.body.setAttribute("style", "color: red")`)
	assert.Eventually(t, func() bool { return len(c.said()) > 0 }, 10*time.Second, 10*time.Millisecond)
}

// size is how the page writes a size below 1 MiB.
func size(n int) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%d.%d KiB", n>>10, n%(1<<10)*10>>10)
}

// What the template writes for those without scripts, and for the first second, is
// what the script writes: hostile names, texts and all.
func TestDebugPageReadsTheSameWithoutItsScript(t *testing.T) {
	c := startChromium(t)
	frozen := time.Now().Add(10 * time.Second)
	w := startWatched(t, func() time.Time { return frozen })
	w.gather(t, 0, 1, 5, 8, 2, 3, 4, 6)
	defer w.disperse(t)
	w.desert(t, "library/slow")
	hostile := `"><script>window.pwned=1</script><img src=x onerror=window.pwned=1>` + "\n\xff\u202e`${1}`]]>-->"
	for _, e := range []pullthrough.Event{
		{Kind: pullthrough.EventBlob, Request: pullthrough.Request{Repo: pullthrough.Repo{Account: hostile, Region: "x", Name: hostile}, Ref: hostile, Head: true}, Digest: hostile, Bytes: 1 << 50, Duration: time.Hour + 61*time.Second},
		{Kind: pullthrough.EventManifest, Request: pullthrough.Request{Repo: pullthrough.Repo{Name: hostile}, Ref: "1"}, Err: errors.New(hostile), Duration: 1500 * time.Millisecond},
		{Kind: pullthrough.EventFetch, Object: pullthrough.EventManifest, Part: true, Rule: hostile, Source: pullthrough.SourceStale, Upstream: 1234567, Bytes: 1310720, Anonymous: true, WrongDigest: true, Warnings: []string{hostile, "b"}},
		{Kind: pullthrough.EventStoreFailed, Request: pullthrough.Request{Ref: "sha256:0123456789abcdef"}, Err: errors.New("disk full"), Duration: 20 * time.Millisecond},
		{Kind: hostile, Object: hostile},
	} {
		w.page.Record(t.Context(), e)
	}

	c.do(t, chromedp.Navigate(w.url+"/"), chromedp.WaitVisible("#pause"))
	c.until(t, `document.querySelectorAll(".bar").length === 2 && [...document.querySelectorAll(".bar")].every(b => b.ariaValueNow === "9437184")`)
	c.do(t, chromedp.Reload(), chromedp.WaitVisible("#pause"))
	eval[chromedp.Void](t, c, `document.querySelectorAll("main *").forEach(e => e.old = true)`)
	c.until(t, `document.getElementById("events").firstChild && !document.getElementById("events").firstChild.old`)
	const compare = `fetch(location.href).then(r => r.text()).then(text => {
		const page = new DOMParser().parseFromString(text, "text/html");
		return Object.fromEntries(["at", "tiles", "downloads", "pending", "answers", "failures", "fetches", "rules", "events"].map(id =>
			[id, [page, document].map(d => d.getElementById(id).innerHTML)]));
	})`
	same := eval[map[string][2]string](t, c, compare)
	require.Len(t, same, 9)
	for part, html := range same {
		assert.NotEmpty(t, html[0])
		assert.Equal(t, html[0], html[1], "%s", part)
	}
	assert.Zero(t, eval[int](t, c, `document.querySelectorAll("main script, main img").length + ("pwned" in window)`))
	assert.Empty(t, c.said())
}

func TestDebugPageMetricsAreReadByPrometheus(t *testing.T) {
	w := startWatched(t, nil)
	w.pull(t, "docker-hub/library/nginx/manifests/1.27", 200)
	w.pull(t, "docker-hub/library/nginx/manifests/2", 404)
	w.page.Record(t.Context(), pullthrough.Event{Kind: pullthrough.EventFetch, Object: pullthrough.EventBlob, Rule: "a\\\"b\nc"})
	resp, err := http.Get(w.url + "/metrics")
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	require.Equal(t, expfmt.TypeTextPlain, expfmt.ResponseFormat(resp.Header).FormatType())
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	require.NoError(t, err)
	text, err := json.Marshal(families["pullthrough_request_failures_total"])
	require.NoError(t, err)
	assert.Contains(t, string(text), `"not-found"`)
	assert.EqualValues(t, len(w.up.Requests()), families["pullthrough_upstream_requests_total"].Metric[1].GetCounter().GetValue())
	assert.Len(t, families, 16)
}
