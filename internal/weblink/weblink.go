// Package weblink reads Link headers (RFC 8288, section 3).
//
// It only parses. Its caller decides where a link may lead. A registry's header is
// untrusted input, so parsing takes linear time, and keeps nothing.
package weblink

import "strings"

// Find returns the target of the first link of the relation rel, in lower case, among all
// Link lines of an answer, as http.Header.Values has them. The target is as it was
// sent, and may be relative. A link that has an anchor is about another resource, and is
// passed over.
//
// Parsing is as lenient as appendix B of the RFC: what is outside the grammar ends the
// parameters of its own link, and a link that does not begin with "<" is passed over.
// A quote that is not closed reaches to the end of its line.
func Find(lines []string, rel string) (target string, ok bool) {
	for _, line := range lines {
		s := scanner{s: line}
		for s.span(isBetween); !s.atEnd(); s.span(isBetween) {
			if l, ok := s.link(); ok && !l.anchored && l.has(rel) {
				return l.target, true
			}
		}
	}
	return "", false
}

// link is one element of the header.
type link struct {
	target   string
	rels     string // separated by blanks
	related  bool   // it has a rel: a second one does not count
	anchored bool
}

func (l *link) has(rel string) bool {
	for _, r := range strings.Fields(l.rels) {
		if strings.EqualFold(r, rel) {
			return true
		}
	}
	return false
}

func (l *link) set(name, value string) {
	switch strings.ToLower(name) {
	case "rel":
		if !l.related {
			l.rels, l.related = value, true
		}
	case "anchor":
		l.anchored = true
	}
}

// scanner reads one line, forward only.
type scanner struct {
	s string
	i int
}

func (s *scanner) atEnd() bool    { return s.i >= len(s.s) }
func (s *scanner) at(c byte) bool { return !s.atEnd() && s.s[s.i] == c }

// span takes the bytes up to the first one that is not ok.
func (s *scanner) span(ok func(byte) bool) string {
	start := s.i
	for !s.atEnd() && ok(s.s[s.i]) {
		s.i++
	}
	return s.s[start:s.i]
}

// link reads one link, up to the comma after it.
func (s *scanner) link() (l link, ok bool) {
	defer s.skip()
	if !s.at('<') {
		return link{}, false
	}
	end := strings.IndexByte(s.s[s.i:], '>')
	if end < 0 {
		s.i = len(s.s)
		return link{}, false
	}
	l.target = strings.TrimSpace(s.s[s.i+1 : s.i+end])
	s.i += end + 1
	for s.span(isSpace); s.at(';'); s.span(isSpace) {
		s.i++
		s.span(isSpace)
		name := s.span(isName)
		s.span(isSpace)
		l.set(name, s.value())
	}
	return l, true
}

// value reads the "=" of a parameter and what follows it; "" where there is none.
func (s *scanner) value() string {
	if !s.at('=') {
		return ""
	}
	s.i++
	s.span(isSpace)
	if s.at('"') {
		return s.quotedString()
	}
	return s.span(isValue)
}

// quotedString returns the value of a quoted string. A backslash makes the next byte
// literal.
func (s *scanner) quotedString() string {
	var b strings.Builder
	for s.i++; !s.atEnd(); s.i++ {
		c := s.s[s.i]
		if c == '"' {
			s.i++
			break
		}
		if c == '\\' {
			if s.i++; s.atEnd() {
				break
			}
			c = s.s[s.i]
		}
		b.WriteByte(c)
	}
	return b.String()
}

// skip passes over what is left of the link. Quoted text is passed over as a whole, so
// that it is never read as a link.
func (s *scanner) skip() {
	for !s.atEnd() && !s.at(',') {
		if s.at('"') {
			s.quotedString()
		} else {
			s.i++
		}
	}
}

func isSpace(c byte) bool   { return c == ' ' || c == '\t' }
func isBetween(c byte) bool { return isSpace(c) || c == ',' }
func isName(c byte) bool    { return !isBetween(c) && c != '=' && c != ';' }
func isValue(c byte) bool   { return c != ';' && c != ',' }
