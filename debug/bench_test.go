package debug_test

import (
	"testing"
	"time"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/debug"
)

// BenchmarkRecord is what a hit pays for being watched.
func BenchmarkRecord(b *testing.B) {
	page := &debug.Page{}
	digest := "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	e := pullthrough.Event{
		Kind: pullthrough.EventBlob, Request: pullthrough.Request{Repo: pullthrough.Repo{Account: "123456789012", Region: "us-east-1", Name: "docker-hub/library/nginx"}, Ref: digest},
		Digest: digest, Bytes: 1 << 20, Duration: time.Millisecond,
	}
	b.ReportAllocs()
	for b.Loop() {
		page.Record(b.Context(), e)
	}
}
