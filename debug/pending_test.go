package debug_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/debug"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// pull asks for a manifest for as long as the client has patience.
func pull(t *testing.T, p *pullthrough.Proxy, name, ref string, patience time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := p.Manifest(ctx, pullthrough.Request{Repo: repo(name), Ref: ref})
	return err
}

func TestWhatWaitsForUpstreamIsShown(t *testing.T) {
	up, enter := piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		page := enter(t, nil)
		up.Push("a", "1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))
		up.Push("b", "1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))
		assert.Equal(t, []shownPending{}, getJSON(t, page).Pending)
		require.NoError(t, pull(t, page.Proxy, "b", "1", time.Minute))
		require.NoError(t, page.Proxy.Idle(t.Context()))

		heal := up.Fault(pullthroughtest.Fault{Status: 429, Header: http.Header{"Retry-After": {"8"}}})
		assert.ErrorIs(t, pull(t, page.Proxy, "a", "1", time.Second), context.DeadlineExceeded)
		s := getJSON(t, page)
		require.Len(t, s.Pending, 2)
		held := s.Pending[0]
		assert.InDelta(t, 7.5e6, held.Micros, 1e6)
		held.Micros = 0
		assert.Equal(t, shownPending{Rule: "hub", Object: "manifest", Upstream: up.Host(), Status: 429}, held)
		assert.Equal(t, shownPending{Rule: "hub", Repo: "hub/a", Ref: "1", Object: "manifest", Lingers: true}, s.Pending[1])
		assert.EqualValues(t, 2, metricsOf(t, page)["pullthrough_pending"])
		html := get(t, page, "/").Body.String()
		assert.Contains(t, html, `<tr><th scope="row">manifest requests</th><td>hub</td><td>`+up.Host()+`: 429</td><td class="n">in `)
		assert.Contains(t, html, `<tr><th scope="row">fetch manifest</th><td>hub/a:1</td><td>its clients have left</td><td class="n"></td></tr>`)
		assert.Len(t, getFiltered(t, page, "hub/b").Pending, 1, "what is about all of a rule stays")

		heal()
		require.NoError(t, page.Proxy.Idle(t.Context()))
		assert.Empty(t, getJSON(t, page).Pending)
		assert.Equal(t, 3, len(up.Requests()), "two manifests, one of them asked for twice: %s", up.Log())
	})
}

