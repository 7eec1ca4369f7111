package main

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/fakeecr"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

// discard is a client that reads nothing.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkManifestHit is a stored manifest without a network: from the library alone, from
// the fake ECR with its catalog and page, and with the line of the log as well.
func BenchmarkManifestHit(b *testing.B) {
	silent := slog.New(slog.DiscardHandler)
	p := newPulls(silent, io.Discard)
	config := fakeecr.Config{Logger: silent, OnEvent: p.record, Rules: []pullthrough.Rule{{Prefix: testkit.Prefix, UpstreamURL: "registry.test"}}}
	logged, err := fakeecr.New(config)
	if err != nil {
		b.Fatal(err)
	}
	config.OnEvent = nil
	quiet, err := fakeecr.New(config)
	if err != nil {
		b.Fatal(err)
	}
	m := testkit.LocalManifest("1")
	path := "/v2/" + testkit.Prefix + "/a/manifests/" + m.Descriptor.Digest.String()
	for name, h := range map[string]struct {
		ecr     *fakeecr.Server
		handler http.Handler
	}{"library": {quiet, quiet.Proxy}, "ecr": {quiet, quiet}, "ecr and log": {logged, p.around(logged)}} {
		repo := pullthrough.Repo{Account: "123456789012", Region: "us-east-1", Name: testkit.Prefix + "/a"}
		if err := h.ecr.Proxy.Store.PutManifest(b.Context(), repo, m); err != nil {
			b.Fatal(err)
		}
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r = r.WithContext(p.seat(r.Context(), nil))
		w := &discard{http.Header{}}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				h.handler.ServeHTTP(w, r)
			}
		})
	}
	p.close()
}
