package upstream

import (
	"bytes"
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

// A list of referrers ends after so many pages, descriptors and bytes. What is in a list
// is upstream's choice, and the whole of it is in memory.
const (
	maxReferrerPages = 100
	maxReferrers     = 10_000
	maxReferrerBytes = manifest.MaxSize // more than that no client reads
)

var (
	errNoIndex       = errors.New("the list of referrers is no index")
	errManyReferrers = fmt.Errorf("a list of more than %d referrers or %d bytes", maxReferrers, maxReferrerBytes)
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
// it should have. Descriptors without a digest that can be verified are left out. A list
// of more than 2 MiB comes without the annotations of the descriptors that are beyond
// that; the error for one of more than 4 MiB without them Is [ErrTooLarge].
func (c *Client) Referrers(ctx context.Context, t *Target, subject digest.Digest) (*ocispec.Index, error) {
	ctx, cancel := context.WithTimeout(ctx, smallTimeout)
	defer cancel()
	all := &referrerList{index: EmptyIndex()}
	accept := http.Header{"Accept": {ocispec.MediaTypeImageIndex}}
	page := object{method: http.MethodGet, kind: "referrers", ref: subject.String(), header: accept, attempts: t.Options.attempts(Pull)}
	for range maxReferrerPages {
		next, err := c.addPage(ctx, t, page, all)
		if errors.Is(err, ErrNotFound) && page.query == "" {
			return c.taggedReferrers(ctx, t, subject)
		}
		if err != nil {
			return nil, err
		}
		if next == "" {
			return all.index, nil
		}
		page.query = next
	}
	return nil, t.fail(ErrTooLarge, fmt.Errorf("a list of referrers of more than %d pages", maxReferrerPages))
}

// addPage adds one page to all, and returns the query of the next one.
func (c *Client) addPage(ctx context.Context, t *Target, o object, all *referrerList) (next string, err error) {
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
	if err := all.add(body); err != nil {
		return "", t.failList(err)
	}
	return nextPage(resp)
}

func (t *Target) failList(err error) error {
	if errors.Is(err, errManyReferrers) {
		return t.fail(ErrTooLarge, err)
	}
	return t.fail(ErrUnavailable, err)
}

// referrerList is a list that grows page by page.
type referrerList struct {
	index *ocispec.Index
	size  int // in bytes, about
}

// add reads one page, one descriptor at a time: a page of 4 MiB could have a million.
func (l *referrerList) add(page []byte) error {
	dec := json.NewDecoder(bytes.NewReader(page))
	if t, err := dec.Token(); len(page) > manifest.MaxSize || err != nil || t != json.Delim('{') {
		return errNoIndex
	}
	for dec.More() {
		key, err := dec.Token()
		if err == nil {
			err = l.addMember(dec, key)
		}
		if err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return errNoIndex
	}
	return nil
}

func (l *referrerList) addMember(dec *json.Decoder, key json.Token) error {
	switch key {
	case "manifests":
		return l.addAll(dec)
	case "mediaType":
		var mediaType string
		if dec.Decode(&mediaType) != nil || mediaType != "" && mediaType != ocispec.MediaTypeImageIndex {
			return errNoIndex
		}
		return nil
	}
	var skip json.RawMessage
	if dec.Decode(&skip) != nil {
		return errNoIndex
	}
	return nil
}

func (l *referrerList) addAll(dec *json.Decoder) error {
	t, err := dec.Token()
	switch {
	case err == nil && t == nil: // null
		return nil
	case err != nil || t != json.Delim('['):
		return errNoIndex
	}
	for dec.More() {
		var d ocispec.Descriptor
		if dec.Decode(&d) != nil {
			return errNoIndex
		}
		if err := l.addDescriptor(d); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return errNoIndex
	}
	return nil
}

// addDescriptor leaves out a descriptor that cannot be verified, and what a descriptor
// says beside the content: URLs and embedded data.
func (l *referrerList) addDescriptor(d ocispec.Descriptor) error {
	if !ocipath.ValidDigest(d.Digest.String()) || d.Size < 0 {
		return nil
	}
	d.URLs, d.Data = nil, nil
	size := sizeOf(d)
	if l.size+size > maxReferrerBytes/2 { // the other half is for descriptors alone
		d.Annotations = nil
		size = sizeOf(d)
	}
	if l.size+size > maxReferrerBytes || len(l.index.Manifests) == maxReferrers {
		return errManyReferrers
	}
	l.size += size
	l.index.Manifests = append(l.index.Manifests, d)
	return nil
}

// sizeOf is about how long d is, encoded.
func sizeOf(d ocispec.Descriptor) int {
	const names = 64 // of the members, with all that is between them
	size := names + len(d.MediaType) + len(d.Digest) + len(d.ArtifactType)
	for key, value := range d.Annotations {
		size += len(key) + len(value) + len(`"":"",`)
	}
	if p := d.Platform; p != nil {
		size += names + len(p.Architecture) + len(p.OS) + len(p.OSVersion) + len(p.Variant)
		for _, feature := range p.OSFeatures {
			size += len(feature) + len(`"",`)
		}
	}
	return size
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
	all := &referrerList{index: EmptyIndex()}
	if err := all.add(m.Content); err != nil {
		return nil, t.failList(err)
	}
	return all.index, nil
}
