// Package ocipath parses the paths of the OCI distribution API ("/v2/...") into a plain
// value.
//
// A path is parsed once. Rules, keys of the Store and upstream URLs are all derived from
// that value and never from the URL again. If two places parsed the path differently, a
// request for one repository could reach another.
package ocipath

import (
	"errors"
	"net/url"
	"path"
	"strings"
	"sync/atomic"

	"github.com/ecr-pullthrough/pullthrough/internal/recent"
)

// Kind says which resource of the API a path names.
type Kind int

const (
	Base      Kind = iota // /v2/, and /v2 because hosts that use path.Clean drop the slash
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

// ErrNotRegistry says that a path is not a path of the registry API. Other services use
// "/v2" too (API Gateway's /v2/apis and /v2/tags/{arn}, SES's /v2/email/...), so such a
// request should be passed on unchanged.
var ErrNotRegistry = errors.New("ocipath: not a path of the registry API")

// Path is a path of the registry API. The fields of a Path that Parse returns are valid.
type Path struct {
	Kind Kind
	Name string // the repository; empty for Base and Catalog
	Ref  string // the tag, digest or upload session; empty if the kind has none
}

// String returns the canonical path. Parse of it returns p. String does not check the
// fields: they must come from Parse or have passed CheckName and CheckRef.
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

// parsed are paths that Parse has parsed. Only what has no escape gets there, and they are
// compared as they were written. Pulls ask for the same few again and again.
var parsed = recent.New[written]()

// maxPath is longer than a valid path of a manifest or a blob.
const maxPath = 512

// written is a valid path of a manifest or a blob, as it was written.
type written struct {
	path  string
	value Path
}

// Parse is [Split] and then [Path.Check]: what it returns without an error is valid.
func Parse(u *url.URL) (Path, error) {
	if u.RawPath == "" && isAlone(u) && len(u.Path) <= maxPath {
		slot := parsed.At(u.Path)
		if w := slot.Load(); w != nil && w.path == u.Path {
			return w.value, nil
		}
		if p, ok := parsePlain(u.Path, slot); ok {
			return p, nil
		}
	}
	p, err := Split(u)
	if err == nil {
		err = p.Check()
	}
	if err != nil {
		return Path{}, err
	}
	return p, nil
}

// parsePlain parses a path that is written without an escape, as all that the grammar allows
// can be, and remembers that of content.
func parsePlain(s string, slot *atomic.Pointer[written]) (Path, bool) {
	if strings.IndexByte(s, '%') >= 0 {
		return Path{}, false
	}
	p, ok := split(s)
	if !ok || p.Check() != nil {
		return Path{}, false
	}
	if p.Kind == Manifest || p.Kind == Blob {
		w := &written{path: strings.Clone(s)} // it is not to keep more in memory than itself
		w.value, _ = split(w.path)
		slot.Store(w)
		return w.value, true
	}
	return p, true
}

// Split finds the parts of the path of u, and does not check them. The error is
// ErrNotRegistry if the path does not have the shape of a registry path.
//
// Split does not unescape the path. The one exception is the colon of a digest, which some
// clients send as %3A. A path with any other escape, or with an empty component, "." or
// "..", is an *Error if it is, or could be read as, a path of the registry: a router that
// unescapes or cleans paths would read another name than we do.
//
// The shape includes a component for the name. "/v2/manifests/x" and "/v2/tags/list" have
// none, so the error is ErrNotRegistry.
func Split(u *url.URL) (Path, error) {
	s := own(u)
	p, ok := split(s)
	switch {
	case !ok && hasOtherReading(s):
		return Path{}, &Error{Spelling, s}
	case !ok:
		return Path{}, ErrNotRegistry
	case strings.IndexByte(p.Name, '%') >= 0 || strings.IndexByte(p.Ref, '%') >= 0 || !isClean(s):
		return Path{}, p.Check()
	}
	return p, nil
}

// own returns the escaped path of u. A server cuts the path from the request line, and
// parts of it are kept for long: they must not keep a query of a megabyte in memory.
func own(u *url.URL) string {
	if isAlone(u) {
		return u.EscapedPath()
	}
	return strings.Clone(u.EscapedPath())
}

// isAlone reports whether u has nothing but a path.
func isAlone(u *url.URL) bool { return u.RawQuery == "" && u.Host == "" && u.User == nil }

func split(s string) (Path, bool) {
	rest, ok := strings.CutPrefix(s, "/v2")
	switch {
	case !ok:
		return Path{}, false
	case rest == "" || rest == "/":
		return Path{Kind: Base}, true
	case rest == "/_catalog":
		return Path{Kind: Catalog}, true
	case rest[0] != '/': // "/v2beta1/..."
		return Path{}, false
	}
	return shape(rest[1:])
}

// isClean reports whether no component is empty or stands for another one. A slash at the
// end is an empty component, except where the specification has it.
func isClean(s string) bool {
	if strings.HasSuffix(s, "/blobs/uploads/") || s == "/v2/" {
		s = s[:len(s)-1]
	}
	if !strings.Contains(s, "//") && !strings.Contains(s, "/.") && !strings.HasSuffix(s, "/") && strings.HasPrefix(s, "/") {
		return true
	}
	return path.Clean(s) == s
}

// maxUnescapes is how often a path is unescaped: by a server, by a router, and again by
// handlers that do not know that this was done. Nothing does it more often.
const maxUnescapes = 4

// hasOtherReading reports whether a path that is none of the registry's would be one if it
// were unescaped or cleaned, or if its backslashes were slashes. The version check and uploads are not worth a refusal.
func hasOtherReading(s string) bool {
	if strings.IndexByte(s, '%') < 0 && isClean(s) {
		return false
	}
	for range maxUnescapes + 1 {
		if p, ok := split(path.Clean(strings.ReplaceAll(s, `\`, "/"))); ok && p.Kind != Base && p.Kind != Upload {
			return true
		}
		next, err := url.PathUnescape(s)
		if err != nil || next == s {
			return false
		}
		s = next
	}
	return false
}

// shape splits the part after "/v2/" into name and reference. It reads from the right,
// since a name may itself contain the components "manifests", "blobs" or "tags".
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

// Check returns an *Error if a part of the path is outside its grammar. The name is
// checked first.
func (p Path) Check() error {
	switch err := CheckName(p.Name); {
	case p.Kind == Base || p.Kind == Catalog:
		return nil
	case err != nil:
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

// cutLast splits s at its last slash. If there is no slash, tail is all of s.
func cutLast(s string) (head, tail string, ok bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return "", s, false
	}
	return s[:i], s[i+1:], true
}

// unescapeColon replaces the first escape in ref if it stands for a colon. Any other
// escape stays and is refused by the grammar, as is a second colon. So %253A never becomes
// a colon.
func unescapeColon(ref string) string {
	i := strings.IndexByte(ref, '%')
	if i < 0 || i+3 > len(ref) || !strings.EqualFold(ref[i:i+3], "%3a") {
		return ref
	}
	return ref[:i] + ":" + ref[i+3:]
}

// isSession reports whether s can be the id of an upload session, or is empty, which
// starts an upload. The specification has no grammar for these ids. This one accepts every
// id seen in practice, needs no escaping and excludes dot segments. Paths with other ids
// are not registry paths.
func isSession(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isTagByte(c) && c != '~' && c != '=' {
			return false
		}
	}
	return s != "." && s != ".."
}
