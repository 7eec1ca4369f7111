package ocipath

import "fmt"

// Part is a part of a path that has a grammar. Each has its own error code in
// the API: NAME_INVALID, TAG_INVALID, DIGEST_INVALID.
type Part int

const (
	Name     Part = iota // the repository name
	Tag                  // a reference without a colon
	Digest               // a reference with a colon, or any reference to a blob or a subject
	Spelling             // a path that is one of the registry only for those who unescape or clean it
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

// Error says that a part of a registry path is outside the grammar. The path belongs to
// the registry API, so the client must be told that it is invalid.
type Error struct {
	Part  Part
	Value string // as the client sent it: any bytes, of any length
}

func (e *Error) Error() string {
	return fmt.Sprintf("invalid %v %s", e.Part, quote(e.Value))
}

// maxQuoted is the length of a quoted value in a message, with its quotes.
const maxQuoted = 128

// quote makes a client's bytes safe for a log line or a response body. It keeps printable
// ASCII, writes all other bytes as \xNN and adds quotes. It cuts the value off, since that
// may be as long as the server's header limit. The 8 bytes of slack hold one escape and
// the longest ending.
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
