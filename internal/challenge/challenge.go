// Package challenge reads WWW-Authenticate headers (RFC 9110, section 11.6.1).
//
// It only parses. Its caller decides whether a realm may be called, with which scope
// and with which credentials. A registry's header is untrusted input, so parsing takes
// linear time and bounded memory.
package challenge

import (
	"maps"
	"slices"
	"strings"
)

// The limits of one answer. Real answers hold one or two challenges with three
// parameters.
const (
	maxChallenges = 16
	maxParams     = 32
	maxBytes      = 8 << 10
)

// Challenge is one authentication scheme that a server offers. A challenge has a
// Token68 or Params or neither, never both.
type Challenge struct {
	Scheme  string            // in lower case: "basic", "bearer"
	Token68 string            // as sent; empty if there is none
	Params  map[string]string // names in lower case, values without quotes and escapes; nil if there are none
}

// String returns the canonical form of c: names in order, values in quotes. Parse of it
// returns c. String does not check the characters of a value. A value that does not come
// from Parse must not hold control characters.
func (c Challenge) String() string {
	var b strings.Builder
	b.WriteString(c.Scheme)
	if c.Token68 != "" {
		b.WriteString(" " + c.Token68)
	}
	sep := " "
	for _, name := range slices.Sorted(maps.Keys(c.Params)) {
		b.WriteString(sep + name + `="` + escaper.Replace(c.Params[name]) + `"`)
		sep = ", "
	}
	return b.String()
}

var escaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// Parse returns the challenges of all WWW-Authenticate lines of an answer, as
// http.Header.Values has them, in the order sent. Well-formed lines joined with
// ", " give the same list.
//
// A malformed challenge is left out and does not affect the others. A challenge is
// malformed if it has a parameter twice, an unquoted value that is not a token, an
// unterminated quote, parameters after a token68, a control character, or anything else
// outside the grammar. After an unterminated quote the rest of the line is dropped,
// since the end of the quote is unknown. The next line is parsed as usual.
//
// At most 16 challenges are returned. A challenge with more than 32 parameters is
// malformed. Only the first 8 KiB are read. A challenge that is cut off there is left
// out, since the missing part may restrict it.
func Parse(lines []string) []Challenge {
	var p parser
	left := maxBytes
	for _, line := range lines {
		read := line[:min(len(line), left)]
		left -= len(read)
		p.cut = len(read) < len(line)
		p.line(read)
	}
	return p.done
}

// parser collects challenges over the lines of one answer.
type parser struct {
	scanner
	cut  bool // the line is longer than the part that is read
	done []Challenge

	// The open challenge, to which parameters belong until the next scheme. isOpen
	// is false at the start of a line. Parameters there belong to no challenge and
	// are dropped.
	open   Challenge
	isOpen bool
	bad    bool
}

func (p *parser) line(s string) {
	p.scanner = scanner{s: s}
	for !p.atLineEnd() {
		p.element()
	}
	p.bad = p.bad || p.cut
	p.close()
}

// element reads one element of the list and the comma after it. Commas separate
// challenges as well as parameters. If "=" follows the first word of an element, the
// word is a parameter of the open challenge. Otherwise it is a scheme. This also applies
// to words that are not tokens, so a malformed element spoils only its own challenge.
func (p *parser) element() {
	p.space()
	if !p.atEnd() {
		word, gap := p.word(), p.space()
		if p.at('=') {
			p.param(word)
		} else {
			p.challenge(word, gap)
		}
		p.tail()
	}
	p.i++ // the comma; past the end of the line this is harmless
}

// tail skips what follows an element and is outside the grammar, as in "a=b c",
// `a="b"c` and "a=b=c".
func (p *parser) tail() {
	p.space()
	if !p.atEnd() {
		p.bad = true
		p.skip()
	}
}

// challenge opens a challenge and reads what follows its scheme: nothing, a token68 or
// the first parameter. If the line is cut off after the word, the word may have been the
// name of a parameter, so the challenge before it is dropped too.
func (p *parser) challenge(scheme, gap string) {
	p.bad = p.bad || p.cut && p.atLineEnd()
	p.close()
	p.open = Challenge{Scheme: strings.ToLower(scheme)}
	p.isOpen, p.bad = true, !isToken(scheme)
	if p.atEnd() {
		return
	}
	if strings.Contains(gap, "\t") { // 1*SP, unlike everywhere else
		p.bad = true
	}
	if p.open.Token68 = p.token68(); p.open.Token68 != "" {
		return
	}
	name := p.word()
	p.space()
	if p.at('=') {
		p.param(name)
	} else {
		p.bad = true
	}
}

// param reads a parameter of the open challenge, starting at its "=". A name that
// appears twice makes the challenge malformed, since some parsers would take the first
// value and others the last, and so get different realms.
func (p *parser) param(name string) {
	p.i++
	p.space()
	value, ok := p.value()
	lower := strings.ToLower(name)
	_, twice := p.open.Params[lower]
	if !ok || twice || !isToken(name) || p.open.Token68 != "" || len(p.open.Params) == maxParams {
		p.bad = true
	}
	if p.bad {
		return
	}
	if p.open.Params == nil {
		p.open.Params = make(map[string]string)
	}
	p.open.Params[lower] = value
}

// close ends the open challenge and keeps it if it is well-formed. Malformed ones do not
// count towards the limit, so that they cannot displace a usable one.
func (p *parser) close() {
	if p.isOpen && !p.bad && len(p.done) < maxChallenges {
		p.done = append(p.done, p.open)
	}
	p.open, p.isOpen, p.bad = Challenge{}, false, false
}
