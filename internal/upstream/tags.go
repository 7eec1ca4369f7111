package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

const (
	// MaxTags is how many tags a list may have: as many as Amazon ECR has images in a
	// repository.
	MaxTags = 100_000
	// maxTagPages is how many pages it may have; some registries have 50 tags on each.
	maxTagPages = 2_000
	// maxTagPage is how long a page may be. Registries without pages send all tags.
	maxTagPage = 16 << 20
	tagsAPage  = "1000" // more than that Amazon ECR refuses
)

// Tags returns the tags of the repository, page by page (OCI distribution spec, "Listing
// Tags"), in the order in which the registry has them. What is no tag by the
// specification's grammar is left out. The error for more than [MaxTags] Is [ErrTooLarge].
func (c *Client) Tags(ctx context.Context, t *Target) (tags []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, smallTimeout)
	defer cancel()
	page := object{method: http.MethodGet, kind: "tags", ref: "list", query: "n=" + tagsAPage, attempts: t.Options.attempts(Pull)}
	for range maxTagPages {
		if tags, page.query, err = c.addTags(ctx, t, page, tags); err != nil {
			return nil, err
		}
		if page.query == "" {
			return tags, nil
		}
	}
	return nil, t.fail(ErrTooLarge, fmt.Errorf("a list of tags of more than %d pages", maxTagPages))
}

// addTags adds one page to tags, and returns the query of the next one.
func (c *Client) addTags(ctx context.Context, t *Target, o object, tags []string) (all []string, next string, err error) {
	resp, err := c.get(ctx, t, o)
	if err != nil {
		return nil, "", err
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusOK {
		return nil, "", statusError(t, resp)
	}
	body, err := t.readUpTo(ctx, resp, maxTagPage)
	if err != nil {
		return nil, "", err
	}
	var document struct{ Tags []string }
	switch {
	case len(body) > maxTagPage:
		return nil, "", t.fail(ErrTooLarge, fmt.Errorf("a page of tags of more than %d bytes", maxTagPage))
	case json.Unmarshal(body, &document) != nil:
		return nil, "", t.fail(ErrUnavailable, errors.New("the list of tags is no JSON document with tags"))
	}
	for _, tag := range document.Tags {
		if ocipath.ValidTag(tag) {
			tags = append(tags, tag)
		}
	}
	if len(tags) > MaxTags {
		return nil, "", t.fail(ErrTooLarge, fmt.Errorf("a list of more than %d tags", MaxTags))
	}
	next, err = nextPage(resp)
	return tags, next, err
}
