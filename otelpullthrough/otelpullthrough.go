// Package otelpullthrough makes spans and metrics of OpenTelemetry from the events of a
// pull through cache.
//
//	observer := &otelpullthrough.Observer{Proxy: proxy}
//	proxy.OnEvent = observer.Record
//
// # Spans
//
// Each request for a manifest, a blob or a list of referrers is a span, such as
// "pull blob", from when the request came until the answer was there. Its parent is the
// span in the request's context: that of a server behind otelhttp, for example. The time
// in which a client reads a blob is no part of it.
//
// Each fetch from an upstream registry is a span of its own, such as "fetch blob", until
// what was fetched is stored. A fetch belongs to no client. It is the child of the pull
// that has begun it and has links to those that have joined it; where a fetch has ended
// before a pull, since it has failed, the pull has a link to the fetch.
//
// A span has the name of the repository, the tag and the digest, and never a credential or
// a caller. The description of an error is what a client reads of it. What has happened in
// detail is in the log of the Proxy.
//
// # Metrics
//
//	pullthrough.pull.duration    s          pullthrough.object, and pullthrough.source or error.type
//	pullthrough.pull.content     By         pullthrough.object, pullthrough.source
//	pullthrough.fetch.duration   s          pullthrough.rule, pullthrough.object, error.type
//	pullthrough.fetch.content    By         pullthrough.rule, pullthrough.object
//	pullthrough.fetch.requests   {request}  pullthrough.rule
//	pullthrough.store.failures   {failure}
//	pullthrough.downloads        {download}
//	pullthrough.download.readers {reader}
//	pullthrough.pending          {fetch}
//	pullthrough.sent             By
//
// The last four are read from the Proxy. No metric has the name of an account, a
// repository, a tag or a digest. Rules are told apart by their prefixes: the first 100, and
// "(other)".
package otelpullthrough

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/ecr-pullthrough/pullthrough"
)

// ScopeName is the name of the instrumentation scope.
const ScopeName = "github.com/ecr-pullthrough/pullthrough/otelpullthrough"

// Observer turns events into spans and metrics. All fields are optional. They must not
// change after the first event. An Observer is safe for concurrent use and must not be
// copied after first use. Its memory is bounded.
type Observer struct {
	// Proxy is the proxy whose downloads, and what it has sent, are metrics. nil: they are
	// none.
	Proxy *pullthrough.Proxy
	// TracerProvider makes the spans. nil: that of package otel.
	TracerProvider trace.TracerProvider
	// MeterProvider makes the metrics. nil: that of package otel.
	MeterProvider metric.MeterProvider
	// Now is the clock: an event is over when it is recorded. nil: time.Now.
	Now func() time.Time

	once    sync.Once
	tracer  trace.Tracer
	metrics *instruments
	ties    *ties
}

// Record makes spans and metrics of an event. Use it as [pullthrough.Proxy.OnEvent], or call
// it there. It waits for nothing, unless a span processor or an exporter does.
func (o *Observer) Record(ctx context.Context, e pullthrough.Event) {
	o.once.Do(o.start)
	now := o.now()
	o.metrics.record(ctx, e)
	switch e.Kind {
	case pullthrough.EventFetch:
		o.traceFetch(ctx, e, now)
	case pullthrough.EventManifest, pullthrough.EventBlob, pullthrough.EventReferrers:
		o.tracePull(ctx, e, now)
	case pullthrough.EventStoreFailed:
		o.span(ctx, "store failed", e, now, trace.WithSpanKind(trace.SpanKindInternal))
	}
}

func (o *Observer) start() {
	tracers, meters := o.TracerProvider, o.MeterProvider
	if tracers == nil {
		tracers = otel.GetTracerProvider()
	}
	if meters == nil {
		meters = otel.GetMeterProvider()
	}
	o.tracer = tracers.Tracer(ScopeName, trace.WithSchemaURL(semconv.SchemaURL))
	o.metrics = newInstruments(meters.Meter(ScopeName, metric.WithSchemaURL(semconv.SchemaURL)), o.Proxy)
	o.ties = newTies()
}

func (o *Observer) now() time.Time {
	if o.Now != nil {
		return o.Now()
	}
	return time.Now()
}

// tracePull makes the span of a request. If there may be a fetch for it, the two are tied
// together, whichever ends first.
func (o *Observer) tracePull(ctx context.Context, e pullthrough.Event, now time.Time) {
	begun := now.Add(-e.Duration)
	if e.Err == nil && e.Source == pullthrough.SourceHit {
		o.span(ctx, "pull "+e.Kind, e, now, trace.WithSpanKind(trace.SpanKindInternal))
		return
	}
	o.ties.of(keyOf(e.Kind, e.Request)).pull(begun, func(fetch trace.SpanContext) pulled {
		span := o.span(ctx, "pull "+e.Kind, e, now, trace.WithSpanKind(trace.SpanKindInternal), trace.WithLinks(linksTo(fetch)...))
		return pulled{span: span, at: now, began: e.Err == nil && e.Source != pullthrough.SourceShared}
	})
}

// traceFetch makes the span of a fetch.
func (o *Observer) traceFetch(ctx context.Context, e pullthrough.Event, now time.Time) {
	name := "fetch " + e.Object
	if e.Object == "" {
		name = "import image"
	}
	o.ties.of(keyOf(e.Object, e.Request)).fetched(now.Add(-e.Duration), now, func(parent trace.SpanContext, others []trace.SpanContext) trace.SpanContext {
		if !trace.SpanContextFromContext(ctx).IsValid() && parent.IsValid() {
			ctx = trace.ContextWithSpanContext(ctx, parent)
		}
		return o.span(ctx, name, e, now, trace.WithSpanKind(trace.SpanKindClient), trace.WithLinks(linksTo(others...)...))
	})
}

