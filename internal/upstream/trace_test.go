package upstream_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
)

func TestTheWarningsOfATrace(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for line, want := range map[string][]string{
		`299 - "old"`:          {"old"},
		`299 - "say \"old\""`:  {`say "old"`},
		`299 - "` + long + `"`: {long[:4096]},
		`299 - "open`:          nil,
		`299 - "more" behind`:  nil,
		"299 - \"a\x07\"":      nil,
		`214 - "other form"`:   nil,
	} {
		c := upstream.New(upstream.Config{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			return answer(r, 404, http.Header{"Warning": {line, line}}), nil
		})})
		trace := new(upstream.Trace)
		ctx := trace.Attach(t.Context())
		_, err := c.Manifest(ctx, &upstream.Target{Base: mustParse(t, "https://r.example"), Name: "a"}, "1", upstream.Pull)
		assert.ErrorIs(t, err, upstream.ErrNotFound)
		assert.Equal(t, upstream.Facts{Requests: 1, Warnings: want}, trace.Facts(), line)
	}
}
