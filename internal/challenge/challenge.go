// Package challenge reads WWW-Authenticate headers (RFC 9110, section 11.6.1).
//
// It yields text and judges nothing: whether a realm may be called, with which
// scope and which credentials, is decided by its caller. A registry's header is
// input from outside, so reading it takes linear time and bounded memory.
package challenge

import (
	"maps"
	"slices"
	"strings"
)

// The limits of one answer. Real ones hold one or two challenges of three
// parameters; a registry that sends more gains nothing by it.
const (
	maxChallenges = 16
	maxParams     = 32
	maxBytes      = 8 << 10
)

// Challenge is one way in that a server offers. A challenge has a Token68 or
// Params or neither, never both.
type Challenge struct {
	Scheme  string            // in lower case: "basic", "bearer"
	Token68 string            // as sent; empty if there is none
	Params  map[string]string // names in lower case, values without quotes and escapes; nil if there are none
}

// String returns the canonical form of c, which Parse reads as c again: names in
// order, values in quotes. The characters of a value are not checked; a value
// that did not come from Parse must not hold control characters.
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
// A challenge that is malformed is left out and hides no other one. That is one
// with a parameter given twice, an unquoted value that is no token, an
// unterminated quote, parameters behind a token68, a control character, or
// anything else outside the grammar. An unterminated quote takes the rest of its
// line with it, as nobody can say where it should have ended; the next line
// starts afresh.
//
// At most 16 challenges are returned. One with more than 32 parameters is
// malformed. Bytes beyond the first 8 KiB are not read, and the challenge they
// cut short is left out, since its missing part may be what restricts it.
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
	cut  bool // the line goes on beyond what is read
	done []Challenge

	// The challenge that is open: parameters belong to it until the next
	// scheme. isOpen is false at the start of a line: parameters there belong to
	// nobody and are dropped.
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

// element reads one element of the list and the comma behind it. Challenges and
// parameters are separated by the same comma, so only what follows the first
// word tells them apart: "=" makes it a parameter of the open challenge,
// anything else a scheme. This holds for words that are no tokens as well,
// which is what confines a malformed element to the challenge it belongs to.
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
	p.i++ // the comma; behind the end of the line it does no harm
}

// tail skips what an element has beyond its grammar: "a=b c", `a="b"c`, "a=b=c".
func (p *parser) tail() {
	p.space()
	if !p.atEnd() {
		p.bad = true
		p.skip()
	}
}

// challenge opens a challenge with what follows its scheme: nothing, a token68
// or the first parameter. A last word before a cut may as well have been the
// name of a parameter, so it spoils the challenge before it.
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

// param reads a parameter of the open challenge from its "=" on. A name given
// twice spoils the challenge: readers that take the first and readers that take
// the last would be sent to different realms.
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

// close files the open challenge. Only good ones count towards the limit, or
// junk in front could push the usable one out.
func (p *parser) close() {
	if p.isOpen && !p.bad && len(p.done) < maxChallenges {
		p.done = append(p.done, p.open)
	}
	p.open, p.isOpen, p.bad = Challenge{}, false, false
}
