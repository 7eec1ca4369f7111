package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/referrerlist"
)

// errNoAPI is the cause of an error of a registry that seems to have no referrers API. The
// Status is what told so.
var errNoAPI = errors.New("no referrers API")

// Referrers returns the whole list of what refers to subject, page by page (OCI
// distribution spec, "Listing Referrers"), in a minute at most. For a registry
// without referrers API the list is empty, unless [Options.ReferrersTag] says to
// look for the referrers tag. The specification has 404 for that. Some registries
// answer 400, 405, 406 or 501, and some 401 or 403 without a challenge, which counts where
// the target has no credential. That is a guess: sure is false then. The list is not
// verified, as nothing says which digest it should have. Descriptors without a digest that
// can be verified are left out. A list of more than 2 MiB comes without the annotations of
// the descriptors that are beyond that; the error for one of more than 4 MiB without them Is
// [ErrTooLarge].
func (c *Client) Referrers(ctx context.Context, t *Target, subject digest.Digest) (index *ocispec.Index, sure bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, smallTimeout)
	defer cancel()
	index, err = c.listReferrers(ctx, t, subject)
	if !errors.Is(err, errNoAPI) {
		return index, true, err
	}
	told, _ := errors.AsType[*Error](err)
	index, err = c.taggedReferrers(ctx, t, subject)
	return index, told.Status == http.StatusNotFound, err
}

// listReferrers reads the list page by page. The error Is errNoAPI where there is none.
func (c *Client) listReferrers(ctx context.Context, t *Target, subject digest.Digest) (*ocispec.Index, error) {
	var all referrerlist.List
	accept := http.Header{"Accept": {ocispec.MediaTypeImageIndex}}
	page := object{method: http.MethodGet, kind: "referrers", ref: subject.String(), header: accept, attempts: t.Options.attempts(Pull)}
	for range referrerlist.MaxPages {
		next, err := c.addPage(ctx, t, page, &all)
		if err != nil {
			return nil, err
		}
		if next == "" {
			return all.Index(), nil
		}
		page.query = next
	}
	return nil, t.fail(ErrTooLarge, fmt.Errorf("a list of referrers of more than %d pages", referrerlist.MaxPages))
}

// addPage adds one page to all, and returns the query of the next one.
func (c *Client) addPage(ctx context.Context, t *Target, o object, all *referrerlist.List) (next string, err error) {
	resp, err := c.get(ctx, t, o)
	if err != nil {
		return "", err
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusOK {
		e := statusError(t, resp)
		if o.query == "" && c.hasNoReferrersAPI(ctx, t, resp) {
			e.Err = errNoAPI
		}
		return "", e
	}
	body, err := t.readUpTo(ctx, resp, referrerlist.MaxBytes)
	if err != nil {
		return "", err
	}
	if err := all.Add(body); err != nil {
		return "", t.failList(err)
	}
	return nextPage(resp)
}

// hasNoReferrersAPI reports whether the answer to the first page says so. To a target with a
// credential a refusal is one.
func (c *Client) hasNoReferrersAPI(ctx context.Context, t *Target, resp *http.Response) bool {
	switch resp.StatusCode {
	case http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented:
		return true
	case http.StatusUnauthorized, http.StatusForbidden:
		if len(resp.Header.Values("WWW-Authenticate")) > 0 {
			return false
		}
		cred, err := c.auth.servers.callbacks.askCredential(ctx, t)
		return err == nil && cred.isAnonymous()
	}
	return false
}

func (t *Target) failList(err error) error {
	if errors.Is(err, referrerlist.ErrTooLong) {
		return t.fail(ErrTooLarge, err)
	}
	return t.fail(ErrUnavailable, err)
}

// nextPage is the query of the page that the Link header names; "": there is none. The
// registry must not send the token of this repository elsewhere.
func nextPage(resp *http.Response) (string, error) {
	at := resp.Request.URL
	to, err := referrerlist.Next(at, resp.Header)
	if err == nil && to != nil && origin(to) != origin(at) {
		err = referrerlist.ErrNoPage
	}
	switch {
	case err != nil:
		return "", &Error{Kind: ErrUnavailable, Host: at.Host, Err: err}
	case to == nil:
		return "", nil
	}
	return to.RawQuery, nil
}

// taggedReferrers is the list of a registry without referrers API: if the options
// say so, the index under the subject's referrers tag (OCI distribution spec,
// "Referrers Tag Schema"), else an empty one. The tag may lead to something else: to an
// image, or, where a client has made a tag of each digest, to the subject itself.
func (c *Client) taggedReferrers(ctx context.Context, t *Target, subject digest.Digest) (*ocispec.Index, error) {
	if !t.Options.ReferrersTag {
		return referrerlist.Empty(), nil
	}
	m, err := c.Manifest(ctx, t, strings.ReplaceAll(subject.String(), ":", "-"), Pull)
	if errors.Is(err, ErrNotFound) {
		return referrerlist.Empty(), nil
	}
	if err != nil {
		return nil, err
	}
	if m.Descriptor.MediaType != ocispec.MediaTypeImageIndex || subject.Algorithm().FromBytes(m.Content) == subject {
		return referrerlist.Empty(), nil
	}
	var all referrerlist.List
	if err := all.Add(m.Content); err != nil {
		return nil, t.failList(err)
	}
	return all.Index(), nil
}
