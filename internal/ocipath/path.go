// Package ocipath parses the paths of the OCI distribution API ("/v2/...")
// once, into a plain value.
//
// Everything behind it (rules, store keys, upstream URLs) is chosen from that
// value, never from the URL again: two readings of one path are how a request
// for one repository ends up in another.
package ocipath

import (
	"errors"
	"net/url"
	"strings"
)

// Kind says which resource of the API a path names.
type Kind int

const (
	Base      Kind = iota // /v2 and /v2/: hosts that run path.Clean turn one into the other
	Manifest              // /v2/<name>/manifests/<tag or digest>
	Blob                  // /v2/<name>/blobs/<digest>
	Referrers             // /v2/<name>/referrers/<digest>
	Tags                  // /v2/<name>/tags/list
	Catalog               // /v2/_catalog
	Upload                // /v2/<name>/blobs/uploads/ and /v2/<name>/blobs/uploads/<session>
)

var kindNames = [...]string{"base", "manifest", "blob", "referrers", "tags", "catalog", "upload"}

// String names the kind for logs and events.
func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return "unknown"
	}
	return kindNames[k]
}

// ErrNotRegistry says that a path is no path of the registry API. "/v2" is
// shared with other services (API Gateway's /v2/apis and /v2/tags/{arn}, SES's
// /v2/email/...), so such a request belongs to someone else and should reach
// them untouched.
var ErrNotRegistry = errors.New("ocipath: not a path of the registry API")

// Path is a path of the registry API. Its fields are inside the grammar if it
// came from Parse.
type Path struct {
	Kind Kind
	Name string // the repository; empty for Base and Catalog
	Ref  string // the tag, digest or upload session; empty where the kind has none
}

// String returns the canonical path: Parse of it gives p again. The fields are
// not checked, so it is for values that Parse returned or CheckName and CheckRef
// let through.
func (p Path) String() string {
	switch p.Kind {
	case Manifest:
		return "/v2/" + p.Name + "/manifests/" + p.Ref
	case Blob:
		return "/v2/" + p.Name + "/blobs/" + p.Ref
	case Referrers:
		return "/v2/" + p.Name + "/referrers/" + p.Ref
	case Tags:
		return "/v2/" + p.Name + "/tags/list"
	case Catalog:
		return "/v2/_catalog"
	case Upload:
		return "/v2/" + p.Name + "/blobs/uploads/" + p.Ref
	}
	return "/v2/"
}

// Parse reads the path of u. The error is ErrNotRegistry if the path has not the
// shape of a registry path, and an *Error if it has the shape but its name, tag
// or digest is outside the grammar; the name is judged first.
//
// The escaped path is read as it stands: %2f, %2e and doubly escaped bytes are
// characters no name or tag may contain, never structure. The one exception is
// the colon of a digest, which some clients send as %3A.
//
// A shape needs a component for the name. "/v2/manifests/x" and "/v2/tags/list"
// have none and are ErrNotRegistry; "/v2//manifests/x" has one, which is empty
// and therefore an *Error.
func Parse(u *url.URL) (Path, error) {
	rest, ok := strings.CutPrefix(u.EscapedPath(), "/v2")
	switch {
	case !ok:
		return Path{}, ErrNotRegistry
	case rest == "" || rest == "/":
		return Path{Kind: Base}, nil
	case rest == "/_catalog":
		return Path{Kind: Catalog}, nil
	case rest[0] != '/': // "/v2beta1/..."
		return Path{}, ErrNotRegistry
	}
	p, ok := shape(rest[1:])
	if !ok {
		return Path{}, ErrNotRegistry
	}
	if err := p.check(); err != nil {
		return Path{}, err
	}
	return p, nil
}

// shape cuts what stands behind "/v2/" into name and reference. It looks at the
// last components only: names may contain "manifests", "blobs" or "tags"
// themselves, so reading from the left would find the wrong one.
func shape(s string) (Path, bool) {
	head, last, _ := cutLast(s)
	name, word, ok := cutLast(head)
	if !ok {
		return Path{}, false
	}
	switch word {
	case "manifests":
		return Path{Manifest, name, unescapeColon(last)}, true
	case "blobs":
		return Path{Blob, name, unescapeColon(last)}, true
	case "referrers":
		return Path{Referrers, name, unescapeColon(last)}, true
	case "tags":
		return Path{Tags, name, ""}, last == "list"
	case "uploads":
		name, word, ok = cutLast(name)
		return Path{Upload, name, last}, ok && word == "blobs" && isSession(last)
	}
	return Path{}, false
}

// check judges the parts that shape found.
func (p Path) check() error {
	if err := CheckName(p.Name); err != nil {
		return err
	}
	switch p.Kind {
	case Manifest:
		return CheckRef(p.Ref)
	case Blob, Referrers:
		return checkDigest(p.Ref)
	}
	return nil
}

// cutLast cuts s around its last slash. Without one, all of s is tail.
func cutLast(s string) (head, tail string, ok bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return "", s, false
	}
	return s[:i], s[i+1:], true
}

// unescapeColon reads the first escape of ref if it stands for a colon. Any
// other escape stays and fails the grammar, and so does a second colon; %253A
// hence never becomes one.
func unescapeColon(ref string) string {
	i := strings.IndexByte(ref, '%')
	if i < 0 || i+3 > len(ref) || !strings.EqualFold(ref[i:i+3], "%3a") {
		return ref
	}
	return ref[:i] + ":" + ref[i+3:]
}

// isSession reports whether s can be an upload session, or the empty one that
// starts an upload. Sessions are the registry's own words, so the specification
// has no grammar for them; this one holds every id seen in practice, needs no
// escaping and keeps dot segments out. Other paths are left to their owner.
func isSession(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isTagByte(c) && c != '~' && c != '=' {
			return false
		}
	}
	return s != "." && s != ".."
}
