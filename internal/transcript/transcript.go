// Package transcript plays the answers of registries from text files that a person can
// read. A file begins with comments that name its source, and has sections of requests and
// their answers:
//
//	# Docker Hub. Source: https://distribution.github.io/distribution/spec/auth/token/
//
//	== token
//	> GET https://auth.docker.io/token?service=registry.docker.io&scope=repository:library/alpine:pull
//	> Authorization: Basic me:{{password}}
//	< 200
//	< Content-Type: application/json
//
//	{"token":"{{token}}"}
//
// Lines with ">" are the request and lines with "<" the answer. All other lines after
// these are the answer's body, without leading and trailing empty lines. A line that
// begins with "#" is a comment.
//
// The query is written unescaped and in any order. "> Name: value" is a header that must
// be sent with exactly this value; "Basic user:password" stands for its base64 form.
// "> !Name" is a header that must not be sent. Headers that no line names must not be sent
// either, except those in [Harmless], so that a secret is sent only where the transcript
// has it. A ">" line that is not a header is the request's form.
//
// An answer is as long as its body. If its Content-Length is larger, the connection breaks
// after the body.
//
// {{name}} is a text that the test sets with [Player.Set]. {{now}} is the time of the
// call of [Player.Play]. {{token}} is a new token in an answer, and the last such token in
// a request.
package transcript

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Harmless are the headers that a request may have without a line in the transcript.
var Harmless = []string{"Accept", "Accept-Encoding", "If-Range", "Range", "User-Agent"}

// Section is the exchanges of one situation.
type Section struct {
	Name      string
	exchanges []exchange
}

// exchange is a request and its answer.
type exchange struct {
	place, section string // file and line, and name
	used           bool

	method, url string
	sent        []field
	form        string

	status int
	header []field
	body   string
}

type field struct{ name, value string }

// Read returns the sections of a file in order.
func Read(file string) (sections []Section, err error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var e *exchange // the last exchange of the last section
	for i, line := range strings.Split(string(content), "\n") {
		kind, rest, _ := strings.Cut(line, " ")
		place := fmt.Sprintf("%s:%d", filepath.Base(file), i+1)
		switch {
		case strings.HasPrefix(line, "#"):
		case kind == "==":
			sections, e = append(sections, Section{Name: rest}), nil
		case kind == ">" && sections != nil && (e == nil || e.status != 0):
			s := &sections[len(sections)-1]
			s.exchanges = append(s.exchanges, exchange{place: place, section: s.Name})
			e = &s.exchanges[len(s.exchanges)-1]
			e.method, e.url, _ = strings.Cut(rest, " ")
		case e != nil:
			err = e.read(kind, rest, line)
		case line != "":
			err = errors.New("a line belongs to nothing")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", place, err)
		}
	}
	return sections, nil
}

// read parses a line after the first line of the request.
func (e *exchange) read(kind, rest, line string) (err error) {
	name, value, isField := strings.Cut(rest, ": ")
	switch {
	case kind == ">" && (isField || strings.HasPrefix(rest, "!")):
		e.sent = append(e.sent, field{name, value})
	case kind == ">":
		e.form = rest
	case kind == "<" && e.status == 0:
		e.status, err = strconv.Atoi(rest)
	case kind == "<" && isField:
		e.header = append(e.header, field{name, value})
	case e.status != 0:
		e.body += line + "\n"
	case line != "":
		err = errors.New("a line is neither sent nor answered")
	}
	return err
}
