package otelpullthrough_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/otelpullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// get reads an answer of the server to its end.
func (o *observed) get(t *testing.T, path string, status int) {
	t.Helper()
	resp, err := http.Get(o.server.URL + path)
	if !assert.NoError(t, err) {
		return
	}
	_, err = io.Copy(io.Discard, resp.Body)
	assert.NoError(t, err)
	assert.NoError(t, resp.Body.Close())
	assert.Equal(t, status, resp.StatusCode)
}

// settle waits until all has ended that was asked for.
func (o *observed) settle(t *testing.T) {
	t.Helper()
	require.NoError(t, o.Idle(t.Context()))
}

func TestAPullIsASpanBelowItsRequestAndTiedToItsFetch(t *testing.T) {
	o := observe(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 1 << 20})
	o.up.Push("nginx", "1.27", img)
	layer := img.Layers[0].Digest.String()
	o.get(t, "/v2/hub/nginx/manifests/1.27", 200)
	o.get(t, "/v2/hub/nginx/blobs/"+layer, 200)
	o.settle(t)

	server := o.ended("GET")
	require.Len(t, server, 2)
	for i, object := range []string{"manifest", "blob"} {
		pull, fetch := o.one(t, "pull "+object), o.one(t, "fetch "+object)
		assert.Equal(t, server[i].SpanContext.SpanID(), pull.Parent.SpanID())
		assert.Equal(t, trace.SpanKindInternal, pull.SpanKind)
		assert.Equal(t, trace.SpanKindClient, fetch.SpanKind)
		assert.True(t, isTiedTo(pull, fetch))
		assert.Equal(t, codes.Unset, pull.Status.Code)
		assert.Equal(t, otelpullthrough.ScopeName, pull.InstrumentationScope.Name)
		assert.False(t, pull.EndTime.Before(pull.StartTime))
		assert.False(t, pull.StartTime.Before(server[i].StartTime), "the span has the times of the event")
	}
	assert.Equal(t, map[string]any{
		"container.image.name": "hub/nginx", "container.image.tags": []string{"1.27"}, "oci.manifest.digest": img.Digest.String(),
		"pullthrough.object": "manifest", "pullthrough.source": "fill", "pullthrough.bytes": int64(len(img.Content)),
	}, attributes(o.one(t, "pull manifest")))
	assert.Equal(t, map[string]any{
		"container.image.name": "hub/nginx", "pullthrough.digest": layer, "pullthrough.object": "blob", "pullthrough.source": "fill",
		"pullthrough.bytes": int64(1 << 20), "pullthrough.rule": "hub", "pullthrough.requests": int64(1),
	}, attributes(o.one(t, "fetch blob")))

	o.spans.Reset()
	o.get(t, "/v2/hub/nginx/blobs/"+layer, 200)
	hit := o.one(t, "pull blob")
	assert.Equal(t, "hit", attributes(hit)["pullthrough.source"])
	assert.Empty(t, hit.Links)
	assert.Empty(t, o.ended("fetch blob"))
	assert.Equal(t, 1, o.up.Count("GET /v2/nginx/blobs/*"))
}

// Of a herd one has begun the fetch, which is its child; the others are linked.
func TestAHerdIsLinkedToItsFetch(t *testing.T) {
	o := observe(t, pullthroughtest.Config{})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 4 << 20})
	o.up.Push("nginx", "1", img)
	stall := make(chan struct{})
	o.up.Fault(pullthroughtest.Fault{Match: "GET /v2/nginx/blobs/*", Stall: stall, StallAfter: new(int64(1 << 20))})
	var herd []*pullthrough.Blob
	for range 10 {
		b, err := o.Blob(t.Context(), pullthrough.Request{Repo: repo("nginx"), Ref: img.Layers[0].Digest.String()})
		require.NoError(t, err)
		herd = append(herd, b)
	}
	values := o.measured(t)
	assert.EqualValues(t, 1, values["pullthrough.downloads"])
	assert.EqualValues(t, 10, values["pullthrough.download.readers"])
	close(stall)
	for _, b := range herd {
		_, err := io.Copy(io.Discard, b.Body)
		assert.NoError(t, err)
		require.NoError(t, b.Body.Close())
	}
	o.settle(t)
	fetch, pulls := o.one(t, "fetch blob"), o.ended("pull blob")
	require.Len(t, pulls, 10)
	assert.Len(t, fetch.Links, 9)
	for _, pull := range pulls {
		assert.True(t, isTiedTo(pull, fetch))
		if attributes(pull)["pullthrough.source"] == "fill" {
			assert.Equal(t, pull.SpanContext.SpanID(), fetch.Parent.SpanID())
			assert.Equal(t, pull.SpanContext.TraceID(), fetch.SpanContext.TraceID())
		}
	}
	assert.Equal(t, 1, o.up.Count("GET *"))
}

