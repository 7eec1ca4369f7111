package otelpullthrough

import (
	"context"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/ecr-pullthrough/pullthrough"
)

const (
	// maxRules is how many prefixes are told apart. The rest are otherRules, which is no
	// prefix.
	maxRules   = 100
	otherRules = "(other)"
)

// seconds are the bounds of the histograms: hits take less than the first, and fetches of
// large blobs minutes.
var seconds = []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900}

// instruments are what is measured. They are safe for concurrent use.
type instruments struct {
	pulls, fetches             metric.Float64Histogram
	pullContent, fetchContent  metric.Int64Counter
	fetchRequests, storeFailed metric.Int64Counter

	mu    sync.Mutex
	rules map[string]bool // maxRules of them
}

// newInstruments makes the instruments. Errors go to the error handler of package otel.
func newInstruments(m metric.Meter, p *pullthrough.Proxy) *instruments {
	in := &instruments{rules: map[string]bool{}}
	histogram := func(name, what string) metric.Float64Histogram {
		h, err := m.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(what), metric.WithExplicitBucketBoundaries(seconds...))
		report(err)
		return h
	}
	counter := func(name, unit, what string) metric.Int64Counter {
		c, err := m.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(what))
		report(err)
		return c
	}
	in.pulls = histogram("pullthrough.pull.duration", "Duration of pulls, until their answer was there.")
	in.fetches = histogram("pullthrough.fetch.duration", "Duration of fetches from upstream, until they were stored or had failed.")
	in.pullContent = counter("pullthrough.pull.content", "By", "Length of the content that was answered with, whole, whatever part was read.")
	in.fetchContent = counter("pullthrough.fetch.content", "By", "Length of the content that was fetched.")
	in.fetchRequests = counter("pullthrough.fetch.requests", "{request}", "Requests that fetches made to upstream, tokens included.")
	in.storeFailed = counter("pullthrough.store.failures", "{failure}", "Failures of the Store; the pulls went on without it.")
	if p != nil {
		watch(m, p)
	}
	return in
}

// watch has the meter read what the proxy does at the moment.
func watch(m metric.Meter, p *pullthrough.Proxy) {
	gauge := func(name, unit, what string, read func() int64) {
		_, err := m.Int64ObservableUpDownCounter(name, metric.WithUnit(unit), metric.WithDescription(what), observing(read))
		report(err)
	}
	gauge("pullthrough.downloads", "{download}", "Blobs on their way from upstream, or read from their download.", func() int64 { return int64(len(p.Downloads())) })
	gauge("pullthrough.download.readers", "{reader}", "Clients that read a blob from its download.", func() (n int64) {
		for _, d := range p.Downloads() {
			n += int64(len(d.Readers))
		}
		return n
	})
	gauge("pullthrough.pending", "{fetch}", "What waits for an upstream registry.", func() int64 { return int64(len(p.Pending())) })
	_, err := m.Int64ObservableCounter("pullthrough.sent", metric.WithUnit("By"),
		metric.WithDescription("Bytes of bodies that the connections of clients have taken."), observing(p.Sent))
	report(err)
}

// observing has read called for each collection.
func observing(read func() int64) metric.Int64ObservableOption {
	return metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
		o.Observe(read())
		return nil
	})
}

func report(err error) {
	if err != nil {
		otel.Handle(err)
	}
}

// record measures an event.
func (in *instruments) record(ctx context.Context, e pullthrough.Event) {
	object := objectKey.String(objectOf(e))
	switch e.Kind {
	case pullthrough.EventStoreFailed:
		in.storeFailed.Add(ctx, 1)
	case pullthrough.EventFetch:
		in.recordFetch(ctx, e, object)
	case pullthrough.EventManifest, pullthrough.EventBlob, pullthrough.EventReferrers:
		outcome := sourceKey.String(e.Source.String())
		if e.Err != nil {
			outcome = semconv.ErrorTypeKey.String(errorType(e.Err))
		}
		with := metric.WithAttributeSet(attribute.NewSet(object, outcome))
		in.pulls.Record(ctx, e.Duration.Seconds(), with)
		if e.Err == nil && !e.Request.Head {
			in.pullContent.Add(ctx, e.Bytes, with)
		}
	}
}

func (in *instruments) recordFetch(ctx context.Context, e pullthrough.Event, object attribute.KeyValue) {
	rule := ruleKey.String(in.rule(e.Rule))
	attrs := []attribute.KeyValue{rule, object}
	if e.Err != nil {
		attrs = append(attrs, semconv.ErrorTypeKey.String(errorType(e.Err)))
	}
	in.fetches.Record(ctx, e.Duration.Seconds(), metric.WithAttributes(attrs...))
	in.fetchRequests.Add(ctx, int64(e.Upstream), metric.WithAttributes(rule))
	if e.Err == nil {
		in.fetchContent.Add(ctx, e.Bytes, metric.WithAttributes(rule, object))
	}
}

// rule returns the prefix, or otherRules if there are too many.
func (in *instruments) rule(prefix string) string {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.rules[prefix] {
		if len(in.rules) >= maxRules {
			return otherRules
		}
		in.rules[prefix] = true
	}
	return prefix
}
