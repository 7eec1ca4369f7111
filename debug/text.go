package debug

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/ecr-pullthrough/pullthrough/internal/recent"
)

// How many bytes are kept of each text that comes from clients or upstreams.
const (
	maxName = 255 // Amazon ECR's limit for a repository name is 256
	maxRef  = 160 // a sha512 digest has 135
	maxText = 800
	// maxRaw is how many bytes of a text are processed.
	maxRaw = 8 << 10
)

// clean returns a copy of s that can be shown safely: at most max bytes of UTF-8 and an
// ellipsis. It replaces control characters, invisible characters and characters that
// change the direction of text.
func clean(s string, max int) string {
	if len(s) <= max {
		if own, plain := keep(s); plain {
			return own
		}
	}
	var b strings.Builder
	b.Grow(min(len(s), max) + len("…"))
	for _, r := range s[:min(len(s), maxRaw)] {
		if isHidden(r) {
			r = utf8.RuneError
		}
		if b.Len()+utf8.RuneLen(r) > max {
			return b.String() + "…"
		}
		b.WriteRune(r)
	}
	return b.String()
}

// kept are names, tags and digests that were kept last: most events are about the same few.
var kept = recent.New[string]()

// keep returns a copy of s, which may be one that others keep, too. It reports false if s is
// not plain.
func keep(s string) (own string, plain bool) {
	if s == "" {
		return "", true
	}
	slot := kept.At(s)
	if known := slot.Load(); known != nil && *known == s {
		return *known, true
	}
	if !isPlain(s) {
		return "", false
	}
	clone := strings.Clone(s)
	slot.Store(&clone)
	return clone, true
}

// isPlain reports whether s is printable ASCII, as names and digests are.
func isPlain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

func isHidden(r rune) bool {
	if r < utf8.RuneSelf {
		return r < ' ' || r == 0x7f
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}

var (
	userInfo = regexp.MustCompile(`://[^\s"'<>]*@`)
	query    = regexp.MustCompile(`\?[^\s"'<>]*=[^\s"'<>]*`)
)

// cleanText is clean for sentences that may quote URLs. An error of the host's own Store
// or rules may contain a presigned URL or the URL of a database.
func cleanText(s string, max int) string {
	if len(s) > maxRaw {
		// The last word may be the first half of a URL, in which a secret looks like a host.
		s = s[:maxRaw]
		s = s[:strings.LastIndexAny(s, " \t\r\n")+1] + "…"
	}
	s = userInfo.ReplaceAllLiteralString(s, "://...@")
	return clean(query.ReplaceAllLiteralString(s, "?..."), max)
}

// cleanURL returns a rule's upstream URL without user information and query, even if it
// is not a valid URL.
func cleanURL(s string) string {
	if i := strings.LastIndex(s, "@"); i >= 0 {
		s = "..." + s[i:]
	}
	if i := strings.IndexAny(s, "?#"); i >= 0 {
		s = s[:i] + s[i:i+1] + "..."
	}
	return clean(s, maxName)
}
