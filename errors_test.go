package pullthrough_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/internal/testkit"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

func TestTheKindDecidesWhatAClientGets(t *testing.T) {
	for _, cause := range []error{pullthrough.ErrNotFound, pullthrough.ErrNoRule, os.ErrNotExist, context.DeadlineExceeded} {
		status, code, _ := pullthrough.OCI(&pullthrough.Error{Kind: pullthrough.ErrDenied, Err: cause})
		assert.Equal(t, 403, status, cause)
		assert.Equal(t, "DENIED", code, cause)
	}
	status, _, message := pullthrough.OCI(&pullthrough.Error{})
	assert.Equal(t, 500, status)
	assert.NotEmpty(t, message)
	assert.NotPanics(t, func() { _ = (&pullthrough.Error{}).Error() })
}

// manifestFailures are those of manifests only.
var manifestFailures = map[string]testkit.Failure{
	"404":                      {Fault: testkit.Status(404), Status: 404, Code: "MANIFEST_UNKNOWN", Message: testkit.SayNotFound, Kinds: []error{pullthrough.ErrNotFound}},
	"oversize":                 {Fault: oversize(false), Status: 502, Code: "UNKNOWN", Kinds: []error{pullthrough.ErrTooLarge}},
	"oversize, length unknown": {Fault: oversize(true), Status: 502, Code: "UNKNOWN", Kinds: []error{pullthrough.ErrTooLarge}},
}

var blobFailures = map[string]testkit.Failure{
	"404": {Fault: testkit.Status(404), Status: 404, Code: "BLOB_UNKNOWN", Kinds: []error{pullthrough.ErrNotFound}},
}

func oversize(noLength bool) pullthroughtest.Fault {
	content := `{"schemaVersion":2,"annotations":{"a":"` + strings.Repeat("a", 4<<20) + `"}}`
	return pullthroughtest.Fault{Body: []byte(content), NoLength: noLength}
}

func TestFailedManifests(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	for _, cases := range []map[string]testkit.Failure{testkit.Failures, manifestFailures} {
		for name, c := range cases {
			t.Run(name, func(t *testing.T) {
				testkit.CheckFailure(t, c, img, "GET /v2/a/manifests/* 200", testkit.ManifestPath("a", img.Digest.String()))
			})
		}
	}
}

func TestFailedBlobs(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 5000})
	for _, cases := range []map[string]testkit.Failure{testkit.Failures, blobFailures} {
		for name, c := range cases {
			t.Run(name, func(t *testing.T) {
				testkit.CheckFailure(t, c, img, "GET /v2/a/blobs/* 20*", testkit.BlobPath("a", img.Layers[0].Digest))
			})
		}
	}
}

func TestMissingTagAndRepository(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
	f.Up.Push("a", "v1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))
	f.Up.Reset()
	for _, path := range []string{testkit.ManifestPath("a", "v2"), testkit.ManifestPath("absent", "v1"), testkit.ManifestPath("a", digest.FromString("x").String())} {
		assert.Equal(t, testkit.SayNotFound, testkit.AssertOCI(t, f.Get(t, path), 404, "MANIFEST_UNKNOWN"))
		assert.Equal(t, 1, f.Up.Count(testkit.UpstreamGet(path, 404)), "upstream: %s", f.Up.Log())
	}
	path := testkit.BlobPath("a", digest.FromString("x"))
	testkit.AssertOCI(t, f.Get(t, path), 404, "BLOB_UNKNOWN")
	assert.Equal(t, 1, f.Up.Count(testkit.UpstreamGet(path, 404)), "upstream: %s", f.Up.Log())
}

func TestRetryAfterAsADateIsPassedOn(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, nil)
	f.Up.Fault(testkit.Status(429, "Retry-After", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)))
	r := f.Get(t, testkit.ManifestPath("a", "v1"))
	testkit.AssertOCI(t, r, 429, "TOOMANYREQUESTS")
	seconds, err := strconv.Atoi(r.Header.Get("Retry-After"))
	assert.NoError(t, err)
	assert.InDelta(t, 3600, seconds, 60)
	assert.Equal(t, []string{testkit.UpstreamGet(testkit.ManifestPath("a", "v1"), 429)}, f.Up.Log(), "an hour is not waited for")
}

