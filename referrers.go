package pullthrough

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/flight"
	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
)

const (
	// An upstream's list of referrers ends after so many pages and descriptors.
	maxReferrerPages = 100
	maxReferrers     = 10_000
	// In memory there are so many lists at most, each no longer than that.
	maxLists     = 1024
	maxListBytes = 64 << 10
)

// referrerList is what is known of a subject's referrers.
type referrerList struct {
	index   *ocispec.Index
	checked time.Time
}

type referrersCall = flight.Call[objectKey, *ocispec.Index]

// Referrers returns the list of what refers to the manifest r.Ref, a digest:
// signatures, SBOMs and the like (OCI distribution spec, "Listing Referrers";
// ListImageReferrers in Amazon ECR). artifactType, if not "", picks those of one
// type. A list is asked of upstream, kept, and asked for again when it is older
// than [Policy.ReferrersTTL]; when upstream fails a known list is returned. The
// manifests in it are not fetched. A subject that nobody knows has an empty list.
// Errors are as for [Proxy.Manifest]; where no rule covers the repository the
// error Is [ErrNoRule].
func (p *Proxy) Referrers(ctx context.Context, r Request, artifactType string) (*ocispec.Index, error) {
	start := p.startOf()
	index, source, err := p.referrers(ctx, r)
	err = at(ctx, err, r.Repo, r.Ref)
	if p.OnEvent != nil {
		p.tellRequest(ctx, EventReferrers, r, ocispec.Descriptor{}, source, start, err)
	}
	if err != nil {
		return nil, err
	}
	return ofType(index, artifactType), nil
}

func (p *Proxy) referrers(ctx context.Context, r Request) (*ocispec.Index, Source, error) {
	if err := p.admit(ctx, r); err != nil {
		return nil, 0, err
	}
	subject := digest.Digest(r.Ref)
	if !validDigest(subject) {
		return nil, 0, invalid(r.Repo, r.Ref, &ocipath.Error{Part: ocipath.Digest, Value: r.Ref})
	}
	rt, err := p.route(ctx, r.Repo)
	if err != nil {
		return nil, 0, err
	}
	known := p.knownReferrers(ctx, rt, subject)
	if known.index != nil && !rt.policy.referrersDue(known, p.now()) {
		return known.index, SourceHit, nil
	}
	index, shared, err := p.state().referrers.Do(ctx, rt.key(r.Ref), func(call *referrersCall) (*ocispec.Index, error) {
		return p.fetchReferrers(call.Context(), rt, subject)
	})
	if err != nil && known.index != nil && ctx.Err() == nil {
		p.log().Warn("serving a list of referrers that could not be checked", "repository", rt.repo.Name, "subject", r.Ref, "err", err)
		return known.index, SourceStale, nil
	}
	if shared {
		return index, SourceShared, rt.masked(err)
	}
	return index, SourceFill, rt.masked(err)
}

func (pol Policy) referrersDue(known referrerList, now time.Time) bool {
	return !pol.Offline && expired(pol.ReferrersTTL, defaultReferrersTTL, known.checked, now)
}

// knownReferrers is the list that the Store has, or our memory.
func (p *Proxy) knownReferrers(ctx context.Context, rt *route, subject digest.Digest) (known referrerList) {
	store, ok := p.Store.(ReferrerStore)
	if !ok {
		known, _ = p.state().lists.Get(rt.key(subject.String()))
		return known
	}
	known, err := found(ctx, p, "Store.Referrers", func(ctx context.Context) (referrerList, error) {
		index, checked, err := store.Referrers(ctx, rt.repo, subject)
		if err == nil && index == nil {
			err = errors.New("no list and no error")
		}
		return referrerList{index, checked}, err
	})
	switch {
	case err == nil:
		return known
	case !errors.Is(err, fs.ErrNotExist):
		p.heed(ctx, rt.repo, subject.String(), err)
	}
	return referrerList{}
}

// fetchReferrers runs in the flight.
func (p *Proxy) fetchReferrers(ctx context.Context, rt *route, subject digest.Digest) (*ocispec.Index, error) {
	ctx, trace := withTrace(ctx)
	start := p.now()
	if known := p.knownReferrers(ctx, rt, subject); known.index != nil && !rt.policy.referrersDue(known, start) {
		return known.index, nil
	}
	index, err := p.state().upstream.referrers(ctx, rt, subject)
	if err == nil && p.unchanged(ctx, rt) == nil {
		p.keepReferrers(ctx, rt, subject, referrerList{index, start})
	}
	p.tellFetch(ctx, rt, subject.String(), Event{Object: EventReferrers, Source: SourceFill}, trace, start, err)
	return index, err
}

