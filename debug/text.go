package debug

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// How many bytes are kept of each text that others have chosen.
const (
	maxName = 255 // Amazon ECR's limit for a repository name is 256
	maxRef  = 160 // a sha512 digest has 135
	maxText = 800
	// maxRaw is how much of a text is looked at.
	maxRaw = 8 << 10
)

// clean is a copy of s that can be shown: at most max bytes of UTF-8 and an
// ellipsis, without characters that control a terminal, hide, or change the
// direction of what stands beside them.
func clean(s string, max int) string {
	if len(s) <= max && plain(s) {
		return strings.Clone(s)
	}
	var b strings.Builder
	b.Grow(min(len(s), max) + len("…"))
	for _, r := range s[:min(len(s), maxRaw)] {
		if hidden(r) {
			r = utf8.RuneError
		}
		if b.Len()+utf8.RuneLen(r) > max {
			return b.String() + "…"
		}
		b.WriteRune(r)
	}
	return b.String()
}

// plain reports whether s is printable ASCII, as names and digests are.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

func hidden(r rune) bool {
	if r < utf8.RuneSelf {
		return r < ' ' || r == 0x7f
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}

var (
	userInfo = regexp.MustCompile(`://[^\s"'<>]*@`)
	query    = regexp.MustCompile(`\?[^\s"'<>]*=[^\s"'<>]*`)
)

// cleanText is clean for sentences, which may quote URLs: an error of the host's
// own Store or rules may well name a presigned one, or a database's.
func cleanText(s string, max int) string {
	if len(s) > maxRaw {
		// The last word may be half a URL, whose secret could not be told from a host.
		s = s[:maxRaw]
		s = s[:strings.LastIndexAny(s, " \t\r\n")+1] + "…"
	}
	s = userInfo.ReplaceAllLiteralString(s, "://...@")
	return clean(query.ReplaceAllLiteralString(s, "?..."), max)
}

// cleanURL is an upstream URL of a rule, without user information and query also
// where it is no URL at all.
func cleanURL(s string) string {
	if i := strings.LastIndex(s, "@"); i >= 0 {
		s = "..." + s[i:]
	}
	if i := strings.IndexAny(s, "?#"); i >= 0 {
		s = s[:i] + s[i:i+1] + "..."
	}
	return clean(s, maxName)
}
