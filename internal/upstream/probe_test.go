package upstream_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestAProbeLearnsAfreshAndKeepsNothing(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: users})
	whole := w.repository("")
	whole.Credential = give(upstream.Credential{Username: "me", AccessToken: canary})
	for range 2 {
		require.NoError(t, w.Probe(t.Context(), whole))
	}
	once := []string{"GET /v2/ 401", "GET /token 200", "GET /v2/ 200"}
	assert.Equal(t, append(once, once...), paths(w.up))
}

func TestWhatAProbeFinds(t *testing.T) {
	page := pullthroughtest.Fault{Status: 200, Body: []byte("<html>"), Header: http.Header{"Content-Type": {"text/html"}}}
	for name, tc := range map[string]struct {
		password string
		fault    pullthroughtest.Fault
		want     error
	}{
		"a wrong password":     {"canary-wrong", pullthroughtest.Fault{}, upstream.ErrDenied},
		"no registry":          {canary, page, upstream.ErrNotFound},
		"one that has trouble": {canary, pullthroughtest.Fault{Status: 500}, upstream.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: users, Anonymous: true})
			whole := w.repository("")
			whole.Credential = give(upstream.Credential{Username: "me", AccessToken: tc.password})
			whole.Options = upstream.Options{Retries: -1, AnonymousFallback: true}
			tc.fault.Match = "GET /v2/ *"
			if tc.fault.Status != 0 {
				w.up.Fault(tc.fault)
			}
			assert.ErrorIs(t, w.Probe(t.Context(), whole), tc.want)
			assert.LessOrEqual(t, len(w.up.Log()), 3)
		})
	}
}
