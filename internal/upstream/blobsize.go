package upstream

import (
	"context"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/contentrange"
)

// BlobSize asks for the size of a blob by way of its first byte: there are
// registries that refuse every HEAD of a blob. Where the answer does not tell, HEAD may. The
// size is -1 where the registry has the blob and tells neither way.
func (c *Client) BlobSize(ctx context.Context, t *Target, d digest.Digest) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, smallTimeout)
	defer cancel()
	size, err := c.sizeByFirstByte(ctx, t, d)
	if err == nil && size < 0 {
		size = c.sizeByHead(ctx, t, d)
	}
	return size, err
}

func (c *Client) sizeByFirstByte(ctx context.Context, t *Target, d digest.Digest) (int64, error) {
	firstByte := http.Header{"Range": {"bytes=0-0"}}
	resp, err := c.get(ctx, t, object{method: http.MethodGet, kind: "blobs", ref: d.String(), header: firstByte, attempts: t.Options.attempts(Pull)})
	if err != nil {
		return 0, err
	}
	defer drain(resp)
	success := resp.StatusCode/100 == 2
	if success && isWebPage(resp) {
		return 0, t.fail(ErrUnavailable, ErrNoRegistry)
	}
	if size, ok := sizeIn(resp, d); ok {
		return size, nil
	}
	if success {
		return -1, nil
	}
	return 0, statusError(t, resp)
}

// sizeByHead is the size of a blob that is there; -1: the answer does not tell. ECR Public
// answers 401, which would cost us the token.
func (c *Client) sizeByHead(ctx context.Context, t *Target, d digest.Digest) int64 {
	if t.Base.Hostname() == "public.ecr.aws" {
		return -1
	}
	resp, err := c.get(ctx, t, object{method: http.MethodHead, kind: "blobs", ref: d.String(), attempts: t.Options.attempts(Check)})
	if err != nil {
		return -1
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusOK || isWebPage(resp) || resp.ContentLength == 0 && d != d.Algorithm().FromString("") {
		return -1
	}
	return resp.ContentLength
}

// sizeIn is the size of the blob d by the answer to a request for its first byte.
func sizeIn(resp *http.Response, d digest.Digest) (size int64, ok bool) {
	switch resp.StatusCode {
	case http.StatusOK: // the registry does not know Range
		return resp.ContentLength, resp.ContentLength >= 0
	case http.StatusPartialContent:
		first, last, total, ok := contentrange.Parse(resp.Header.Get("Content-Range"))
		return total, ok && first == 0 && last == 0 && total > 0
	case http.StatusRequestedRangeNotSatisfiable: // an empty blob has no first byte
		return 0, d == d.Algorithm().FromString("")
	}
	return 0, false
}

// isWebPage reports whether an answer is for people: from a login form, perhaps.
func isWebPage(resp *http.Response) bool {
	return strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html")
}

// isText reports whether resp is for people: a web page, or a line such as that of [http.NotFound].
func isText(resp *http.Response) bool {
	return isWebPage(resp) || strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain")
}
