// Package ocierror reads the bodies that registries send with an error. Such a body is
// untrusted text: it may be a web page, and it may repeat a secret. The texts that this
// package returns are short, printable and safe to log.
package ocierror

import (
	"encoding/json"
	"strings"
)

const (
	// MaxExcerpt is how many bytes of a body [Excerpt] looks at.
	MaxExcerpt = 256
	// maxWord is the length of the longest word that is kept. A longer one may be a token.
	maxWord = 40
)

// Code returns the code of the first error in an error body of the OCI
// distribution specification ("Error Codes"). It returns "" for every other body,
// and for a code that is not spelled as the specification spells them.
func Code(body []byte) string {
	var answer struct {
		Errors []struct {
			Code string `json:"code"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &answer) != nil || len(answer.Errors) == 0 {
		return ""
	}
	code := answer.Errors[0].Code
	if len(code) > 64 || strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" {
		return ""
	}
	return code
}

// Excerpt returns the beginning of text, at most limit bytes, in one line of
// printable ASCII. It leaves out the queries of URLs, and words
// that could be tokens because they are long.
func Excerpt(text []byte, limit int) string {
	plain := string(text[:min(len(text), MaxExcerpt)])
	var b strings.Builder
	for word := range strings.FieldsFuncSeq(plain, func(r rune) bool { return r <= ' ' || r > '~' }) {
		word, _, _ = strings.Cut(word, "?")
		if len(word) > maxWord {
			word = "..."
		}
		if b.Len()+1+len(word) > limit {
			break
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(word)
	}
	return b.String()
}
