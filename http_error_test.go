package pullthrough_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// Sentences of Amazon ECR.
const (
	sayNotFound = "Requested image not found"
	sayDenied   = "The authentication to the upstream registry failed. Verify that the credentials provided in the " +
		"pull through cache rule are correct, and try again."
)

func sayNoRepository(name, account string) string {
	return "The repository with name '" + name + "' does not exist in the registry with id '" + account + "'"
}

// failure is one way in which an upstream fails a first pull.
type failure struct {
	fault    pullthroughtest.Fault // of the objects' answers, not of challenges and tokens
	down     bool                  // the upstream is not there at all
	password string                // if it is not the right one
	refused  error                 // of Proxy.Credentials

	status  int
	code    string
	message string // "": a sentence of our own
	kinds   []error
}

var (
	unavailable = []error{pullthrough.ErrUnavailable}
	badContent  = []error{pullthrough.ErrUnavailable, pullthrough.ErrDigest}
	denied      = []error{pullthrough.ErrDenied}
	rateLimited = []error{pullthrough.ErrRateLimited}
	tooLarge    = []error{pullthrough.ErrTooLarge}
)

// failures are those of manifests and blobs alike.
var failures = map[string]failure{
	"401":                    {fault: status(401), status: 403, code: "DENIED", message: sayDenied, kinds: denied},
	"403":                    {fault: status(403), status: 403, code: "DENIED", message: sayDenied, kinds: denied},
	"wrong password":         {password: "canary-wrong", status: 403, code: "DENIED", message: sayDenied, kinds: denied},
	"no readable secret":     {refused: errors.New("canary-vault"), status: 403, code: "DENIED", kinds: denied},
	"429":                    {fault: status(429, "Retry-After", "3600"), status: 429, code: "TOOMANYREQUESTS", kinds: rateLimited},
	"500":                    {fault: status(500), status: 502, code: "UNKNOWN", kinds: unavailable},
	"502":                    {fault: status(502), status: 502, code: "UNKNOWN", kinds: unavailable},
	"503":                    {fault: status(503, "Retry-After", "3600"), status: 502, code: "UNKNOWN", kinds: unavailable},
	"504":                    {fault: status(504), status: 502, code: "UNKNOWN", kinds: unavailable},
	"400":                    {fault: status(400), status: 502, code: "UNKNOWN", kinds: unavailable},
	"down":                   {down: true, status: 502, code: "UNKNOWN", kinds: unavailable},
	"hangs up":               {fault: pullthroughtest.Fault{CutAfter: new(int64(-1))}, status: 502, code: "UNKNOWN", kinds: unavailable},
	"cut":                    {fault: pullthroughtest.Fault{CutAfter: new(int64(100))}, status: 502, code: "UNKNOWN", kinds: badContent},
	"short":                  {fault: pullthroughtest.Fault{Truncate: 10}, status: 502, code: "UNKNOWN", kinds: badContent},
	"short, close-delimited": {fault: pullthroughtest.Fault{Truncate: 10, CloseDelimited: true}, status: 502, code: "UNKNOWN", kinds: badContent},
	"wrong byte":             {fault: pullthroughtest.Fault{Flip: new(int64(20))}, status: 502, code: "UNKNOWN", kinds: badContent},
	"an HTML page": {
		fault:  pullthroughtest.Fault{Body: []byte("<html>canary-page</html>"), Header: http.Header{"Content-Type": {"text/html"}}},
		status: 502, code: "UNKNOWN", kinds: badContent,
	},
	"redirect to nowhere": {
		fault:  pullthroughtest.Fault{Redirect: "http://127.0.0.1:1/{path}?X-Amz-Signature=canary-signature"},
		status: 502, code: "UNKNOWN", kinds: unavailable,
	},
	"talkative error": {
		fault: pullthroughtest.Fault{Status: 500, Body: []byte(
			`{"errors":[{"code":"UNKNOWN","message":"see https://inner.example/?sig=canary-inner"}]}`)},
		status: 502, code: "UNKNOWN", kinds: unavailable,
	},
}

// manifestFailures are those of manifests only.
var manifestFailures = map[string]failure{
	"404":                      {fault: status(404), status: 404, code: "MANIFEST_UNKNOWN", message: sayNotFound, kinds: []error{pullthrough.ErrNotFound}},
	"oversize":                 {fault: oversize(false), status: 502, code: "UNKNOWN", kinds: tooLarge},
	"oversize, length unknown": {fault: oversize(true), status: 502, code: "UNKNOWN", kinds: tooLarge},
}