func (p *Proxy) keepReferrers(ctx context.Context, rt *route, subject digest.Digest, list referrerList) {
	store, ok := p.Store.(ReferrerStore)
	if !ok {
		if b, err := json.Marshal(list.index); err == nil && len(b) <= maxListBytes {
			p.state().lists.Put(rt.key(subject.String()), list)
		}
		return
	}
	err := p.bounded(ctx, "Store.PutReferrers", func(ctx context.Context) error {
		return store.PutReferrers(ctx, rt.repo, subject, list.index, list.checked)
	})
	if err != nil {
		p.storeFailed(ctx, rt.repo, subject.String(), err)
	}
}

// ofType returns the part of a list that has the artifact type.
func ofType(index *ocispec.Index, artifactType string) *ocispec.Index {
	if artifactType == "" {
		return index
	}
	part := *index
	part.Manifests = []ocispec.Descriptor{}
	for _, d := range index.Manifests {
		if d.ArtifactType == artifactType {
			part.Manifests = append(part.Manifests, d)
		}
	}
	return &part
}

// referrers asks upstream for the whole list, page by page.
func (u *upstream) referrers(ctx context.Context, rt *route, subject digest.Digest) (*ocispec.Index, error) {
	ctx, cancel := context.WithTimeout(ctx, smallTimeout)
	defer cancel()
	all := emptyIndex()
	page := question{http.MethodGet, "referrers", subject.String(), http.Header{"Accept": {ocispec.MediaTypeImageIndex}}, rt.policy.effort(), ""}
	for range maxReferrerPages {
		next, err := u.referrersPage(ctx, rt, page, all)
		if errors.Is(err, ErrNotFound) && page.query == "" {
			return u.taggedReferrers(ctx, rt, subject)
		}
		if err != nil || next == "" {
			return all, err
		}
		page.query = next
	}
	return nil, rt.error(ErrTooLarge, fmt.Errorf("a list of referrers of more than %d pages", maxReferrerPages))
}

// referrersPage adds one page to all, and returns the query of the next one.
func (u *upstream) referrersPage(ctx context.Context, rt *route, q question, all *ocispec.Index) (next string, err error) {
	resp, err := u.get(ctx, rt, q)
	if err != nil {
		return "", err
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusOK {
		return "", statusError(rt, resp)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, manifest.MaxSize+1))
	if err != nil {
		return "", rt.error(ErrUnavailable, fmt.Errorf("%w: %w", errCut, redacted(err)))
	}
	if err := addReferrers(all, body); err != nil {
		return "", rt.error(ErrUnavailable, err)
	}
	return nextPage(resp)
}

// addReferrers reads one page. Descriptors that cannot be verified are left out.
func addReferrers(all *ocispec.Index, body []byte) error {
	var page ocispec.Index
	if len(body) > manifest.MaxSize || json.Unmarshal(body, &page) != nil || page.MediaType != "" && page.MediaType != ocispec.MediaTypeImageIndex {
		return errors.New("the list of referrers is no index")
	}
	for _, d := range page.Manifests {
		if !validDigest(d.Digest) || d.Size < 0 {
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

// nextPage is the query of the page that the Link header names (RFC 8288; OCI
// distribution spec, "Listing Referrers"). It must be another page of the same
// list: upstream does not get to send us elsewhere.
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

// taggedReferrers is the list of an upstream without referrers API: where the
// rule wants it, the index under the subject's referrers tag, else an empty one.
func (u *upstream) taggedReferrers(ctx context.Context, rt *route, subject digest.Digest) (*ocispec.Index, error) {
	if !rt.policy.ReferrersTag {
		return emptyIndex(), nil
	}
	m, _, err := u.manifest(ctx, rt, strings.ReplaceAll(subject.String(), ":", "-"), rt.policy.effort())
	if errors.Is(err, ErrNotFound) {
		return emptyIndex(), nil
	}
	if err != nil {
		return nil, err
	}
	all := emptyIndex()
	if err := addReferrers(all, m.Content); err != nil {
		return nil, rt.error(ErrUnavailable, err)
	}
	return all, nil
}

func emptyIndex() *ocispec.Index {
	return &ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{},
	}
}