// span makes the span of an event that ends now.
func (o *Observer) span(ctx context.Context, name string, e pullthrough.Event, now time.Time, options ...trace.SpanStartOption) trace.SpanContext {
	options = append(options, trace.WithTimestamp(now.Add(-max(e.Duration, 0))))
	_, span := o.tracer.Start(ctx, name, options...)
	if span.IsRecording() {
		span.SetAttributes(attributesOf(e)...)
		if e.Err != nil && !errors.Is(e.Err, context.Canceled) {
			_, _, message := pullthrough.OCI(e.Err)
			span.SetStatus(codes.Error, message)
		}
	}
	span.End(trace.WithTimestamp(now))
	return span.SpanContext()
}

func linksTo(spans ...trace.SpanContext) (links []trace.Link) {
	for _, span := range spans {
		if span.IsValid() {
			links = append(links, trace.Link{SpanContext: span})
		}
	}
	return links
}

// attributesOf returns what a span tells of an event.
func attributesOf(e pullthrough.Event) []attribute.KeyValue {
	repo := e.Request.Repo
	attrs := []attribute.KeyValue{
		semconv.ContainerImageName(repo.Name), attribute.Int64("pullthrough.bytes", e.Bytes),
	}
	add := func(when bool, attr attribute.KeyValue) {
		if when {
			attrs = append(attrs, attr)
		}
	}
	isDigest := strings.Contains(e.Request.Ref, ":")
	digest := e.Digest
	if digest == "" && isDigest {
		digest = e.Request.Ref
	}
	add(repo.Account != "", semconv.CloudAccountID(repo.Account))
	add(repo.Region != "", semconv.CloudRegion(repo.Region))
	add(e.Request.Ref != "" && !isDigest, semconv.ContainerImageTags(e.Request.Ref))
	add(digest != "" && objectOf(e) == pullthrough.EventManifest, semconv.OCIManifestDigest(digest))
	add(digest != "" && objectOf(e) != pullthrough.EventManifest, attribute.String("pullthrough.digest", digest))
	add(e.Kind != pullthrough.EventStoreFailed, objectKey.String(objectOf(e)))
	add(e.Request.Head, attribute.Bool("pullthrough.head", true))
	add(e.Err == nil, sourceKey.String(e.Source.String()))
	if e.Kind == pullthrough.EventFetch {
		attrs = append(attrs, ruleKey.String(e.Rule), attribute.Int("pullthrough.requests", e.Upstream))
		add(e.Part, attribute.Bool("pullthrough.part", true))
		add(e.Connections > 1, attribute.Int("pullthrough.connections", e.Connections))
		add(e.Anonymous, attribute.Bool("pullthrough.anonymous", true))
		add(e.WrongDigest, attribute.Bool("pullthrough.wrong_digest", true))
		add(len(e.Missing) > 0, attribute.Int("pullthrough.missing", len(e.Missing)))
	}
	return append(attrs, failureOf(e.Err)...)
}

// failureOf returns what a span tells of an error: its type, and the upstream registry with
// its status.
func failureOf(err error) (attrs []attribute.KeyValue) {
	if err == nil {
		return nil
	}
	attrs = append(attrs, semconv.ErrorTypeKey.String(errorType(err)))
	if e, ok := errors.AsType[*pullthrough.Error](err); ok {
		if e.Host != "" {
			attrs = append(attrs, semconv.ServerAddress(e.Host))
		}
		if e.Status != 0 {
			attrs = append(attrs, semconv.HTTPResponseStatusCode(e.Status))
		}
	}
	return attrs
}

// The attributes that have no name in the semantic conventions.
const (
	objectKey = attribute.Key("pullthrough.object") // manifest, blob, referrers, image
	sourceKey = attribute.Key("pullthrough.source") // hit, fill, shared, revalidated, stale
	ruleKey   = attribute.Key("pullthrough.rule")   // its prefix
)

// objectOf returns the kind of object that the event is about.
func objectOf(e pullthrough.Event) string {
	switch {
	case e.Kind == pullthrough.EventFetch && e.Object == "":
		return "image"
	case e.Kind == pullthrough.EventFetch:
		return e.Object
	}
	return e.Kind
}

// errorTypes are the values of error.type. An error of another kind is "_OTHER", as the
// semantic conventions have it.
var errorTypes = []struct {
	err  error
	name string
}{
	{pullthrough.ErrNoRule, "no-rule"},
	{pullthrough.ErrNotFound, "not-found"},
	{pullthrough.ErrDenied, "denied"},
	{pullthrough.ErrUnauthorized, "unauthorized"},
	{pullthrough.ErrRateLimited, "rate-limited"},
	{pullthrough.ErrUnavailable, "unavailable"},
	{pullthrough.ErrDigest, "digest"},
	{pullthrough.ErrTooLarge, "too-large"},
	{pullthrough.ErrInvalid, "invalid"},
	{pullthrough.ErrImmutable, "immutable"},
	{pullthrough.ErrClosed, "closed"},
	{context.Canceled, "canceled"},
	{context.DeadlineExceeded, "timeout"},
}

func errorType(err error) string {
	if e, ok := errors.AsType[*pullthrough.Error](err); ok {
		err = e.Kind
	}
	for _, t := range errorTypes {
		if errors.Is(err, t.err) {
			return t.name
		}
	}
	return semconv.ErrorTypeOther.Value.AsString()
}
