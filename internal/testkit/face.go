package testkit

import (
	"encoding/json"
	"io"
	"mime"
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

// RegistryHost is the name of a private registry as Amazon ECR spells it.
const (
	RegistryAccount = "123456789012"
	RegistryHost    = RegistryAccount + ".dkr.ecr.eu-west-1.amazonaws.com"
)

const (
	Hex64       = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // digits of a digest
	OctetStream = "application/octet-stream"                                         // the type of blobs
)

// Face is a world whose proxy can be asked over HTTP.
type Face struct {
	*World
	Server *httptest.Server
}

// NewFace returns a world as NewWorld does, on a server of its own.
func NewFace(t *testing.T, c pullthroughtest.Config, change func(*pullthrough.Proxy)) *Face {
	t.Helper()
	w := NewWorld(t, c, change)
	return &Face{World: w, Server: Serve(t, w.Proxy)}
}

// Reply is an answer whose body has been read to its end.
type Reply struct {
	*http.Response
	Content []byte
	Err     error // of reading the body
}

// Ask sends a request without a body, with headers in pairs of name and value.
func (f *Face) Ask(t *testing.T, method, path string, header ...string) Reply {
	t.Helper()
	return Send(t, f.Server, method, path, "", header...)
}

// Get is Ask with the method GET.
func (f *Face) Get(t *testing.T, path string, header ...string) Reply {
	t.Helper()
	return f.Ask(t, http.MethodGet, path, header...)
}

// Send sends a request and follows no redirects. The header Host is the
// request's Host.
func Send(t *testing.T, srv *httptest.Server, method, path, body string, header ...string) Reply {
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
	return ReadReply(t, resp)
}

// ReadReply reads the answer to its end.
func ReadReply(t *testing.T, resp *http.Response) Reply {
	t.Helper()
	content, err := io.ReadAll(resp.Body)
	assert.NoError(t, resp.Body.Close())
	return Reply{resp, content, err}
}

// AssertOCI checks that the answer is one error in the OCI distribution
// specification's JSON, and returns the message.
func AssertOCI(t *testing.T, r Reply, status int, code string) string {
	t.Helper()
	assert.Equal(t, status, r.StatusCode, "%s", r.Content)
	got, message := OCIError(t, r)
	assert.Equal(t, code, got, "%s", r.Content)
	return message
}

// OCIError reads the code and the message of an error answer.
func OCIError(t *testing.T, r Reply) (code, message string) {
	t.Helper()
	assert.NoError(t, r.Err)
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	assert.NoError(t, err)
	assert.Equal(t, "application/json", mediaType)
	assert.Equal(t, int64(len(r.Content)), r.ContentLength, "an error has its length")
	var doc struct {
		Errors []struct{ Code, Message string } `json:"errors"`
	}
	if !assert.NoError(t, json.Unmarshal(r.Content, &doc), "%s", r.Content) || !assert.Len(t, doc.Errors, 1, "%s", r.Content) {
		return "", ""
	}
	assert.NotEmpty(t, doc.Errors[0].Message)
	return doc.Errors[0].Code, doc.Errors[0].Message
}

// AssertContent checks the headers of an answer that has, or would have, a
// whole object as its body.
func AssertContent(t *testing.T, r Reply, d digest.Digest, mediaType string, size int) {
	t.Helper()
	assert.NoError(t, r.Err)
	assert.Equal(t, http.StatusOK, r.StatusCode, "%s", r.Header)
	assert.Equal(t, d.String(), r.Header.Get("Docker-Content-Digest"))
	assert.Equal(t, strconv.Itoa(size), r.Header.Get("Content-Length"))
	assert.Equal(t, mediaType, r.Header.Get("Content-Type"))
	assert.Equal(t, ETag(d), r.Header.Get("ETag"))
	assert.Equal(t, "registry/2.0", r.Header.Get("Docker-Distribution-Api-Version"))
	assert.Empty(t, r.TransferEncoding, "nothing is chunked")
}

// AssertSame is true if the bytes are, without printing megabytes if not.
func AssertSame(t *testing.T, want, got []byte) bool {
	t.Helper()
	return assert.Equal(t, len(want), len(got)) && assert.True(t, string(want) == string(got), "the bytes are not the ones asked for")
}

// ETag is the entity tag that the content of a digest has.
func ETag(d digest.Digest) string { return `"` + d.String() + `"` }

// ManifestPath is where the proxy has a manifest of an upstream repository.
func ManifestPath(name, ref string) string { return "/v2/" + Prefix + "/" + name + "/manifests/" + ref }

// BlobPath is where the proxy has a blob of an upstream repository.
func BlobPath(name string, d digest.Digest) string {
	return "/v2/" + Prefix + "/" + name + "/blobs/" + d.String()
}

// UpstreamGet is the line in the upstream's log for a request of a path made
// by ManifestPath or BlobPath.
func UpstreamGet(path string, status int) string {
	return "GET " + strings.Replace(path, "/"+Prefix+"/", "/", 1) + " " + strconv.Itoa(status)
}

// BlobContent is all of a blob.
func BlobContent(t *testing.T, b *pullthroughtest.Blob) []byte {
	t.Helper()
	content, err := io.ReadAll(b.Open())
	require.NoError(t, err)
	return content
}

// AssertManifest checks an answer that has the image's manifest, or would have it if
// method were GET.
func AssertManifest(t *testing.T, r Reply, method string, img *pullthroughtest.Image, d digest.Digest) {
	t.Helper()
	AssertContent(t, r, d, img.MediaType, len(img.Content))
	if method == http.MethodHead {
		assert.Empty(t, r.Content)
		return
	}
	AssertSame(t, img.Content, r.Content)
}
