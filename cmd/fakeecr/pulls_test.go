package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// logLine is a line of the log for machines.
type logLine struct {
	Msg, Method, Object, Repo, Ref, Source, Code string
	Status, Upstream                             int
	Bytes, Sent                                  int64
	Cut                                          bool
}

// logged are the lines of a program that has ended, but for figures that tell the time and
// for the line that says what has ended it.
func (i *instance) logged(t *testing.T) (lines []logLine) {
	t.Helper()
	for text := range strings.Lines(i.stderr.String()) {
		var l logLine
		require.NoError(t, json.Unmarshal([]byte(text), &l), text)
		if !strings.HasPrefix(l.Msg, "ending: ") {
			lines = append(lines, l)
		}
	}
	return lines
}

// The log has one line for each pull, which says what was asked, how it was answered
// and what it has cost.
func TestLog(t *testing.T) {
	up, img := newUpstream(t), newImage()
	up.Push("app", "v1", img)
	i := start(t, "-rule", "p="+up.URL, "-credential", "p=me:"+secret, "-log", "json")
	blob := img.Layers[0]
	size, layer := int64(len(img.Content)), blob.Digest.String()
	i.pull(t, "p/app", "v1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{Layers: 3, LayerSize: 2 << 20}))
	i.get(t, "/v2/p/app/manifests/v1")
	i.get(t, "/v2/p/app/manifests/v2")
	for _, header := range []http.Header{{"Range": {"bytes=100-199"}}, {"If-None-Match": {`"` + layer + `"`}}} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, i.url+"/v2/p/app/blobs/"+layer, nil)
		require.NoError(t, err)
		r.Header = header
		resp, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
	}
	resp, err := http.Head(i.url + "/v2/p/app/blobs/" + layer)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	i.stop(t)

	want := []logLine{
		{Msg: "manifest", Method: "GET", Ref: "v1", Source: "fill", Upstream: 3, Bytes: size, Sent: size},
		{Msg: "manifest", Method: "GET", Ref: "v1", Source: "hit", Bytes: size, Sent: size},
		{Msg: "manifest", Method: "GET", Ref: "v2", Code: "MANIFEST_UNKNOWN", Status: 404, Upstream: 1},
		{Msg: "blob", Method: "GET", Ref: layer, Source: "hit", Bytes: blob.Size, Sent: 100},
		{Msg: "blob", Method: "GET", Ref: layer, Source: "hit", Bytes: blob.Size},
		{Msg: "blob", Method: "HEAD", Ref: layer, Source: "hit", Bytes: blob.Size},
	}
	for _, b := range img.Blobs() {
		want = append(want, logLine{Msg: "blob", Method: "GET", Ref: b.Digest.String(), Source: "fill", Upstream: 1, Bytes: b.Size, Sent: b.Size})
	}
	for n := range want {
		want[n].Repo = "p/app"
	}
	assert.ElementsMatch(t, want, i.logged(t))
}

// What nobody asked for is fetched all the same, with -fill background.
func TestLogOfAnImport(t *testing.T) {
	up, img := pullthroughtest.New(t, pullthroughtest.Config{}), newImage()
	up.Push("app", "v1", img)
	i := start(t, "-rule", "p="+up.URL, "-fill", "background", "-log", "json")
	i.get(t, "/v2/p/app/manifests/v1")
	require.NoError(t, up.Wait(t.Context(), "GET /v2/app/blobs/*", len(img.Blobs())))
	i.stop(t)
	size := int64(len(img.Content))
	want := []logLine{{Msg: "manifest", Method: "GET", Repo: "p/app", Ref: "v1", Source: "fill", Upstream: 1, Bytes: size, Sent: size}}
	for _, b := range img.Blobs() {
		want = append(want, logLine{Msg: "fetch", Object: "blob", Repo: "p/app", Ref: b.Digest.String(), Source: "fill", Upstream: 1, Bytes: b.Size, Sent: b.Size})
	}
	assert.ElementsMatch(t, want, i.logged(t))
}

