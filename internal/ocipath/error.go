package ocipath

import "fmt"

// Part is a part of a path that has a grammar. Each has its own error code in
// the API: NAME_INVALID, TAG_INVALID, DIGEST_INVALID.
type Part int

const (
	Name   Part = iota // the repository name
	Tag                // a reference without a colon
	Digest             // a reference with a colon, or any reference to a blob or a subject
)

// String returns the word that messages use for the part.
func (p Part) String() string {
	switch p {
	case Name:
		return "repository name"
	case Tag:
		return "tag"
	case Digest:
		return "digest"
	}
	return "path"
}

// Error says that a part of a registry path is outside the grammar: the path is
// ours, and the client is to be told that it is wrong.
type Error struct {
	Part  Part
	Value string // as the client sent it: any bytes, of any length
}

func (e *Error) Error() string {
	return fmt.Sprintf("invalid %v %s", e.Part, quote(e.Value))
}

// maxQuoted bounds the value in a message, its quotes included.
const maxQuoted = 128

// quote makes a client's bytes safe to repeat in a log line or a response body:
// printable ASCII in quotes, everything else as \xNN, and cut, since the value
// may be as long as the server's header limit. The slack of 8 bytes is for one
// escape and the longest ending.
func quote(s string) string {
	b := make([]byte, 0, maxQuoted)
	b = append(b, '"')
	for i := range len(s) {
		if len(b) > maxQuoted-8 {
			return string(append(b, `..."`...))
		}
		b = appendByte(b, s[i])
	}
	return string(append(b, '"'))
}

func appendByte(b []byte, c byte) []byte {
	switch {
	case c == '"' || c == '\\':
		return append(b, '\\', c)
	case c < ' ' || c > '~':
		return fmt.Appendf(b, `\x%02x`, c)
	}
	return append(b, c)
}