func TestNoRuleIsAnUnknownRepository(t *testing.T) {
	f := testkit.NewFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Identify = pullthrough.HostIdentity })
	for _, name := range []string{"mine", "hub", "hubx/a", "hu/a", "a/hub/b", "team/hub"} {
		for _, object := range []string{"/manifests/v1", "/manifests/" + digest.FromString("x").String(), "/blobs/" + digest.FromString("x").String()} {
			r := f.Get(t, "/v2/"+name+object, "Host", testkit.RegistryHost)
			assert.Equal(t, testkit.SayNoRepository(name, testkit.RegistryAccount), testkit.AssertOCI(t, r, 404, "NAME_UNKNOWN"))
		}
		_, err := f.Manifest(t.Context(), pullthrough.Request{Repo: pullthrough.Repo{Account: testkit.RegistryAccount, Name: name}, Ref: "v1"})
		assert.ErrorIs(t, err, pullthrough.ErrNoRule)
		status, code, message := pullthrough.OCI(err)
		assert.Equal(t, 404, status)
		assert.Equal(t, "NAME_UNKNOWN", code)
		assert.Equal(t, testkit.SayNoRepository(name, testkit.RegistryAccount), message)
	}
	assert.Empty(t, f.Up.Log())
}

func TestOCI(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		status int
		code   string
	}{
		"nil":          {nil, 500, "UNKNOWN"},
		"unknown":      {errors.New("canary: disk /dev/sda failed"), 500, "UNKNOWN"},
		"canceled":     {context.Canceled, 500, "UNKNOWN"},
		"no rule":      {pullthrough.ErrNoRule, 404, "NAME_UNKNOWN"},
		"not found":    {pullthrough.ErrNotFound, 404, "MANIFEST_UNKNOWN"},
		"denied":       {pullthrough.ErrDenied, 403, "DENIED"},
		"unauthorized": {pullthrough.ErrUnauthorized, 401, "UNAUTHORIZED"},
		"limited":      {pullthrough.ErrRateLimited, 429, "TOOMANYREQUESTS"},
		"unavailable":  {pullthrough.ErrUnavailable, 502, "UNKNOWN"},
		"digest":       {pullthrough.ErrDigest, 502, "UNKNOWN"},
		"too large":    {pullthrough.ErrTooLarge, 502, "UNKNOWN"},
		"own code":     {&pullthrough.Error{Kind: pullthrough.ErrDenied, Code: "OWN", Message: "my sentence"}, 403, "OWN"},
		"wrapped":      {errors.Join(errors.New("canary"), &pullthrough.Error{Kind: pullthrough.ErrDigest, Err: errors.New("canary")}), 502, "UNKNOWN"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "canceled" {
				status, _, _ := pullthrough.OCI(c.err)
				assert.GreaterOrEqual(t, status, 400)
				return
			}
			status, code, message := pullthrough.OCI(c.err)
			assert.Equal(t, c.status, status)
			assert.Equal(t, c.code, code)
			assert.NotEmpty(t, message)
			assert.NotContains(t, message, "canary", "causes are for logs")
			if name == "own code" {
				assert.Equal(t, "my sentence", message)
			}
		})
	}
}

func TestWriteErrorPassesHeadersOn(t *testing.T) {
	rec := httptest.NewRecorder()
	pullthrough.WriteError(rec, &pullthrough.Error{Kind: pullthrough.ErrRateLimited, RetryAfter: 7 * time.Second})
	assert.Equal(t, 429, rec.Code)
	assert.Equal(t, "7", rec.Header().Get("Retry-After"))
	assert.Equal(t, "application/json", rec.Header().Get("Content-Type"))

	rec = httptest.NewRecorder()
	pullthrough.WriteError(rec, pullthrough.ErrUnauthorized)
	assert.Equal(t, 401, rec.Code)
	assert.True(t, strings.HasPrefix(rec.Header().Get("WWW-Authenticate"), "Basic "), rec.Header())
	assert.Contains(t, rec.Header().Get("WWW-Authenticate"), `service="ecr.amazonaws.com"`)

	rec = httptest.NewRecorder()
	rec.Header().Set("WWW-Authenticate", `Bearer realm="https://host.example/token"`)
	pullthrough.WriteError(rec, pullthrough.ErrUnauthorized)
	assert.Equal(t, []string{`Bearer realm="https://host.example/token"`}, rec.Header().Values("WWW-Authenticate"))
}
