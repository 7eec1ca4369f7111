package pullthrough_test

import (
	"bufio"
	"encoding/json"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough"
	"github.com/ecr-pullthrough/pullthrough/pullthroughtest"
)

// registryHost is the name of a private registry as Amazon ECR spells it.
const (
	registryAccount = "123456789012"
	registryHost    = registryAccount + ".dkr.ecr.eu-west-1.amazonaws.com"
)

// face is a world whose proxy can be asked over HTTP.
type face struct {
	*world
	srv *httptest.Server
}

func newFace(t *testing.T, c pullthroughtest.Config, change func(*pullthrough.Proxy)) *face {
	t.Helper()
	w := newWorld(t, c, change)
	return &face{world: w, srv: serve(t, w.Proxy)}
}

// reply is an answer whose body has been read to its end.
type reply struct {
	*http.Response
	content []byte
	err     error // of reading the body
}

// ask sends a request without a body, with headers in pairs of name and value.
func (f *face) ask(t *testing.T, method, path string, header ...string) reply {
	t.Helper()
	return send(t, f.srv, method, path, "", header...)
}

func (f *face) get(t *testing.T, path string, header ...string) reply {
	t.Helper()
	return f.ask(t, http.MethodGet, path, header...)
}

// send sends a request and follows no redirects. The header Host is the
// request's Host.
func send(t *testing.T, srv *httptest.Server, method, path, body string, header ...string) reply {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, strings.NewReader(body))
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
			continue
		}
		r.Header.Add(header[i], header[i+1])
	}
	resp, err := srv.Client().Transport.RoundTrip(r)
	require.NoError(t, err)
	return read(t, resp)
}

func read(t *testing.T, resp *http.Response) reply {
	t.Helper()
	content, err := io.ReadAll(resp.Body)
	assert.NoError(t, resp.Body.Close())
	return reply{resp, content, err}
}

// sendRaw writes a request line as it is, past what net/http's client would
// clean or refuse, and reads the one answer.
func sendRaw(t *testing.T, srv *httptest.Server, method, target, proto string) reply {
	t.Helper()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	require.NoError(t, err)
	defer func() { assert.NoError(t, conn.Close()) }()
	_, err = io.WriteString(conn, method+" "+target+" "+proto+"\r\nHost: "+registryHost+"\r\nConnection: close\r\n\r\n")
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	require.NoError(t, err)
	return read(t, resp)
}

// assertOCI checks that the answer is one error in the OCI distribution
// specification's JSON, and returns the message.
func assertOCI(t *testing.T, r reply, status int, code string) string {
	t.Helper()
	assert.Equal(t, status, r.StatusCode, "%s", r.content)
	got, message := ociError(t, r)
	assert.Equal(t, code, got, "%s", r.content)
	return message
}

// ociError reads the code and the message of an error answer.
func ociError(t *testing.T, r reply) (code, message string) {
	t.Helper()
	assert.NoError(t, r.err)
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	assert.NoError(t, err)
	assert.Equal(t, "application/json", mediaType)
	assert.Equal(t, int64(len(r.content)), r.ContentLength, "an error has its length")
	var doc struct {
		Errors []struct{ Code, Message string } `json:"errors"`
	}
	if !assert.NoError(t, json.Unmarshal(r.content, &doc), "%s", r.content) || !assert.Len(t, doc.Errors, 1, "%s", r.content) {
		return "", ""
	}
	assert.NotEmpty(t, doc.Errors[0].Message)
	return doc.Errors[0].Code, doc.Errors[0].Message
}

// assertContent checks the headers of an answer that has, or would have, a
// whole object as its body.
func assertContent(t *testing.T, r reply, d digest.Digest, mediaType string, size int) {
	t.Helper()
	assert.NoError(t, r.err)
	assert.Equal(t, http.StatusOK, r.StatusCode, "%s", r.Header)
	assert.Equal(t, d.String(), r.Header.Get("Docker-Content-Digest"))
	assert.Equal(t, strconv.Itoa(size), r.Header.Get("Content-Length"))
	assert.Equal(t, mediaType, r.Header.Get("Content-Type"))
	assert.Equal(t, etag(d), r.Header.Get("ETag"))
	assert.Equal(t, "registry/2.0", r.Header.Get("Docker-Distribution-Api-Version"))
	assert.Empty(t, r.TransferEncoding, "nothing is chunked")
}

// assertSame is true if the bytes are, without printing megabytes if not.
func assertSame(t *testing.T, want, got []byte) bool {
	t.Helper()
	return assert.Equal(t, len(want), len(got)) && assert.True(t, string(want) == string(got), "the bytes are not the ones asked for")
}

func etag(d digest.Digest) string { return `"` + d.String() + `"` }

func manifestPath(name, ref string) string { return "/v2/" + prefix + "/" + name + "/manifests/" + ref }

func blobPath(name string, d digest.Digest) string {
	return "/v2/" + prefix + "/" + name + "/blobs/" + d.String()
}

// upstreamGet is the line in the upstream's log for a request of a path made
// by manifestPath or blobPath.
func upstreamGet(path string, status int) string {
	return "GET " + strings.Replace(path, "/"+prefix+"/", "/", 1) + " " + strconv.Itoa(status)
}

func blobContent(t *testing.T, b *pullthroughtest.Blob) []byte {
	t.Helper()
	content, err := io.ReadAll(b.Open())
	require.NoError(t, err)
	return content
}
