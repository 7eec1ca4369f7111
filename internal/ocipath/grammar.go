package ocipath

import (
	// An accepted digest must never panic its verifier, and go-digest panics
	// for an algorithm that nobody linked in.
	_ "crypto/sha256"
	_ "crypto/sha512"
	"strings"
)

// The limits of names are ECR's RepositoryName, not the 255 of the reference
// implementation, and tags are OCI's. They also keep every check linear: longer
// values are refused unread.
const (
	minName = 2
	maxName = 256
	maxTag  = 128
)

// ValidName reports whether s is a repository name: ECR's RepositoryName, which
// is OCI's with a length of 2 to 256.
func ValidName(s string) bool {
	return len(s) >= minName && len(s) <= maxName && isRuns(s)
}

// ValidPrefix reports whether s can be the prefix of a rule: name components
// with or without a slash at the end, or ECR's "ROOT". Up to 256 characters are
// allowed; ECR's own, shorter limit belongs to the creation of rules.
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

// IsDigest reports whether ref is meant as a digest, valid or not. No tag
// contains a colon, so a malformed digest is never taken for a tag, as
// distribution before 3.1.2 did.
func IsDigest(ref string) bool {
	return strings.IndexByte(ref, ':') >= 0
}

// CheckName returns an *Error if s is no repository name.
func CheckName(s string) error {
	if ValidName(s) {
		return nil
	}
	return &Error{Name, s}
}

// CheckRef returns an *Error if ref is neither a tag nor a digest. Its Part is
// what ref was meant as, see IsDigest.
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

// isRuns reports whether s is made of runs of lower-case letters and digits with
// one separator between each two. A slash is one more separator here: the
// grammar of a component begins and ends with a run, so both readings agree.
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

// separatorLen returns the length of the separator that s starts with: a slash,
// a dot, one or two underscores, or any number of hyphens. What is too long for
// it ("..", "___", ".-") fails as the empty run behind it.
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

// Object spells a reference as people do: name:tag or name@digest, or the name
// alone where ref is "".
func Object(name, ref string) string {
	switch {
	case ref == "":
		return name
	case IsDigest(ref):
		return name + "@" + ref
	}
	return name + ":" + ref
}
