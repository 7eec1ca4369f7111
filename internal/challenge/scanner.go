package challenge

import "strings"

// scanner reads the lexical elements of one header line. It reads forward, except that
// token68 may return one word, so it takes linear time.
type scanner struct {
	s string
	i int
}

func (s *scanner) atLineEnd() bool { return s.i >= len(s.s) }

// at reports whether c is next.
func (s *scanner) at(c byte) bool { return !s.atLineEnd() && s.s[s.i] == c }

// atEnd reports whether the list element ends here.
func (s *scanner) atEnd() bool { return s.atLineEnd() || s.s[s.i] == ',' }

// span takes the bytes up to the first one that is not ok.
func (s *scanner) span(ok func(byte) bool) string {
	start := s.i
	for !s.atLineEnd() && ok(s.s[s.i]) {
		s.i++
	}
	return s.s[start:s.i]
}

// space takes optional whitespace: OWS and BWS of the RFC.
func (s *scanner) space() string { return s.span(isSpace) }

// word takes everything up to the next separator. It may take more than a token on
// purpose: in the unquoted "realm=https://a/t" other parsers read the realm "https",
// which the server did not name.
func (s *scanner) word() string { return s.span(isWord) }

// value takes the value of a parameter: a token or a quoted string.
func (s *scanner) value() (string, bool) {
	if s.at('"') {
		return s.quotedString()
	}
	v := s.word()
	return v, isToken(v)
}

// quotedString takes a quoted string and returns its value. A backslash makes the next byte
// literal, unlike in Go's strings. Control characters are refused even then: the RFC does
// not allow them, and values are used in URLs and logs.
func (s *scanner) quotedString() (string, bool) {
	var b strings.Builder
	ok := true
	for s.i++; !s.atLineEnd(); s.i++ {
		c := s.s[s.i]
		if c == '"' {
			s.i++
			return b.String(), ok
		}
		if c == '\\' {
			if s.i++; s.atLineEnd() {
				break
			}
			c = s.s[s.i]
		}
		ok = ok && !isControl(c)
		b.WriteByte(c)
	}
	return "", false
}

// token68 takes a token68 if the element holds nothing else, and nothing otherwise.
// "abc=" is a token68 and "abc=x" begins a parameter. They differ only after the "=", so
// token68 may have to go back.
func (s *scanner) token68() string {
	start := s.i
	word := s.word()
	s.span(func(c byte) bool { return c == '=' })
	t := s.s[start:s.i]
	s.space()
	if word != "" && s.atEnd() && strings.TrimLeft(word, token68Bytes) == "" {
		return t
	}
	s.i = start
	return ""
}

// skip skips malformed text up to the end of the element. It skips quoted strings as a
// whole, so that quoted text is never read as a challenge.
func (s *scanner) skip() {
	for !s.atEnd() {
		if s.at('"') {
			s.quotedString()
		} else {
			s.i++
		}
	}
}

const (
	alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	token68Bytes = alphanumeric + "-._~+/"
	tokenBytes   = alphanumeric + "!#$%&'*+-.^_`|~"
)

func isToken(s string) bool {
	return s != "" && strings.TrimLeft(s, tokenBytes) == ""
}

func isSpace(c byte) bool   { return c == ' ' || c == '\t' }
func isWord(c byte) bool    { return !isSpace(c) && c != ',' && c != '=' && c != '"' }
func isControl(c byte) bool { return c < ' ' && c != '\t' || c == 0x7f }
