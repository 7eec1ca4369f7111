package otelpullthrough_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/otelpullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// observed is a proxy before an upstream, and what an observer makes of it.
type observed struct {
	*pullthrough.Proxy
	*otelpullthrough.Observer
	up      *pullthroughtest.Upstream
	spans   *tracetest.InMemoryExporter
	reader  *sdkmetric.ManualReader
	tracers *sdktrace.TracerProvider
	server  *httptest.Server
}

// observe starts one with the rule hub. Each request to its server has a span, as behind
// otelhttp.
func observe(t *testing.T, c pullthroughtest.Config) *observed {
	t.Helper()
	o := &observed{up: pullthroughtest.New(t, c), spans: tracetest.NewInMemoryExporter(), reader: sdkmetric.NewManualReader()}
	o.tracers = sdktrace.NewTracerProvider(sdktrace.WithSyncer(o.spans))
	o.Proxy = &pullthrough.Proxy{
		Store: memstore.New(), Rules: pullthrough.StaticRules{{Prefix: "hub", UpstreamURL: o.up.URL}}, SpoolDir: t.TempDir(),
	}
	o.Observer = &otelpullthrough.Observer{
		Proxy: o.Proxy, TracerProvider: o.tracers, MeterProvider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(o.reader)),
	}
	o.OnEvent = o.Record
	o.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, span := o.tracers.Tracer("server").Start(r.Context(), r.Method)
		defer span.End()
		o.ServeHTTP(w, r.WithContext(ctx))
	}))
	t.Cleanup(func() {
		o.server.Close()
		assert.NoError(t, o.Shutdown(context.Background()))
	})
	return o
}

func repo(name string) pullthrough.Repo { return pullthrough.Repo{Name: "hub/" + name} }

// ended are the spans of that name.
func (o *observed) ended(name string) (found []tracetest.SpanStub) {
	for _, span := range o.spans.GetSpans() {
		if span.Name == name {
			found = append(found, span)
		}
	}
	return found
}

// one is the only span of that name.
func (o *observed) one(t *testing.T, name string) tracetest.SpanStub {
	t.Helper()
	found := o.ended(name)
	require.Len(t, found, 1, "%s", name)
	return found[0]
}

// isTiedTo reports whether one of the spans is a child of the other, or has a link to it.
func isTiedTo(a, b tracetest.SpanStub) bool {
	tied := func(a, b tracetest.SpanStub) bool {
		for _, link := range a.Links {
			if link.SpanContext.SpanID() == b.SpanContext.SpanID() {
				return true
			}
		}
		return a.Parent.SpanID() == b.SpanContext.SpanID()
	}
	return tied(a, b) || tied(b, a)
}

// attributes are those of a span by name.
func attributes(span tracetest.SpanStub) map[string]any {
	all := map[string]any{}
	for _, attr := range span.Attributes {
		all[string(attr.Key)] = attr.Value.AsInterface()
	}
	return all
}

// measured is the last value of each metric, by its name and attributes: of a histogram how
// many were measured.
func (o *observed) measured(t *testing.T) map[string]int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(t, o.reader.Collect(t.Context(), &all))
	values := map[string]int64{}
	key := func(name string, attrs attribute.Set) string {
		if attrs.Len() == 0 {
			return name
		}
		return name + " " + attrs.Encoded(attribute.DefaultEncoder())
	}
	for _, scope := range all.ScopeMetrics {
		assert.Equal(t, otelpullthrough.ScopeName, scope.Scope.Name)
		for _, m := range scope.Metrics {
			assert.NotEmpty(t, m.Description)
			assert.NotEmpty(t, m.Unit)
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					values[key(m.Name, p.Attributes)] = p.Value
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					values[key(m.Name, p.Attributes)] = int64(p.Count)
				}
			default:
				assert.Fail(t, "a metric of another kind", "%s: %T", m.Name, data)
			}
		}
	}
	return values
}
