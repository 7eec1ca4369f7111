package otelpullthrough_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/memstore"
	"github.com/ecr-pullthrough/pullthrough/otelpullthrough"
)

// Spans and metrics go to the exporters of the SDK. Here these keep them in memory.
func Example() {
	spans := tracetest.NewInMemoryExporter()
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)) // sdktrace.WithBatcher for an exporter over the network
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))

	proxy := &pullthrough.Proxy{
		Store: memstore.New(),
		Rules: pullthrough.StaticRules{{Prefix: "docker-hub", UpstreamURL: "registry-1.docker.io"}},
		Policy: func(context.Context, pullthrough.Repo, pullthrough.Rule) pullthrough.Policy {
			return pullthrough.Policy{Offline: true} // an example asks nobody
		},
	}
	observer := &otelpullthrough.Observer{Proxy: proxy, TracerProvider: tracers, MeterProvider: meters}
	proxy.OnEvent = observer.Record

	// A server of yours would be behind otelhttp, whose span is the parent then.
	r := httptest.NewRequest(http.MethodGet, "/v2/docker-hub/library/nginx/manifests/1.27", nil)
	proxy.ServeHTTP(httptest.NewRecorder(), r)
	if err := proxy.Shutdown(context.Background()); err != nil {
		fmt.Println(err)
	}
	for _, span := range spans.GetSpans() {
		fmt.Println(span.Name, span.Status.Code, span.Status.Description)
	}
	// Output:
	// fetch manifest Error offline: docker-hub/library/nginx:1.27 is not stored
	// pull manifest Error offline: docker-hub/library/nginx:1.27 is not stored
}
