package transcript_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/transcript"
)

const example = `# An example.

== challenge
> GET https://registry.example/v2/a/manifests/1
< 401
< WWW-Authenticate: Bearer realm="https://auth.example/token"
< Content-Type: text/html

<html>

== token
> POST https://auth.example/token
> Content-Type: application/x-www-form-urlencoded
> grant_type=refresh_token&refresh_token={{password}}
< 200

{"token":"{{token}}"}

== manifest
> GET https://registry.example/v2/a/manifests/1?ns=docker.io&x=a/b
> Authorization: Bearer {{token}}
> !Range
< 200
< Docker-Content-Digest: {{digest}}

{

}

> HEAD https://registry.example/v2/a/manifests/2
> Authorization: Basic me:{{password}}
< 200
< Content-Length: 1000

== cut
> GET https://registry.example/v2/a/blobs/1
< 200
< Content-Length: 10

begin
`

// failures keeps what a player finds wrong.
type failures struct {
	testing.TB
	found []string
}

func (f *failures) Errorf(format string, args ...any) {
	f.found = append(f.found, fmt.Sprintf(format, args...))
}
func (f *failures) Fatal(args ...any) { f.Fatalf("%v", args) }
func (f *failures) Fatalf(format string, args ...any) {
	f.Errorf(format, args...)
	panic(f)
}

// play returns a player of the example, with sections laid out.
func play(t *testing.T, sections ...string) (*transcript.Player, *failures) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "example.txt")
	require.NoError(t, os.WriteFile(file, []byte(example), 0o600))
	f := &failures{TB: t}
	p := transcript.New(f, file)
	p.Set("password", "canary")
	p.Set("digest", "sha256:{{token}}")
	p.Play(sections...)
	return p, f
}

// send sends a request: its method, URL and body in lines, then headers and values.
func send(t *testing.T, p *transcript.Player, request string, header ...string) (*http.Response, string, error) {
	t.Helper()
	line, body, _ := strings.Cut(request, "\n")
	method, url, _ := strings.Cut(line, " ")
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	resp, err := p.RoundTrip(r)
	require.NoError(t, err)
	content, err := io.ReadAll(resp.Body)
	return resp, string(content), err
}

const (
	askToken     = "POST https://auth.example/token\ngrant_type=refresh_token&refresh_token=canary"
	askManifest  = "GET https://registry.example/v2/a/manifests/1"
	askWithQuery = "GET https://registry.example/v2/a/manifests/1?x=a%2Fb&ns=docker.io"
	askHead      = "HEAD https://registry.example/v2/a/manifests/2"
	isForm       = "application/x-www-form-urlencoded"
)

func TestATranscriptIsPlayed(t *testing.T) {
	p, f := play(t, "challenge", "token", "manifest", "cut")
	resp, body, err := send(t, p, askManifest, "Accept", "*/*")
	require.NoError(t, err)
	assert.Equal(t, 401, resp.StatusCode)
	assert.Equal(t, `Bearer realm="https://auth.example/token"`, resp.Header.Get("Www-Authenticate"))
	assert.Equal(t, "<html>", body)

	_, body, err = send(t, p, askToken, "Content-Type", isForm)
	require.NoError(t, err)
	token, ok := strings.CutPrefix(body, `{"token":"`)
	require.True(t, ok, body)
	token = strings.TrimSuffix(token, `"}`)

	// Exchanges of a section come in any order.
	resp, body, err = send(t, p, askHead, "Authorization", "Basic bWU6Y2FuYXJ5")
	require.NoError(t, err)
	assert.EqualValues(t, 1000, resp.ContentLength)
	assert.Empty(t, body)
	resp, body, err = send(t, p, askWithQuery, "Authorization", "Bearer "+token)
	require.NoError(t, err)
	assert.Equal(t, "{\n\n}", body)
	assert.EqualValues(t, 4, resp.ContentLength)
	assert.Equal(t, "sha256:{{token}}", resp.Header.Get("Docker-Content-Digest"), "what the test says is taken as it is")

	_, body, err = send(t, p, "GET https://registry.example/v2/a/blobs/1")
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
	assert.Equal(t, "begin", body)

	p.Done()
	assert.Empty(t, f.found)
	require.Len(t, p.Requests(), 5)
	assert.Equal(t, "*/*", p.Requests()[0].Header.Get("Accept"))
}

func TestEachTokenIsANewOne(t *testing.T) {
	p, f := play(t, "token", "token")
	_, first, _ := send(t, p, askToken, "Content-Type", isForm)
	_, second, _ := send(t, p, askToken, "Content-Type", isForm)
	assert.NotEqual(t, first, second)
	assert.Empty(t, f.found)
}

