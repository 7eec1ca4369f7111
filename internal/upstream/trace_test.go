package upstream_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
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

func TestTheTraceHasTheFacts(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: users, Anonymous: true})
	w.push(pullthroughtest.ImageOptions{})
	w.target.Credential = give(upstream.Credential{Username: "me", AccessToken: "canary-wrong"})
	w.target.Options.AnonymousFallback = true
	w.up.Fault(pullthroughtest.Fault{Match: "GET /v2/* 200", Header: http.Header{
		"Warning": {`299 - "this tag is old"`, `110 - "no such form"`}, "Docker-Content-Digest": {"sha256:00"},
	}})
	trace := new(upstream.Trace)
	ctx := trace.Attach(t.Context())
	_, err := w.Manifest(ctx, w.target, "1", upstream.Pull)
	require.NoError(t, err)
	assert.Equal(t, upstream.Facts{Requests: 4, Anonymous: true, WrongDigest: true, Warnings: []string{"this tag is old"}}, trace.Facts())
	assert.Equal(t, []string{"GET /v2/a/manifests/1 401", "GET /token 401", "GET /token 200", "GET /v2/a/manifests/1 200"}, paths(w.up))
}
