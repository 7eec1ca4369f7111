package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ecr-pullthrough/pullthrough/internal/contentrange"
)

// noRangesFor is for how long a registry that has ignored a Range is not asked for a part
// again.
const noRangesFor = 10 * time.Minute

// ErrNoParts is the cause where a registry does not give parts of blobs.
var ErrNoParts = errors.New("the registry sends whole blobs only")

// extra is what a part is worth: one request, and none while the registry has asked us to
// wait.
var extra = attempts{requests: 1, extra: true}

// Part is the body of some bytes of a blob, from one answer.
type Part struct {
	io.ReadCloser
	total int64
}

// Total is the length of the whole blob.
func (p *Part) Total() int64 { return p.total }

// Part asks for the bytes of a blob from from to to, to excluded, on a connection beside
// that of a [Transfer], and not by HTTP/2, which would put both on one. The bytes begin at
// from; there may be fewer than asked for. It tries once. There is no If-Range: behind a
// redirect an entity tag is the edge's, and differs from edge to edge.
//
// An answer that is not this part is an error, and is not read: 200, another range, several
// ranges, an encoding.
func (c *Client) Part(ctx context.Context, t *Target, d digest.Digest, from, to int64) (*Part, error) {
	if c.sendsWhole(t) {
		return nil, t.fail(ErrUnavailable, ErrNoParts)
	}
	side := *t
	side.Options.HTTP1 = true
	header := http.Header{"Range": {rangeOf(from, to)}}
	resp, err := c.get(ctx, &side, object{method: http.MethodGet, kind: "blobs", ref: d.String(), header: header, attempts: extra})
	if err != nil {
		return nil, err
	}
	total, err := c.readPart(t, resp, from, to)
	if err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	return &Part{resp.Body, total}, nil
}

// sendsWhole reports whether the registry has ignored a Range a short while ago.
func (c *Client) sendsWhole(t *Target) bool {
	since, ok := c.noRanges.Get(t.ID)
	return ok && time.Since(since) < noRangesFor
}

func isEncoded(resp *http.Response) bool { return len(resp.Header.Values("Content-Encoding")) > 0 }

// readPart makes sure that an answer is the part asked for, and returns the blob's length.
func (c *Client) readPart(t *Target, resp *http.Response, from, to int64) (total int64, err error) {
	switch resp.StatusCode {
	case http.StatusPartialContent:
	case http.StatusOK:
		c.noRanges.Put(t.ID, time.Now())
		return 0, t.fail(ErrUnavailable, ErrNoParts)
	default:
		return 0, statusError(t, resp)
	}
	ranges := resp.Header.Values("Content-Range")
	if len(ranges) != 1 || isEncoded(resp) {
		return 0, t.fail(ErrUnavailable, fmt.Errorf("a part with Content-Range %.200q and Content-Encoding %.100q", ranges, resp.Header.Values("Content-Encoding")))
	}
	first, last, total, ok := contentrange.Parse(ranges[0])
	if !ok || first != from || last >= to {
		return 0, t.fail(ErrUnavailable, fmt.Errorf("asked for bytes %d to %d, got Content-Range %.100q", from, to-1, ranges[0]))
	}
	return total, nil
}
