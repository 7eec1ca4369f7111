package upstream_test

import (
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/upstream"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestTheSizeOfABlob(t *testing.T) {
	w := newWorld(t, pullthroughtest.Config{})
	layer := w.layer(size)
	n, err := w.BlobSize(t.Context(), w.target, layer.Digest)
	require.NoError(t, err)
	assert.EqualValues(t, size, n)
	assert.Equal(t, []string{"bytes=0-0"}, rangesOf(w.up))
	_, err = w.BlobSize(t.Context(), w.target, layer.Digest.Algorithm().FromString("x"))
	assert.ErrorIs(t, err, upstream.ErrNotFound)
}

// ECR Public answers every HEAD of a blob 401.
func TestECRPublicIsNeverAskedByHead(t *testing.T) {
	for host, want := range map[string][]string{"public.ecr.aws": {"GET"}, "registry.example": {"GET", "HEAD"}} {
		var methods []string
		c := upstream.New(upstream.Config{Flights: new(flight.Set), Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			methods = append(methods, r.Method)
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody, ContentLength: -1, Request: r}, nil
		})})
		size, err := c.BlobSize(t.Context(), &upstream.Target{ID: "hub", Base: mustParse(t, "https://"+host), Name: "a"}, digest.FromString("x"))
		require.NoError(t, err)
		assert.EqualValues(t, -1, size)
		assert.Equal(t, want, methods)
		c.Close()
	}
}