func TestADownloadWhoseReadersHaveLeftSaysSo(t *testing.T) {
	up, enter := piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		page := enter(t, nil)
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 4 << 20})
		up.Push("a", "1", img)
		up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/* 200", Times: 1, CutAfter: new(int64(1 << 20))})
		stall := make(chan struct{})
		up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/* 206", Times: 1, Stall: stall, StallAfter: new(int64(1 << 20))})
		b := open(t, page, img.Layers[0].Digest.String(), 100)
		synctest.Wait()
		assert.NotContains(t, get(t, page, "/").Body.String(), "<span>its readers have left</span>")
		require.NoError(t, b.Body.Close())
		synctest.Wait()
		s := getJSON(t, page)
		require.Len(t, s.Downloads, 1)
		assert.Zero(t, s.Downloads[0].Readers)
		assert.Equal(t, 1, s.Downloads[0].Retries)
		html := get(t, page, "/").Body.String()
		assert.Contains(t, html, "<span>asked for the rest 1 time</span> <span>its readers have left</span>")
		close(stall)
		require.NoError(t, page.Proxy.Idle(t.Context()))
		assert.Empty(t, getJSON(t, page).Downloads)
		assert.Equal(t, 2, up.Count("GET /v2/a/blobs/*"))
	})
}

func TestARepositoryIsPicked(t *testing.T) {
	up, enter := piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		page := enter(t, nil)
		stall := make(chan struct{})
		up.Fault(pullthroughtest.Fault{Match: "GET /v2/*/blobs/*", Stall: stall, StallAfter: new(int64(1 << 20))})
		var herd []*pullthrough.Blob
		for i, name := range []string{"nginx", "alpine", "alpine-git"} {
			img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 2<<20 + int64(i)})
			up.Push(name, "1", img)
			b, err := page.Proxy.Blob(t.Context(), pullthrough.Request{Repo: repo(name), Ref: img.Layers[0].Digest.String()})
			require.NoError(t, err)
			herd = append(herd, b)
		}
		synctest.Wait()
		time.Sleep(4 * time.Second)
		for filter, want := range map[string][]string{"": {"hub/nginx", "hub/alpine", "hub/alpine-git"}, "alpine": {"hub/alpine", "hub/alpine-git"}, "hub/alp": {"hub/alpine", "hub/alpine-git"}, "Nginx": nil, "x": {"hub/nginx"}} {
			s := getFiltered(t, page, filter)
			assert.Equal(t, filter, s.Filter)
			var downloads, events []string
			for _, d := range s.Downloads {
				downloads = append(downloads, d.Repo)
				assert.EqualValues(t, 1<<18, d.Rate, "other filters change no rate")
			}
			for _, e := range s.Events {
				events = append(events, e.Repo)
			}
			assert.ElementsMatch(t, want, downloads)
			assert.ElementsMatch(t, want, events)
			assert.EqualValues(t, 3, s.Totals["running"], "the totals are those of all")
		}
		html := get(t, page, "/?repo=Nginx").Body.String()
		assert.Contains(t, html, ` value="Nginx"`)
		assert.Contains(t, html, `<p class="none">Nothing of such a repository.</p>`)
		const says = `<p id="filtered" class="none">Downloads, what waits and events are of`
		assert.Contains(t, html, says, "and the figures are not")
		assert.NotContains(t, get(t, page, "/").Body.String(), says)
		assert.NotContains(t, get(t, page, `/?repo=%22%3E%3Cscript%3E`).Body.String(), `"><script>`)
		close(stall)
		drain(t, page, herd)
	})
}

// The page does not grow with what waits.
func TestMuchThatWaits(t *testing.T) {
	up, enter := piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		page := enter(t, nil)
		var rules pullthrough.StaticRules
		for i := range 120 {
			rules = append(rules, pullthrough.Rule{Prefix: fmt.Sprint("r", i), UpstreamURL: up.URL})
		}
		page.Proxy.Rules, page.Proxy.Logger = rules, slog.New(slog.DiscardHandler)
		up.Fault(pullthroughtest.Fault{Status: 429, Header: http.Header{"Retry-After": {"100"}}})
		for i := range rules {
			_, err := page.Proxy.Manifest(t.Context(), pullthrough.Request{Repo: pullthrough.Repo{Name: fmt.Sprintf("r%d/a", i)}, Ref: "1"})
			assert.ErrorIs(t, err, pullthrough.ErrRateLimited)
		}
		s := getJSON(t, page)
		assert.Len(t, s.Pending, 100)
		assert.Equal(t, 20, s.MorePending)
		assert.Contains(t, get(t, page, "/").Body.String(), "20 more are not shown.")
		assert.Len(t, up.Requests(), 120)
	})
}

func TestConnectionsBesideAndWhatIsAheadAreShown(t *testing.T) {
	up, enter := piped(t, pullthroughtest.Config{})
	synctest.Test(t, func(t *testing.T) {
		page := enter(t, func(p *debug.Page) {
			p.Proxy.Policy = func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
				return pullthrough.Policy{Connections: 2}
			}
		})
		img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 16 << 20})
		up.Push("a", "1", img)
		stall := make(chan struct{})
		up.Fault(pullthroughtest.Fault{Match: "GET /v2/a/blobs/* 206", Stall: stall, StallAfter: new(int64(1 << 20))})
		b := open(t, page, img.Layers[0].Digest.String(), 100)
		synctest.Wait()
		html := get(t, page, "/").Body.String()
		facts := regexp.MustCompile(`<span>2\.0 MiB of 16\.0 MiB \(12 %\)</span> <span>0 B/s</span> <span>over 2 connections</span> <span>[12]\.\d MiB ahead of their turn</span>`)
		bar := regexp.MustCompile(`<rect class="ahead" y="12" width="12\.5%" height="16" rx="3"></rect><rect class="done" y="12" width="[0-6]\.\d%" `)
		assert.True(t, facts.MatchString(html) && bar.MatchString(html), "what is not hashed yet is ahead, too")
		close(stall)
		drain(t, page, []*pullthrough.Blob{b})
		assert.Equal(t, 2, up.Count("GET /v2/a/blobs/*"))
	})
}
