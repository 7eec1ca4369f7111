package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

// A list of referrers ends after so many pages and descriptors.
const (
	maxReferrerPages = 100
	maxReferrers     = 10_000
)

// EmptyIndex returns a list of no referrers.
func EmptyIndex() *ocispec.Index {
	return &ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{},
	}
}

// Referrers returns the whole list of what refers to subject, page by page (OCI
// distribution spec, "Listing Referrers"), in a minute at most. For a registry
// without referrers API the list is empty, unless [Options.ReferrersTag] says to
// look for the referrers tag. The list is not verified, as nothing says which digest
// it should have. Descriptors without a digest that can be verified are left out.
func (c *Client) Referrers(ctx context.Context, t *Target, subject digest.Digest) (*ocispec.Index, error) {
	ctx, cancel := context.WithTimeout(ctx, smallTimeout)
	defer cancel()
	all := EmptyIndex()
	accept := http.Header{"Accept": {ocispec.MediaTypeImageIndex}}
	page := object{method: http.MethodGet, kind: "referrers", ref: subject.String(), header: accept, attempts: t.Options.attempts(Pull)}
	for range maxReferrerPages {
		next, err := c.addPage(ctx, t, page, all)
		if errors.Is(err, ErrNotFound) && page.query == "" {
			return c.taggedReferrers(ctx, t, subject)
		}
		if err != nil || next == "" {
			return all, err
		}
		page.query = next
	}
	return nil, t.fail(ErrTooLarge, fmt.Errorf("a list of referrers of more than %d pages", maxReferrerPages))
}

// addPage adds one page to all, and returns the query of the next one.
func (c *Client) addPage(ctx context.Context, t *Target, o object, all *ocispec.Index) (next string, err error) {
	resp, err := c.get(ctx, t, o)
	if err != nil {
		return "", err
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusOK {
		return "", statusError(t, resp)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, manifest.MaxSize+1))
	if err != nil {
		return "", t.fail(ErrUnavailable, fmt.Errorf("%w: %w", errCut, redact(ctx, err)))
	}
	if err := addReferrers(all, body); err != nil {
		return "", t.fail(ErrUnavailable, err)
	}
	return nextPage(resp)
}

// addReferrers reads one page. Descriptors that cannot be verified are left out,
// and so is what a descriptor says beside the content: URLs and embedded data.
func addReferrers(all *ocispec.Index, body []byte) error {
	var page ocispec.Index
	if len(body) > manifest.MaxSize || json.Unmarshal(body, &page) != nil || page.MediaType != "" && page.MediaType != ocispec.MediaTypeImageIndex {
		return errors.New("the list of referrers is no index")
	}
	for _, d := range page.Manifests {
		if !ocipath.ValidDigest(d.Digest.String()) || d.Size < 0 {
			continue
		}
		if len(all.Manifests) == maxReferrers {
			return fmt.Errorf("a list of more than %d referrers", maxReferrers)
		}
		d.URLs, d.Data = nil, nil
		all.Manifests = append(all.Manifests, d)
	}
	return nil
}

// nextPage is the query of the page that the Link header names (RFC 8288); "":
// there is none. It must be another page of the same list: the registry must not
// send the token of this repository elsewhere.
func nextPage(resp *http.Response) (string, error) {
	link := resp.Header.Get("Link")
	target, params, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">")
	if link == "" || !ok || !strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=next") {
		return "", nil
	}
	at := resp.Request.URL
	to, err := at.Parse(target)
	if err != nil || origin(to) != origin(at) || to.Path != at.Path || to.User != nil || to.RawQuery == "" || to.RawQuery == at.RawQuery {
		return "", &Error{Kind: ErrUnavailable, Host: at.Host, Err: errors.New("the next page of the list is not part of it")}
	}
	return to.RawQuery, nil
}

// taggedReferrers is the list of a registry without referrers API: if the options
// say so, the index under the subject's referrers tag (OCI distribution spec,
// "Referrers Tag Schema"), else an empty one.
func (c *Client) taggedReferrers(ctx context.Context, t *Target, subject digest.Digest) (*ocispec.Index, error) {
	if !t.Options.ReferrersTag {
		return EmptyIndex(), nil
	}
	m, err := c.Manifest(ctx, t, strings.ReplaceAll(subject.String(), ":", "-"), Pull)
	if errors.Is(err, ErrNotFound) {
		return EmptyIndex(), nil
	}
	if err != nil {
		return nil, err
	}
	all := EmptyIndex()
	if err := addReferrers(all, m.Content); err != nil {
		return nil, t.fail(ErrUnavailable, err)
	}
	return all, nil
}
