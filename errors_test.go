package pullthrough_test

import (
	"context"
	"net/http"
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

// A host with one account may leave it empty.
func TestNoRepositoryOfNoAccount(t *testing.T) {
	e := &pullthrough.Error{Kind: pullthrough.ErrNoRule, Repo: pullthrough.Repo{Name: "a/b"}}
	_, _, message := pullthrough.OCI(e)
	assert.Equal(t, "The repository with name 'a/b' does not exist in this registry", message)
	e.Repo.Account = testkit.RegistryAccount
	_, _, message = pullthrough.OCI(e)
	assert.Equal(t, testkit.SayNoRepository("a/b", testkit.RegistryAccount), message)
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
				t.Parallel() // some wait before they resume
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
