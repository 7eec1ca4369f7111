package ocipath

import (
	// go-digest panics for an algorithm that is not linked in, and an accepted digest
	// must never make its verifier panic.
	_ "crypto/sha256"
	_ "crypto/sha512"
	"strings"
)

// The limits of names are those of ECR's RepositoryName, not the 255 of the reference
// implementation. The limit of tags is OCI's. Longer values are refused before they are
// read, which bounds every check.
const (
	minName = 2
	maxName = 256
	maxTag  = 128
)

// ValidName reports whether s is a repository name: ECR's RepositoryName, which is an OCI
// repository name of 2 to 256 characters.
func ValidName(s string) bool {
	return len(s) >= minName && len(s) <= maxName && isRuns(s)
}

// ValidPrefix reports whether s can be the prefix of a rule: name components with or
// without a trailing slash, or ECR's "ROOT". It allows up to 256 characters; ECR's own,
// shorter limit applies when a rule is created.
func ValidPrefix(s string) bool {
	if len(s) > maxName {
		return false
	}
	return s == "ROOT" || isRuns(strings.TrimSuffix(s, "/"))
}

// ValidTag reports whether s is a tag.
func ValidTag(s string) bool {
	if s == "" || len(s) > maxTag || s[0] == '.' || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		if !isTagByte(s[i]) {
			return false
		}
	}
	return true
}

// ValidDigest reports whether s is a digest that we can verify: sha256 or sha512
// with lower-case hex. The specification lets a registry refuse other algorithms
// and other encodings, and content that cannot be verified must not be cached.
func ValidDigest(s string) bool {
	if hex, ok := strings.CutPrefix(s, "sha256:"); ok {
		return len(hex) == 64 && isHex(hex)
	}
	hex, ok := strings.CutPrefix(s, "sha512:")
	return ok && len(hex) == 128 && isHex(hex)
}

// IsDigest reports whether ref is meant as a digest, valid or not. A tag cannot contain a
// colon, so a malformed digest is never taken for a tag. Distribution before 3.1.2 did so.
func IsDigest(ref string) bool {
	return strings.IndexByte(ref, ':') >= 0
}

// CheckName returns an *Error if s is not a repository name.
func CheckName(s string) error {
	if ValidName(s) {
		return nil
	}
	return &Error{Name, s}
}

// CheckRef returns an *Error if ref is neither a tag nor a digest. The Part of the error
// is [Digest] if ref is meant as a digest, see [IsDigest], and [Tag] otherwise.
func CheckRef(ref string) error {
	if IsDigest(ref) {
		return checkDigest(ref)
	}
	if ValidTag(ref) {
		return nil
	}
	return &Error{Tag, ref}
}

func checkDigest(s string) error {
	if ValidDigest(s) {
		return nil
	}
	return &Error{Digest, s}
}

// isRuns reports whether s consists of runs of lower-case letters and digits with one
// separator between two runs. A slash counts as a separator, since each component begins
// and ends with a run.
func isRuns(s string) bool {
	for i := 0; i < len(s); {
		n := runLen(s[i:])
		if n == 0 {
			return false
		}
		if i += n; i == len(s) {
			return true
		}
		if n = separatorLen(s[i:]); n == 0 {
			return false
		}
		i += n
	}
	return false // empty, or a separator at the end
}

func runLen(s string) int {
	for i := range len(s) {
		if c := s[i]; !isLower(c) && !isDigit(c) {
			return i
		}
	}
	return len(s)
}

// separatorLen returns the length of the separator that s starts with: a slash, a dot,
// one or two underscores, or any number of hyphens. After a longer sequence ("..", "___",
// ".-") the next run is empty, so it is refused there.
func separatorLen(s string) int {
	switch {
	case s[0] == '/' || s[0] == '.':
		return 1
	case strings.HasPrefix(s, "__"):
		return 2
	case s[0] == '_':
		return 1
	}
	return len(s) - len(strings.TrimLeft(s, "-"))
}

func isTagByte(c byte) bool {
	return isLower(c) || isDigit(c) || 'A' <= c && c <= 'Z' || c == '_' || c == '.' || c == '-'
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isDigit(c) && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func isLower(c byte) bool { return 'a' <= c && c <= 'z' }
func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// Object returns a reference as people write it: name:tag, name@digest, or only the name
// if ref is "".
func Object(name, ref string) string {
	switch {
	case ref == "":
		return name
	case IsDigest(ref):
		return name + "@" + ref
	}
	return name + ":" + ref
}
