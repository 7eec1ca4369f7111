package pullthroughtest

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// minSecret is the length of the shortest text that is searched for. Shorter ones are found by chance.
const minSecret = 8

// index finds many secrets in a text in a single pass.
type index struct {
	spellings map[string][]spelling // keyed by their first minSecret bytes
	longest   int
}

// spelling is one of the texts that reveal a secret.
type spelling struct {
	text   string
	secret *secret
}

func (x *index) add(value string, s *secret) {
	if x.spellings == nil {
		x.spellings = map[string][]spelling{}
	}
	for _, text := range spell(value) {
		x.spellings[text[:minSecret]] = append(x.spellings[text[:minSecret]], spelling{text, s})
		x.longest = max(x.longest, len(text))
	}
}

func (x *index) remove(value string, s *secret) {
	for _, text := range spell(value) {
		key := text[:minSecret]
		x.spellings[key] = slices.DeleteFunc(x.spellings[key], func(other spelling) bool { return other.secret == s })
		if len(x.spellings[key]) == 0 {
			delete(x.spellings, key)
		}
	}
}

// find returns the secrets in text, each once.
func (x *index) find(text string) (found []*secret) {
	for _, plain := range decodings(text) {
		for i := range max(0, len(plain)-minSecret+1) {
			for _, s := range x.spellings[plain[i:i+minSecret]] {
				if strings.HasPrefix(plain[i:], s.text) && !slices.Contains(found, s.secret) {
					found = append(found, s.secret)
				}
			}
		}
	}
	return found
}

// maxReported is how many bytes of a text are reported.
const maxReported = 500

// redact returns the beginning of text with each secret replaced by its name.
func (x *index) redact(text string) string {
	var b strings.Builder
	for len(text) > 0 && b.Len() < maxReported {
		name, n := x.prefix(text)
		if n == 0 {
			name, n = text[:1], 1
		}
		b.WriteString(name)
		text = text[n:]
	}
	if len(x.find(b.String())) > 0 {
		return "(and cannot be printed without it)" // it is encoded twice, or percent-encoded
	}
	return b.String()
}

// prefix returns the name and the length of the secret that text begins with; 0 if it begins with none.
func (x *index) prefix(text string) (name string, n int) {
	for _, s := range x.spellings[text[:min(len(text), minSecret)]] {
		if strings.HasPrefix(text, s.text) {
			return "[" + s.secret.name + "]", len(s.text)
		}
	}
	return "", 0
}

// reveals reports whether text contains secret in any of the encodings in which credentials are sent.
func reveals(text, secret string) bool {
	spellings := spell(secret)
	return slices.ContainsFunc(decodings(text), func(plain string) bool {
		return slices.ContainsFunc(spellings, func(s string) bool { return strings.Contains(plain, s) })
	})
}

// decodings returns the texts that text may stand for: text itself, text without the percent encoding of paths or of
// queries, and the decoded Basic credentials.
func decodings(text string) []string {
	all := []string{text}
	add := func(decoded string) {
		if !slices.Contains(all, decoded) {
			all = append(all, decoded)
		}
	}
	for _, escaped := range []string{text, strings.ReplaceAll(text, "+", " ")} {
		add(escaped)
		for rounds := 0; rounds < 3 && strings.Contains(escaped, "%"); rounds++ { // a URL in a URL in a URL
			escaped = unescape(escaped)
			add(escaped)
		}
	}
	// This serves short secrets: for longer ones spell returns the base64 spellings.
	if scheme, rest, _ := strings.Cut(text, " "); strings.EqualFold(scheme, "Basic") {
		plain, _ := base64.StdEncoding.DecodeString(strings.TrimSpace(rest))
		add(string(plain))
	}
	return all
}

// unescape decodes every valid percent encoding. Unlike url.PathUnescape it accepts any text.
func unescape(text string) string {
	var b strings.Builder
	for {
		before, after, ok := strings.Cut(text, "%")
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		char, err := hex.DecodeString(after[:min(len(after), 2)])
		if err != nil || len(char) == 0 {
			b.WriteByte('%')
			text = after
			continue
		}
		b.Write(char)
		text = after[2:]
	}
}

// spell returns the texts that reveal the secret: the secret itself, as fmt and encoding/json quote it, in base64 at any
// offset in the encoded text, in hexadecimal, and as the bytes of a slice. For a short secret it returns only the secret.
func spell(secret string) []string {
	all := []string{secret}
	if len(secret) < minSecret {
		return all
	}
	add := func(text string) {
		if !slices.Contains(all, text) {
			all = append(all, text)
		}
	}
	for _, quoted := range []string{strconv.Quote(secret), string(marshal(secret))} {
		add(quoted[1 : len(quoted)-1])
	}
	for offset := range 3 {
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			encoded := encoding.EncodeToString(append(make([]byte, offset), secret...))
			// Leave out the letters that also hold bits of the text before or after the secret.
			add(encoded[(8*offset+5)/6 : 8*(offset+len(secret))/6])
		}
	}
	add(hex.EncodeToString([]byte(secret)))
	add(strings.ToUpper(hex.EncodeToString([]byte(secret))))
	add(strings.Trim(fmt.Sprint([]byte(secret)), "[]"))
	literal := fmt.Sprintf("%#v", []byte(secret))
	add(literal[strings.IndexByte(literal, '{')+1 : len(literal)-1])
	return all
}