var blobFailures = map[string]failure{
	"404": {fault: status(404), status: 404, code: "BLOB_UNKNOWN", kinds: []error{pullthrough.ErrNotFound}},
}

func status(code int, header ...string) pullthroughtest.Fault {
	f := pullthroughtest.Fault{Status: code, Header: http.Header{}}
	for i := 0; i < len(header); i += 2 {
		f.Header.Set(header[i], header[i+1])
	}
	return f
}

func oversize(noLength bool) pullthroughtest.Fault {
	content := `{"schemaVersion":2,"annotations":{"a":"` + strings.Repeat("a", 4<<20) + `"}}`
	return pullthroughtest.Fault{Body: []byte(content), NoLength: noLength}
}

func TestFailedManifests(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{})
	for _, cases := range []map[string]failure{failures, manifestFailures} {
		for name, c := range cases {
			t.Run(name, func(t *testing.T) {
				testFailure(t, c, img, "GET /v2/a/manifests/* 200", manifestPath("a", img.Digest.String()))
			})
		}
	}
}

func TestFailedBlobs(t *testing.T) {
	img := pullthroughtest.NewImage(pullthroughtest.ImageOptions{LayerSize: 5000})
	for _, cases := range []map[string]failure{failures, blobFailures} {
		for name, c := range cases {
			t.Run(name, func(t *testing.T) {
				testFailure(t, c, img, "GET /v2/a/blobs/* 20*", blobPath("a", img.Layers[0].Digest))
			})
		}
	}
}

func testFailure(t *testing.T, c failure, img *pullthroughtest.Image, match, path string) {
	const user, password = "canary-robot", "canary-password"
	config := pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: map[string]string{user: password}, Service: "canary-service"}
	f := newFace(t, config, func(p *pullthrough.Proxy) {
		oneTry(p)
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			if c.password != "" {
				return pullthrough.Credential{Username: user, AccessToken: c.password}, c.refused
			}
			return pullthrough.Credential{Username: user, AccessToken: password}, c.refused
		}
	})
	f.up.Push("a", "v1", img)
	f.up.Reset()
	c.fault.Match = match
	if c.password == "" && c.refused == nil {
		f.up.Fault(c.fault)
	}
	if c.down {
		f.up.Close()
	}

	r := f.get(t, path)
	message := assertOCI(t, r, c.status, c.code)
	if c.message != "" {
		assert.Equal(t, c.message, message)
	}
	if c.status == http.StatusTooManyRequests {
		assert.Equal(t, "3600", r.Header.Get("Retry-After"))
	}
	assertDiscreet(t, f, r)
	assertAgrees(t, f, c, r, path)
	f.settled(t)
	if c.down {
		assert.Empty(t, f.up.Log())
		return
	}
	for _, line := range f.up.Log() {
		assert.True(t, strings.HasPrefix(line, strings.TrimSuffix(upstreamGet(path, 0), " 0")) || strings.HasPrefix(line, "GET /token "), line)
	}
	assert.NotEmpty(t, f.up.Log())
	assert.LessOrEqual(t, len(f.up.Log()), 24, "two failed pulls cost no flood: %s", f.up.Log())

	head := f.ask(t, http.MethodHead, path)
	if c.status < 500 { // a HEAD of a broken blob may find its size all the same
		assert.Equal(t, c.status, head.StatusCode)
	}
	assert.Empty(t, head.content)
	assertDiscreet(t, f, head)
}

// assertDiscreet checks that an answer says nothing of the upstream: no host,
// no URL, nothing secret, no word of its own.
func assertDiscreet(t *testing.T, f *face, r reply) {
	t.Helper()
	var wire bytes.Buffer
	assert.NoError(t, r.Header.Write(&wire))
	wire.Write(r.content)
	said := strings.ToLower(wire.String())
	words := []string{"127.0.0.1", "http://", "https://", "canary", "inner.example", "/v2/", "bearer", f.up.Host(), f.SpoolDir}
	for _, request := range f.up.Requests() {
		if _, token, ok := strings.Cut(request.Header.Get("Authorization"), " "); ok {
			words = append(words, token)
		}
	}
	for _, word := range words {
		assert.NotContains(t, said, strings.ToLower(word))
	}
}

