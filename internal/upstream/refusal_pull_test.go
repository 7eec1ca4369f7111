package upstream_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestARefusalWhoseBodyNeverComesHoldsUpNobody(t *testing.T) {
	for name, fault := range map[string]pullthroughtest.Fault{
		"404":      {Status: 404, Body: []byte(strings.Repeat("x", 100))},
		"500":      {Status: 500, Body: []byte(strings.Repeat("x", 100))},
		"401":      {Status: 401, Body: []byte(strings.Repeat("x", 100))},
		"redirect": {Redirect: "{path}", Body: []byte(strings.Repeat("x", 100))},
	} {
		t.Run(name, func(t *testing.T) {
			up, enter := testkit.Piped(t, pullthroughtest.Config{})
			synctest.Test(t, func(t *testing.T) {
				w := enter(t)
				layer := w.Layer(1000)
				fault.Match, fault.Stall, fault.StallAfter = testkit.Blobs, make(chan struct{}), new(int64(0))
				up.Fault(fault)
				start := time.Now()
				done := make(chan error, 1)
				go func() {
					_, err := w.Open(context.Background(), layer.Digest)
					done <- err
				}()
				synctest.Wait()
				_, err := w.Manifest(t.Context(), pullthrough.Request{Repo: testkit.Repo("a"), Ref: "1"})
				assert.NoError(t, err, "the rule's other pulls go on")
				assert.LessOrEqual(t, time.Since(start), 3*time.Second)
				assert.Error(t, <-done)
				assert.LessOrEqual(t, time.Since(start), 15*time.Second)
				assert.Positive(t, up.Count(testkit.Blobs))
			})
		})
	}
}
