// Package referrerlist reads lists of referrers (OCI distribution specification, "Listing
// Referrers"). What is in a list is the choice of the registry that sends it, and the
// whole of it is in memory, so lists are bounded.
package referrerlist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ecr-pullthrough/pullthrough/internal/manifest"
	"github.com/ecr-pullthrough/pullthrough/internal/ocipath"
	"github.com/ecr-pullthrough/pullthrough/internal/weblink"
)

const (
	// MaxPages is how many pages a list may have.
	MaxPages = 100
	// MaxBytes is how long a page may be, and how long a whole list may be, encoded. More
	// than that no client reads.
	MaxBytes       = manifest.MaxSize
	maxDescriptors = 10_000
)

var (
	// ErrTooLong is about a list of more than 10,000 descriptors or [MaxBytes].
	ErrTooLong = fmt.Errorf("a list of more than %d referrers or %d bytes", maxDescriptors, MaxBytes)
	// ErrNoPage is about a link to a next page that is none of the same list.
	ErrNoPage  = errors.New("the next page of the list is not part of it")
	errNoIndex = errors.New("the list of referrers is no index")
)

// Empty returns a list of no referrers.
func Empty() *ocispec.Index { return indexOf(nil) }

func indexOf(all []ocispec.Descriptor) *ocispec.Index {
	if all == nil {
		all = []ocispec.Descriptor{} // null is no list
	}
	return &ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: all}
}

// OfType returns the part of a list that has the artifact type; "" is any.
func OfType(index *ocispec.Index, artifactType string) *ocispec.Index {
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

// Merge returns one list of what is in any of them, in their order, with one entry for
// each digest: the first one. The error Is [ErrTooLong].
func Merge(lists ...*ocispec.Index) (*ocispec.Index, error) {
	merged, seen := new(List), map[digest.Digest]bool{}
	for _, list := range lists {
		for _, d := range list.Manifests {
			if seen[d.Digest] {
				continue
			}
			seen[d.Digest] = true
			if err := merged.addDescriptor(d); err != nil {
				return nil, err
			}
		}
	}
	return merged.Index(), nil
}

// Next returns where the page is after the one at that URL, whose answer has the header h;
// nil: there is none. It must be another page of the same list. Whether it may be at
// another origin is the caller's to decide.
func Next(at *url.URL, h http.Header) (*url.URL, error) {
	target, ok := weblink.Find(h.Values("Link"), "next")
	if !ok {
		return nil, nil
	}
	to, err := at.Parse(target)
	if err != nil || to.Path != at.Path || to.User != nil || to.RawQuery == "" || to.RawQuery == at.RawQuery {
		return nil, ErrNoPage
	}
	return to, nil
}

// List is a list that grows page by page. The zero List is empty.
type List struct {
	all  []ocispec.Descriptor
	size int // in bytes, about
}

// Index returns the list.
func (l *List) Index() *ocispec.Index { return indexOf(l.all) }

// Add reads one page, one descriptor at a time: a page of 4 MiB could have a million.
// Descriptors without a digest that can be verified are left out. The error Is [ErrTooLong]
// where the list gets too long, else the page is no index. After an error the list is of no
// use.
func (l *List) Add(page []byte) error {
	dec := json.NewDecoder(bytes.NewReader(page))
	if t, err := dec.Token(); len(page) > MaxBytes || err != nil || t != json.Delim('{') {
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

func (l *List) addMember(dec *json.Decoder, key json.Token) error {
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

func (l *List) addAll(dec *json.Decoder) error {
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
func (l *List) addDescriptor(d ocispec.Descriptor) error {
	if !ocipath.ValidDigest(d.Digest.String()) || d.Size < 0 {
		return nil
	}
	d.URLs, d.Data = nil, nil
	size := sizeOf(d)
	if l.size+size > MaxBytes/2 { // the other half is for descriptors alone
		d.Annotations = nil
		size = sizeOf(d)
	}
	if l.size+size > MaxBytes || len(l.all) == maxDescriptors {
		return ErrTooLong
	}
	l.size += size
	l.all = append(l.all, d)
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