// Without -log json the same is for people.
func TestTextLog(t *testing.T) {
	up, img := newUpstream(t), newImage()
	up.Push("library/alpine", "3.22", img)
	i := start(t, "-rule", "hub="+up.URL, "-credential", "hub=me:"+secret)
	i.pull(t, "hub/library/alpine", "3.22", img)
	i.get(t, "/v2/hub/library/alpine/tags/list") // it waits until the Store has the image
	i.get(t, "/v2/hub/library/alpine/manifests/3.22")
	i.get(t, "/v2/hub/library/alpine/manifests/3.21")
	i.stop(t)
	const figures = `^[0-9:.]{12} %s +[0-9.]+ (Ki|Mi)?B +[0-9.]+ .?i?B/s +[0-9.]+[mµ]?s  GET %s\n$`
	short := regexp.QuoteMeta(img.Layers[0].Digest.String()[:len("sha256:")+12])
	assert.NotContains(t, i.stderr.String(), "\x1b")
	lines := strings.SplitAfter(i.stderr.String(), "\n")
	for _, want := range []string{
		fmt.Sprintf(figures, "fill", "manifest hub/library/alpine:3.22, 3 upstream requests"),
		fmt.Sprintf(figures, "fill", "blob hub/library/alpine@"+short+", 1 upstream request"),
		fmt.Sprintf(figures, "hit", "manifest hub/library/alpine:3.22"),
		`^[0-9:.]{12} 404  +-  +-  +[0-9.]+[mµ]?s  GET manifest hub/library/alpine:3.21, 1 upstream request: .*\n$`,
	} {
		assert.Condition(t, func() bool {
			for _, line := range lines {
				if regexp.MustCompile(want).MatchString(line) {
					return true
				}
			}
			return false
		}, "%s\n%s", want, lines)
	}
}

// A client that leaves in the middle of a layer is no success.
func TestLogOfAnAnswerCutOff(t *testing.T) {
	up, img := pullthroughtest.New(t, pullthroughtest.Config{}), newImage()
	up.Push("app", "v1", img)
	answered := make(chan struct{})
	up.Fault(pullthroughtest.Fault{
		Match: "GET /v2/*/blobs/*", Stall: answered, StallAfter: new(int64(1 << 20)),
		Flip: new(int64(-1)), // the digest is wrong
	})
	i := start(t, "-rule", "p="+up.URL, "-log", "json")
	resp, err := http.Get(i.url + "/v2/p/app/blobs/" + img.Layers[0].Digest.String())
	close(answered)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	require.Error(t, err)
	require.NoError(t, resp.Body.Close())
	i.stop(t)
	cut := 0
	for _, l := range i.logged(t) {
		if l.Cut {
			cut++
			assert.Zero(t, l.Sent)
			assert.Equal(t, "fill", l.Source)
		}
	}
	assert.Equal(t, 1, cut)
}

// pullsTest is a log without a proxy.
func pullsTest(t *testing.T) (p *pulls, written func() string) {
	var out buffer
	p = newPulls(slog.New(slog.DiscardHandler), &out)
	t.Cleanup(func() { time.Sleep(2 * linePause) }) // of the bubble's clock: then nothing runs
	return p, func() string {
		p.queue.flush()
		return out.String()
	}
}

func fetchOf(ref string, upstream int) pullthrough.Event {
	return pullthrough.Event{
		Kind: pullthrough.EventFetch, Object: pullthrough.EventManifest, Upstream: upstream,
		Request: pullthrough.Request{Repo: pullthrough.Repo{Name: "p/app"}, Ref: ref},
	}
}

// answer answers a pull as a proxy would.
func (p *pulls) answer(ref string, source pullthrough.Source) {
	e := fetchOf(ref, 0)
	e.Kind, e.Object, e.Source = pullthrough.EventManifest, "", source
	p.serve(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil), http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		p.record(r.Context(), e)
	}))
}

func TestALineWaitsForItsFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, written := pullsTest(t)
		p.answer("v1", pullthrough.SourceFill)
		p.answer("v1", pullthrough.SourceRevalidated)
		p.answer("v2", pullthrough.SourceFill)
		assert.Empty(t, written())
		p.answer("v1", pullthrough.SourceShared)
		assert.Equal(t, 1, strings.Count(written(), "\n"), "what has made no fetch waits for none")

		p.record(context.Background(), fetchOf("v1", 5))
		assert.Equal(t, 3, strings.Count(written(), "\n"))
		assert.Equal(t, 1, strings.Count(written(), "5 upstream requests"), "told once")

		time.Sleep(fetchWait) // of the bubble's clock
		synctest.Wait()
		assert.Equal(t, 4, strings.Count(written(), "\n"), "not for ever")
		assert.Contains(t, written(), "p/app:v2\n")
		p.record(context.Background(), fetchOf("v2", 7))
		p.answer("v2", pullthrough.SourceFill)
		assert.Contains(t, written(), "7 upstream requests", "it was told in time for the next")
		time.Sleep(time.Second)
		p.answer("v2", pullthrough.SourceFill)
		assert.Equal(t, 1, strings.Count(written(), "7 upstream requests"), "which was fetched later")
		assert.Equal(t, 5, strings.Count(written(), "\n"))
		p.close()
		assert.Equal(t, 6, strings.Count(written(), "\n"), "the last one is not lost")
		p.answer("v2", pullthrough.SourceFill)
		assert.Equal(t, 7, strings.Count(written(), "\n"))
		synctest.Wait()
	})
}