// assertAgrees checks that the Go API fails in the way that the wire did.
func assertAgrees(t *testing.T, f *face, c failure, r reply, path string) {
	t.Helper()
	ref := path[strings.LastIndexByte(path, '/')+1:]
	var err error
	if strings.Contains(path, "/blobs/") {
		_, err = f.Blob(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: ref})
	} else {
		_, err = f.Manifest(t.Context(), pullthrough.Request{Repo: repo("a"), Ref: ref})
	}
	require.Error(t, err)
	is := false
	for _, kind := range c.kinds {
		is = is || errors.Is(err, kind)
	}
	assert.True(t, is, "%v is none of %v", err, c.kinds)
	if e, ok := errors.AsType[*pullthrough.Error](err); assert.True(t, ok, "%T", err) {
		assert.Equal(t, repo("a"), e.Repo)
		assert.Equal(t, ref, e.Ref)
		if c.fault.Header.Get("Retry-After") != "" && c.status == 429 {
			assert.InDelta(t, time.Hour, e.RetryAfter, float64(time.Minute))
		}
	}
	code, message := ociError(t, r)
	gotStatus, gotCode, gotMessage := pullthrough.OCI(err)
	assert.Equal(t, r.StatusCode, gotStatus)
	assert.Equal(t, code, gotCode)
	assert.Equal(t, message, gotMessage)
	rec := httptest.NewRecorder()
	pullthrough.WriteError(rec, err)
	assert.Equal(t, r.StatusCode, rec.Code)
	assert.JSONEq(t, string(r.content), rec.Body.String())
	for _, secret := range []string{"canary-robot:", "canary-password", "canary-signature"} {
		assert.NotContains(t, err.Error(), secret, "logs are read by many")
	}
}

func TestMissingTagAndRepository(t *testing.T) {
	f := newFace(t, pullthroughtest.Config{}, nil)
	f.up.Push("a", "v1", pullthroughtest.NewImage(pullthroughtest.ImageOptions{}))
	f.up.Reset()
	for _, path := range []string{manifestPath("a", "v2"), manifestPath("absent", "v1"), manifestPath("a", digest.FromString("x").String())} {
		assert.Equal(t, sayNotFound, assertOCI(t, f.get(t, path), 404, "MANIFEST_UNKNOWN"))
		assert.Equal(t, 1, f.up.Count(upstreamGet(path, 404)), "upstream: %s", f.up.Log())
	}
	path := blobPath("a", digest.FromString("x"))
	assertOCI(t, f.get(t, path), 404, "BLOB_UNKNOWN")
	assert.Equal(t, 1, f.up.Count(upstreamGet(path, 404)), "upstream: %s", f.up.Log())
}

func TestRetryAfterAsADateIsPassedOn(t *testing.T) {
	f := newFace(t, pullthroughtest.Config{}, nil)
	f.up.Fault(status(429, "Retry-After", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)))
	r := f.get(t, manifestPath("a", "v1"))
	assertOCI(t, r, 429, "TOOMANYREQUESTS")
	seconds, err := strconv.Atoi(r.Header.Get("Retry-After"))
	assert.NoError(t, err)
	assert.InDelta(t, 3600, seconds, 60)
	assert.Equal(t, []string{upstreamGet(manifestPath("a", "v1"), 429)}, f.up.Log(), "an hour is not waited for")
}

func TestNoRuleIsAnUnknownRepository(t *testing.T) {
	f := newFace(t, pullthroughtest.Config{}, func(p *pullthrough.Proxy) { p.Identify = pullthrough.HostIdentity })
	for _, name := range []string{"mine", "hub", "hubx/a", "hu/a", "a/hub/b", "team/hub"} {
		for _, object := range []string{"/manifests/v1", "/manifests/" + digest.FromString("x").String(), "/blobs/" + digest.FromString("x").String()} {
			r := f.get(t, "/v2/"+name+object, "Host", registryHost)
			assert.Equal(t, sayNoRepository(name, registryAccount), assertOCI(t, r, 404, "NAME_UNKNOWN"))
		}
		_, err := f.Manifest(t.Context(), pullthrough.Request{Repo: pullthrough.Repo{Account: registryAccount, Name: name}, Ref: "v1"})
		assert.ErrorIs(t, err, pullthrough.ErrNoRule)
		status, code, message := pullthrough.OCI(err)
		assert.Equal(t, 404, status)
		assert.Equal(t, "NAME_UNKNOWN", code)
		assert.Equal(t, sayNoRepository(name, registryAccount), message)
	}
	assert.Empty(t, f.up.Log())
}