func TestErrorsHaveAStatusAndNoSecret(t *testing.T) {
	secrets := pullthroughtest.NewSecrets(t)
	o := observe(t, pullthroughtest.Config{})
	secrets.Watch(o.up)
	o.up.Fault(pullthroughtest.Fault{Match: "GET /v2/limited/*", Status: 429, Header: http.Header{"Retry-After": {"100"}}})
	o.get(t, "/v2/hub/limited/manifests/1", 429)
	o.get(t, "/v2/none/a/manifests/1", 404)
	o.settle(t)

	fetch := o.one(t, "fetch manifest")
	assert.Equal(t, codes.Error, fetch.Status.Code)
	assert.NotEmpty(t, fetch.Status.Description)
	assert.Subset(t, attributes(fetch), map[string]any{
		"error.type": "rate-limited", "http.response.status_code": int64(429), "server.address": o.up.Host(), "container.image.name": "hub/limited",
	})
	pulls := o.ended("pull manifest")
	require.Len(t, pulls, 2)
	assert.Equal(t, codes.Error, pulls[0].Status.Code)
	assert.True(t, isTiedTo(pulls[0], fetch))
	assert.Equal(t, "no-rule", attributes(pulls[1])["error.type"])
	assert.Empty(t, pulls[1].Links)

	// What a host's own code says is not shown, nor who asks.
	o.Record(t.Context(), pullthrough.Event{
		Kind: pullthrough.EventStoreFailed, Request: pullthrough.Request{Repo: repo("a"), Ref: "1", Caller: secrets.New()},
		Err: fmt.Errorf("redis://:%s@cache/0", secrets.New()),
	})
	o.Record(t.Context(), pullthrough.Event{Kind: pullthrough.EventBlob, Err: fmt.Errorf("read: %w", context.Canceled)})
	failed := o.one(t, "store failed")
	assert.Equal(t, codes.Error, failed.Status.Code)
	assert.Equal(t, "_OTHER", attributes(failed)["error.type"])
	assert.Equal(t, codes.Unset, o.one(t, "pull blob").Status.Code, "a client that leaves is no failure")
	_, err := fmt.Fprintf(secrets.Writer(), "%+v %v", o.spans.GetSpans(), o.measured(t))
	require.NoError(t, err)
	assert.Equal(t, 1, o.up.Count("*"))
}

func TestMetrics(t *testing.T) {
	o := observe(t, pullthroughtest.Config{})
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 1 << 20})
	o.up.Push("nginx", "1", img)
	layer := img.Layers[0].Digest.String()
	for range 3 {
		o.get(t, "/v2/hub/nginx/blobs/"+layer, 200)
		o.settle(t)
	}
	o.get(t, "/v2/hub/nginx/manifests/2", 404)
	o.server.Close() // and waits for its handlers
	o.Record(t.Context(), pullthrough.Event{Kind: pullthrough.EventStoreFailed, Err: errors.New("disk full")})
	sent := o.Sent()
	assert.Greater(t, sent, int64(3<<20))
	assert.Equal(t, map[string]int64{
		"pullthrough.pull.duration pullthrough.object=blob,pullthrough.source=fill":                        1,
		"pullthrough.pull.duration pullthrough.object=blob,pullthrough.source=hit":                         2,
		"pullthrough.pull.duration error.type=not-found,pullthrough.object=manifest":                       1,
		"pullthrough.pull.content pullthrough.object=blob,pullthrough.source=fill":                         1 << 20,
		"pullthrough.pull.content pullthrough.object=blob,pullthrough.source=hit":                          2 << 20,
		"pullthrough.fetch.duration pullthrough.object=blob,pullthrough.rule=hub":                          1,
		"pullthrough.fetch.duration error.type=not-found,pullthrough.object=manifest,pullthrough.rule=hub": 1,
		"pullthrough.fetch.content pullthrough.object=blob,pullthrough.rule=hub":                           1 << 20,
		"pullthrough.fetch.requests pullthrough.rule=hub":                                                  int64(len(o.up.Requests())),
		"pullthrough.store.failures":   1,
		"pullthrough.downloads":        0,
		"pullthrough.download.readers": 0,
		"pullthrough.pending":          0,
		"pullthrough.sent":             sent,
	}, o.measured(t))
}

// No name that a client makes up, and no rule without end, makes a series of its own.
func TestMetricsAreOfFewSeries(t *testing.T) {
	o := observe(t, pullthroughtest.Config{})
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 500 {
				name := fmt.Sprintf("name-%d-%d", worker, i)
				request := pullthrough.Request{Repo: pullthrough.Repo{Account: name, Region: name, Name: name}, Ref: name, Caller: name}
				o.Record(t.Context(), pullthrough.Event{Kind: pullthrough.EventManifest, Request: request, Digest: name, Duration: time.Second})
				o.Record(t.Context(), pullthrough.Event{Kind: pullthrough.EventFetch, Object: pullthrough.EventManifest, Request: request, Rule: fmt.Sprint("rule-", i), Upstream: 1})
			}
		})
	}
	wg.Wait()
	values := o.measured(t)
	assert.Less(t, len(values), 400)
	assert.EqualValues(t, 2000, values["pullthrough.pull.duration pullthrough.object=manifest,pullthrough.source=hit"])
	assert.EqualValues(t, 4*400, values["pullthrough.fetch.requests pullthrough.rule=(other)"])
	for name := range values {
		assert.NotContains(t, name, "name-")
	}
}

// An Observer needs nothing to work: package otel drops what nobody has asked for.
func TestTheZeroObserver(t *testing.T) {
	o := &otelpullthrough.Observer{}
	for _, kind := range []string{pullthrough.EventManifest, pullthrough.EventFetch, pullthrough.EventStoreFailed, "of tomorrow"} {
		o.Record(t.Context(), pullthrough.Event{Kind: kind, Err: errors.New("oops")})
	}
}
