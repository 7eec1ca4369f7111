package testkit

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// Sentences of Amazon ECR.
const (
	SayNotFound = "Requested image not found"
	SayDenied   = "The authentication to the upstream registry failed. Verify that the credentials provided in the " +
		"pull through cache rule are correct, and try again."
)

// SayNoRepository is its sentence about a repository that is not there.
func SayNoRepository(name, account string) string {
	return "The repository with name '" + name + "' does not exist in the registry with id '" + account + "'"
}

// Failure is one way in which an upstream fails a first pull.
type Failure struct {
	Fault    pullthroughtest.Fault // of the objects' answers, not of challenges and tokens
	Down     bool                  // the upstream is not there at all
	Password string                // if it is not the right one
	Refused  error                 // of Proxy.Credentials

	Status  int
	Code    string
	Message string // "": a sentence of our own
	Kinds   []error
}

var (
	unavailable = []error{pullthrough.ErrUnavailable}
	badContent  = []error{pullthrough.ErrUnavailable, pullthrough.ErrDigest}
	denied      = []error{pullthrough.ErrDenied}
	rateLimited = []error{pullthrough.ErrRateLimited}
)

// Failures are those of manifests and blobs alike.
var Failures = map[string]Failure{
	"401":                    {Fault: Status(401), Status: 403, Code: "DENIED", Message: SayDenied, Kinds: denied},
	"403":                    {Fault: Status(403), Status: 403, Code: "DENIED", Message: SayDenied, Kinds: denied},
	"wrong password":         {Password: "canary-wrong", Status: 403, Code: "DENIED", Message: SayDenied, Kinds: denied},
	"no readable secret":     {Refused: errors.New("canary-vault"), Status: 403, Code: "DENIED", Kinds: denied},
	"429":                    {Fault: Status(429, "Retry-After", "3600"), Status: 429, Code: "TOOMANYREQUESTS", Kinds: rateLimited},
	"500":                    {Fault: Status(500), Status: 502, Code: "UNKNOWN", Kinds: unavailable},
	"502":                    {Fault: Status(502), Status: 502, Code: "UNKNOWN", Kinds: unavailable},
	"503":                    {Fault: Status(503, "Retry-After", "3600"), Status: 502, Code: "UNKNOWN", Kinds: unavailable},
	"504":                    {Fault: Status(504), Status: 502, Code: "UNKNOWN", Kinds: unavailable},
	"400":                    {Fault: Status(400), Status: 502, Code: "UNKNOWN", Kinds: unavailable},
	"down":                   {Down: true, Status: 502, Code: "UNKNOWN", Kinds: unavailable},
	"hangs up":               {Fault: pullthroughtest.Fault{CutAfter: new(int64(-1))}, Status: 502, Code: "UNKNOWN", Kinds: unavailable},
	"cut":                    {Fault: pullthroughtest.Fault{CutAfter: new(int64(100))}, Status: 502, Code: "UNKNOWN", Kinds: badContent},
	"short":                  {Fault: pullthroughtest.Fault{Truncate: 10}, Status: 502, Code: "UNKNOWN", Kinds: badContent},
	"short, close-delimited": {Fault: pullthroughtest.Fault{Truncate: 10, CloseDelimited: true}, Status: 502, Code: "UNKNOWN", Kinds: badContent},
	"wrong byte":             {Fault: pullthroughtest.Fault{Flip: new(int64(20))}, Status: 502, Code: "UNKNOWN", Kinds: badContent},
	"an HTML page": {
		Fault:  pullthroughtest.Fault{Body: []byte("<html>canary-page</html>"), Header: http.Header{"Content-Type": {"text/html"}}},
		Status: 502, Code: "UNKNOWN", Kinds: badContent,
	},
	"redirect to nowhere": {
		Fault:  pullthroughtest.Fault{Redirect: "http://127.0.0.1:1/{path}?X-Amz-Signature=canary-signature"},
		Status: 502, Code: "UNKNOWN", Kinds: unavailable,
	},
	"talkative error": {
		Fault: pullthroughtest.Fault{Status: 500, Body: []byte(
			`{"errors":[{"code":"UNKNOWN","message":"see https://inner.example/?sig=canary-inner"}]}`)},
		Status: 502, Code: "UNKNOWN", Kinds: unavailable,
	},
}

// Status is an answer with that status and headers, in pairs of name and value.
func Status(code int, header ...string) pullthroughtest.Fault {
	f := pullthroughtest.Fault{Status: code, Header: http.Header{}}
	for i := 0; i < len(header); i += 2 {
		f.Header.Set(header[i], header[i+1])
	}
	return f
}

