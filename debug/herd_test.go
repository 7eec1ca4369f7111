package debug_test

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/debug"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// open opens the blob for a client that has read n bytes.
func open(t *testing.T, page *debug.Page, ref string, n int64) *pullthrough.Blob {
	t.Helper()
	b, err := page.Proxy.Blob(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: ref})
	require.NoError(t, err)
	_, err = io.CopyN(io.Discard, b.Body, n)
	require.NoError(t, err)
	return b
}

// drain reads what is left, and returns when it is stored.
func drain(t *testing.T, page *debug.Page, blobs []*pullthrough.Blob) {
	t.Helper()
	var wg sync.WaitGroup
	for _, b := range blobs {
		wg.Go(func() {
			_, err := io.Copy(io.Discard, b.Body)
			assert.NoError(t, err)
			assert.NoError(t, b.Body.Close())
		})
	}
	wg.Wait()
	require.NoError(t, page.Proxy.Idle(t.Context()))
}

func TestAHerdOnAStalledBlobIsShown(t *testing.T) {
	const size, stalled = 4 << 20, 3 << 20
	up, enter := piped(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	synctest.Test(t, func(t *testing.T) {
		page := enter(t, nil)
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: size})
		up.Push("a", "1", img)
		stall := make(chan struct{})
		up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/* 200", Stall: stall, StallAfter: new(int64(stalled))})
		_, err := page.Proxy.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: "1"})
		require.NoError(t, err)
		require.NoError(t, page.Proxy.Idle(t.Context()))
		began := time.Now()
		layer := img.Layers[0].Digest.String()
		herd := []*pullthrough.Blob{open(t, page, layer, 0), open(t, page, layer, 1<<20), open(t, page, layer, 1<<20), open(t, page, layer, 0), open(t, page, layer, 2<<20)}
		synctest.Wait()

		s := getJSON(t, page)
		assert.Equal(t, []shownDownload{{
			Repo: "hub/a", Digest: layer, Upstream: up.Host(), Began: began.UTC(), Size: size, Written: stalled,
			Readers: 5, Places: []shownPlace{{0, 2}, {1 << 20, 2}, {2 << 20, 1}},
		}}, s.Downloads)
		assert.Subset(t, s.Totals, map[string]int64{
			"running": 1, "readers": 5, "requests": 6, "filled": 2, "failed": 0, "upstream": 3, "fetches": 1,
			"bytes": int64(len(img.Content)) + 5*size, "fetchedBytes": int64(len(img.Content)),
		})
		assert.Subset(t, metricsOf(t, page), map[string]float64{
			`pullthrough_downloads_running`: 1, `pullthrough_download_readers`: 5, `pullthrough_upstream_requests_total{rule="hub"}`: 3,
			`pullthrough_requests_total{object="blob",source="fill"}`: 1, `pullthrough_requests_total{object="blob",source="shared"}`: 4,
		})
		page4s := func() int64 { time.Sleep(4 * time.Second); return getJSON(t, page).Downloads[0].Rate }
		assert.EqualValues(t, stalled/4, page4s(), "since the begin")
		close(stall)
		drain(t, page, herd)
		b := open(t, page, layer, size)
		require.NoError(t, b.Body.Close())

		s = getJSON(t, page)
		assert.Empty(t, s.Downloads)
		assert.Subset(t, s.Totals, map[string]int64{
			"running": 0, "readers": 0, "requests": 7, "filled": 2, "upstream": int64(len(up.Requests())), "fetches": 2,
			"bytes": int64(len(img.Content)) + 6*size, "fetchedBytes": int64(len(img.Content)) + size,
		})
		assert.Subset(t, metricsOf(t, page), map[string]float64{
			`pullthrough_downloads_running`: 0, `pullthrough_download_readers`: 0,
			`pullthrough_requests_total{object="blob",source="hit"}`:                    1,
			`pullthrough_bytes_total{object="blob",source="shared"}`:                    4 * size,
			`pullthrough_fetches_total{rule="hub",object="blob",outcome="ok"}`:          1,
			`pullthrough_fetched_bytes_total{rule="hub",object="blob"}`:                 size,
			`pullthrough_fetch_duration_seconds_count{rule="hub"}`:                      2,
			`pullthrough_fetch_duration_seconds_sum{rule="hub"}`:                        4,
			`pullthrough_requests_total{object="manifest",source="fill"}`:               1,
			`pullthrough_request_failures_total{object="manifest",kind="rate-limited"}`: 0,
		})
		last := s.Events[1] // before the hit
		assert.Equal(t, shownEvent{
			Number: 8, At: began.Add(4 * time.Second).UTC(), Kind: "fetch", Object: "blob", Rule: "hub", Repo: "hub/a", Ref: layer, Digest: layer,
			Source: "fill", Bytes: size, Upstream: 1, Micros: 4e6,
		}, last)
	})
}

func TestARateIsThatOfTheLastSeconds(t *testing.T) {
	up, enter := piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		page := enter(t, nil)
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 8 << 20})
		up.Push("a", "1", img)
		stall := make(chan struct{})
		up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/*", Times: 1, Rate: 100 << 10, Stall: stall, StallAfter: new(int64(4 << 20))})
		b := open(t, page, img.Layers[0].Digest.String(), 0)
		for range 30 {
			time.Sleep(time.Second)
			assert.InDelta(t, 100<<10, getJSON(t, page).Downloads[0].Rate, 20<<10)
		}
		time.Sleep(15 * time.Second)
		getJSON(t, page)
		time.Sleep(10 * time.Second)
		assert.Zero(t, getJSON(t, page).Downloads[0].Rate, "it stalls")
		close(stall)
		drain(t, page, []*pullthrough.Blob{b})
	})
}

func TestReadersAtManyPlacesAreGrouped(t *testing.T) {
	const size, clients = 4 << 20, 100
	up, enter := piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		page := enter(t, nil)
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: size})
		up.Push("a", "1", img)
		stall := make(chan struct{})
		up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/*", Stall: stall, StallAfter: new(int64(3 << 20))})
		var herd []*pullthrough.Blob
		for i := range clients {
			herd = append(herd, open(t, page, img.Layers[0].Digest.String(), int64(i)<<14))
		}
		synctest.Wait()
		d := getJSON(t, page).Downloads[0]
		assert.Equal(t, clients, d.Readers)
		assert.LessOrEqual(t, len(d.Places), 64)
		assert.Greater(t, len(d.Places), 40)
		var sum int64
		for i, p := range d.Places {
			sum += p.Readers
			assert.True(t, i == 0 || p.At > d.Places[i-1].At)
		}
		assert.EqualValues(t, clients, sum)
		close(stall)
		drain(t, page, herd)
	})
}

func TestMoreDownloadsThanAreShown(t *testing.T) {
	const blobs = 105
	up, enter := piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		page := enter(t, func(p *debug.Page) {
			p.Proxy.Policy = func(_ context.Context, _ pullthrough.Repo, _ pullthrough.Rule) pullthrough.Policy {
				return pullthrough.Policy{MaxDownloads: blobs}
			}
		})
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: blobs, LayerSize: 1<<20 + 1})
		up.Push("a", "1", img)
		stall := make(chan struct{})
		up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/*", Stall: stall, StallAfter: new(int64(10))})
		var herd []*pullthrough.Blob
		for _, l := range img.Layers {
			herd = append(herd, open(t, page, l.Digest.String(), 0))
		}
		synctest.Wait()
		s := getJSON(t, page)
		assert.Len(t, s.Downloads, 100)
		assert.Equal(t, blobs-100, s.MoreDownloads)
		assert.EqualValues(t, blobs, s.Totals["running"])
		assert.EqualValues(t, blobs, metricsOf(t, page)["pullthrough_downloads_running"])
		assert.Contains(t, get(t, page, "/").Body.String(), "5 more are not shown.")
		for _, b := range herd {
			require.NoError(t, b.Body.Close())
		}
		close(stall)
	})
}

func TestADownloadOfUnknownSize(t *testing.T) {
	up, enter := piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		page := enter(t, nil)
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 4 << 20})
		up.Push("a", "1", img)
		stall := make(chan struct{})
		up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/*", NoLength: true, Stall: stall, StallAfter: new(int64(3 << 20))})
		var wg sync.WaitGroup
		wg.Go(func() {
			b, err := page.Proxy.Blob(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: img.Layers[0].Digest.String()})
			if assert.NoError(t, err) {
				assert.NoError(t, b.Body.Close())
			}
		})
		synctest.Wait()
		s := getJSON(t, page)
		require.Len(t, s.Downloads, 1)
		assert.EqualValues(t, -1, s.Downloads[0].Size)
		assert.EqualValues(t, 3<<20, s.Downloads[0].Written)
		assert.EqualValues(t, 1, s.Totals["running"])
		html := get(t, page, "/").Body.String()
		assert.Contains(t, html, `aria-valuetext="3.0 MiB of unknown size">`, "and nothing of a maximum")
		close(stall)
		wg.Wait()
	})
}