func TestWhatThePlayerFinds(t *testing.T) {
	for name, c := range map[string]struct {
		section, request string
		header           []string
		status           int
		found            string
	}{
		"another path":         {"challenge", "GET https://registry.example/v2/b/manifests/1", nil, 501, `"challenge" is open`},
		"another host":         {"challenge", "GET https://evil.example/v2/a/manifests/1", nil, 501, "not in the transcript"},
		"plain http":           {"challenge", "GET http://registry.example/v2/a/manifests/1", nil, 501, "not in the transcript"},
		"another method":       {"challenge", "HEAD https://registry.example/v2/a/manifests/1", nil, 501, "not in the transcript"},
		"a query":              {"challenge", askManifest + "?x=y", nil, 501, "not in the transcript"},
		"a later section":      {"token", askManifest, nil, 501, "not in the transcript"},
		"a secret too early":   {"challenge", askManifest, []string{"Authorization", "Bearer x"}, 401, "Authorization is not in the transcript"},
		"a header of its own":  {"challenge", askManifest, []string{"X-Secret", "x"}, 401, "X-Secret is not in the transcript"},
		"another form":         {"token", strings.Replace(askToken, "canary", "other", 1), []string{"Content-Type", isForm}, 200, "the body is"},
		"a form that is none":  {"token", strings.Replace(askToken, "canary", "%zz", 1), []string{"Content-Type", isForm}, 200, "the body is"},
		"a header left out":    {"token", askToken, nil, 200, `Content-Type is [], not "application/x-www-form-urlencoded"`},
		"another password":     {"manifest", askHead, []string{"Authorization", "Basic eDp5"}, 200, "Authorization is"},
		"a header too many":    {"manifest", askWithQuery, []string{"Authorization", "Bearer token-1", "Range", "bytes=1-"}, 200, "Range is"},
		"a header that is two": {"manifest", askHead, []string{"Authorization", "Basic bWU6Y2FuYXJ5", "Authorization", "Bearer x"}, 200, "Authorization is"},
	} {
		t.Run(name, func(t *testing.T) {
			p, f := play(t)
			p.Set("token", "token-1")
			p.Play(c.section, "cut")
			resp, _, _ := send(t, p, c.request, c.header...)
			assert.Equal(t, c.status, resp.StatusCode)
			assert.Contains(t, strings.Join(f.found, "\n"), c.found)
		})
	}
}

func TestWhatIsNotAskedForIsFound(t *testing.T) {
	p, f := play(t, "challenge", "cut")
	_, _, _ = send(t, p, askManifest)
	_, _, _ = send(t, p, askManifest)
	p.Done()
	require.Len(t, f.found, 2)
	assert.Contains(t, f.found[0], "not in the transcript", "an answer is given once")
	assert.Contains(t, f.found[1], "nobody has asked for GET https://registry.example/v2/a/blobs/1")

	_, _, _ = send(t, p, askManifest)
	assert.Len(t, f.found, 3, "nothing is left")
}

func TestAContextThatHasEnded(t *testing.T) {
	p, _ := play(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://registry.example/", nil)
	require.NoError(t, err)
	_, err = p.RoundTrip(r)
	assert.ErrorIs(t, err, context.Canceled)
	assert.Empty(t, p.Requests())

	r.Body = io.NopCloser(brokenReader{})
	_, err = p.RoundTrip(r)
	assert.ErrorIs(t, err, errBroken)
}

var errBroken = errors.New("broken")

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errBroken }

func TestFilesThatAreNone(t *testing.T) {
	for name, text := range map[string]string{
		"text before the first section":   "hello\n",
		"a request without a section":     "> GET https://a.example/\n",
		"text before the first request":   "== a\nhello\n",
		"text between request and answer": "== a\n> GET https://a.example/\nhello\n",
		"a status that is no number":      "== a\n> GET https://a.example/\n< OK\n",
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "bad.txt")
			require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
			_, err := transcript.Read(file)
			assert.ErrorContains(t, err, "bad.txt:")
		})
	}
	_, err := transcript.Read(filepath.Join(t.TempDir(), "none.txt"))
	assert.ErrorIs(t, err, os.ErrNotExist)
}

func TestWhatTheTestForgot(t *testing.T) {
	_, f := play(t)
	assert.Panics(t, func() { transcript.New(f, "none.txt") })
	p, f := play(t)
	assert.Panics(t, func() { p.Play("curtain") })
	assert.Contains(t, f.found[0], `there is no section "curtain"`)

	_, f = play(t, "manifest")
	assert.Contains(t, f.found[0], "nobody has said what {{token}} is")
}
