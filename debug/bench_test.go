package debug_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/debug"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
)

// hit is an event of a hit.
func hit() pullthrough.Event {
	digest := "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	return pullthrough.Event{
		Kind: pullthrough.EventBlob, Request: pullthrough.Request{Repo: pullthrough.Repo{Account: "123456789012", Region: "us-east-1", Name: "docker-hub/library/nginx"}, Ref: digest},
		Digest: digest, Bytes: 1 << 20, Duration: time.Millisecond,
	}
}

// A hit pays no memory for being watched, once the page has seen as much as it shows.
func TestRecordDoesNotAllocate(t *testing.T) {
	page, e := &debug.Page{Events: 10}, hit()
	for range 20 {
		page.Record(t.Context(), e)
	}
	assert.Zero(t, testkit.Allocs(func() { page.Record(t.Context(), e) }))
}

// BenchmarkRecord is what a hit pays for being watched.
func BenchmarkRecord(b *testing.B) {
	page, e := &debug.Page{}, hit()
	b.ReportAllocs()
	for b.Loop() {
		page.Record(b.Context(), e)
	}
}