// CheckFailure pulls the path of the image or of one of its blobs, which must fail so
// over HTTP and in Go, and say nothing of the upstream. match is what the fault is for.
func CheckFailure(t *testing.T, c Failure, img *pullthroughtest.Image, match, path string) {
	const user, password = "canary-robot", "canary-password"
	config := pullthroughtest.Config{Auth: pullthroughtest.Bearer, Users: map[string]string{user: password}, Service: "canary-service"}
	f := NewFace(t, config, func(p *pullthrough.Proxy) {
		OneTry(p)
		p.Credentials = func(context.Context, pullthrough.Repo, pullthrough.Rule) (pullthrough.Credential, error) {
			if c.Password != "" {
				return pullthrough.Credential{Username: user, AccessToken: c.Password}, c.Refused
			}
			return pullthrough.Credential{Username: user, AccessToken: password}, c.Refused
		}
	})
	f.Up.Push("a", "v1", img)
	f.Up.Reset()
	c.Fault.Match = match
	if c.Password == "" && c.Refused == nil {
		f.Up.Fault(c.Fault)
	}
	if c.Down {
		f.Up.Close()
	}

	r := f.Get(t, path)
	message := AssertOCI(t, r, c.Status, c.Code)
	if c.Message != "" {
		assert.Equal(t, c.Message, message)
	}
	if c.Status == http.StatusTooManyRequests {
		assert.Equal(t, "3600", r.Header.Get("Retry-After"))
	}
	assertDiscreet(t, f, r)
	assertAgrees(t, f, c, r, path)
	f.Settled(t)
	if c.Down {
		assert.Empty(t, f.Up.Log())
		return
	}
	for _, line := range f.Up.Log() {
		assert.True(t, strings.HasPrefix(line, strings.TrimSuffix(UpstreamGet(path, 0), " 0")) || strings.HasPrefix(line, "GET /token "), line)
	}
	assert.NotEmpty(t, f.Up.Log())
	assert.LessOrEqual(t, len(f.Up.Log()), 24, "two failed pulls cost no flood: %s", f.Up.Log())

	head := f.Ask(t, http.MethodHead, path)
	if c.Status < 500 { // a HEAD of a broken blob may find its size all the same
		assert.Equal(t, c.Status, head.StatusCode)
	}
	assert.Empty(t, head.Content)
	assertDiscreet(t, f, head)
}

// assertDiscreet checks that an answer says nothing of the upstream: no host,
// no URL, nothing secret, no word of its own.
func assertDiscreet(t *testing.T, f *Face, r Reply) {
	t.Helper()
	var wire bytes.Buffer
	assert.NoError(t, r.Header.Write(&wire))
	wire.Write(r.Content)
	said := strings.ToLower(wire.String())
	words := []string{"127.0.0.1", "http://", "https://", "canary", "inner.example", "/v2/", "bearer", f.Up.Host(), f.SpoolDir}
	for _, request := range f.Up.Requests() {
		if _, token, ok := strings.Cut(request.Header.Get("Authorization"), " "); ok {
			words = append(words, token)
		}
	}
	for _, word := range words {
		assert.NotContains(t, said, strings.ToLower(word))
	}
}

// assertAgrees checks that the Go API fails in the way that the wire did.
func assertAgrees(t *testing.T, f *Face, c Failure, r Reply, path string) {
	t.Helper()
	ref := path[strings.LastIndexByte(path, '/')+1:]
	var err error
	if strings.Contains(path, "/blobs/") {
		_, err = f.Blob(t.Context(), pullthrough.Request{Repo: Repo("a"), Ref: ref})
	} else {
		_, err = f.Manifest(t.Context(), pullthrough.Request{Repo: Repo("a"), Ref: ref})
	}
	require.Error(t, err)
	is := false
	for _, kind := range c.Kinds {
		is = is || errors.Is(err, kind)
	}
	assert.True(t, is, "%v is none of %v", err, c.Kinds)
	if e, ok := errors.AsType[*pullthrough.Error](err); assert.True(t, ok, "%T", err) {
		assert.Equal(t, Repo("a"), e.Repo)
		assert.Equal(t, ref, e.Ref)
		if c.Fault.Header.Get("Retry-After") != "" && c.Status == 429 {
			assert.InDelta(t, time.Hour, e.RetryAfter, float64(time.Minute))
		}
	}
	code, message := OCIError(t, r)
	gotStatus, gotCode, gotMessage := pullthrough.OCI(err)
	assert.Equal(t, r.StatusCode, gotStatus)
	assert.Equal(t, code, gotCode)
	assert.Equal(t, message, gotMessage)
	rec := httptest.NewRecorder()
	pullthrough.WriteError(rec, err)
	assert.Equal(t, r.StatusCode, rec.Code)
	assert.JSONEq(t, string(r.Content), rec.Body.String())
	for _, secret := range []string{"canary-robot:", "canary-password", "canary-signature"} {
		assert.NotContains(t, err.Error(), secret, "logs are read by many")
	}
}