// Upstreams choose names and answers; what is remembered of them has a bound.
func TestTheLogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, written := pullsTest(t)
		for n := range 2 * maxFetches {
			p.record(context.Background(), fetchOf(fmt.Sprint("v", n), 1))
			assert.LessOrEqual(t, len(p.ended), maxFetches)
		}
		for n := range 2 * maxFetches {
			p.answer(fmt.Sprint("w", n), pullthrough.SourceFill)
		}
		assert.Len(t, p.held, maxFetches)
		assert.Equal(t, maxFetches, strings.Count(written(), "\n"))
		p.close()
		assert.Equal(t, 2*maxFetches, strings.Count(written(), "\n"))
	})
}

// What upstreams say cannot do anything to a terminal.
func TestALineIsALine(t *testing.T) {
	e := fetchOf("v1", 2)
	e.Kind = pullthrough.EventManifest
	e.Err = &pullthrough.Error{Kind: pullthrough.ErrNotFound, Err: errors.New("\x1b[2Jé\r\n\u202enow")}
	line := string((&pull{event: e, upstream: 2}).appendText([]byte("before\n"), time.Now())[len("before\n"):])
	assert.Contains(t, line, ", 2 upstream requests: pullthrough: not found upstream: \ufffd[2Jé\ufffd\ufffd\ufffdnow")
	assert.NotContains(t, line, "\n")
}

// Why a pull has failed stands in the proxy's own log, and in the line of the pull only where that
// says nothing.
func TestAReasonIsNotToldTwice(t *testing.T) {
	told := func(err *pullthrough.Error) bool {
		e := fetchOf("v1", 1)
		e.Kind, err.Err, e.Err = pullthrough.EventManifest, errors.New("the reason"), err
		return strings.Contains(string((&pull{event: e}).appendText(nil, time.Now())), "the reason")
	}
	assert.True(t, told(&pullthrough.Error{Kind: pullthrough.ErrNotFound, Host: "registry.test", Status: 404}))
	assert.True(t, told(&pullthrough.Error{Kind: pullthrough.ErrNoRule}))
	assert.True(t, told(&pullthrough.Error{Kind: pullthrough.ErrDenied}), "by the host, not by upstream")
	assert.False(t, told(&pullthrough.Error{Kind: pullthrough.ErrDenied, Host: "registry.test", Status: 403}))
	assert.False(t, told(&pullthrough.Error{Kind: pullthrough.ErrRateLimited, Host: "registry.test", Status: 429}))
	assert.False(t, told(&pullthrough.Error{Kind: pullthrough.ErrUnavailable, Host: "registry.test"}))
	assert.False(t, told(&pullthrough.Error{Kind: errors.New("internal error")}))
}

// A client does not wait for its line, and lines are not kept without limit.
func TestLinesAreWrittenBehindTheAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log, out buffer
		p := newPulls(slog.New(slog.NewTextHandler(&log, nil)), &out)
		stuck := make(chan struct{})
		p.queue.write = func(some []queued, lost int) {
			<-stuck
			p.writeAll(some, lost)
		}
		p.answer("first", pullthrough.SourceHit)
		synctest.Wait() // it is being written
		for range maxQueued + 3 {
			p.answer("v1", pullthrough.SourceHit)
		}
		assert.Empty(t, out.String())
		close(stuck)
		time.Sleep(2 * linePause)
		synctest.Wait()
		assert.Equal(t, maxQueued+1, strings.Count(out.String(), "\n"))
		assert.Contains(t, log.String(), "lost=3")
		time.Sleep(linePause) // nothing runs any more, or the bubble would not end
	})
}

// With -log off there are no lines, and no work for them; what goes wrong is still told.
func TestNoLog(t *testing.T) {
	up := newUpstream(t)
	up.Push("app", "v1", newImage())
	i := start(t, "-rule", "p="+up.URL, "-credential", "p=me:"+secret, "-log", "off")
	i.get(t, "/v2/p/app/manifests/v1")
	i.get(t, "/v2/p/app/manifests/v1")
	i.stop(t)
	assert.Empty(t, i.stderr.String())
}
