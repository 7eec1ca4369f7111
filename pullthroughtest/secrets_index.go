package pullthroughtest

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// minSecret is the length of the shortest text that is looked for: shorter ones are found by chance.
const minSecret = 8

// index finds any of many secrets in a text, in the time that it takes to read the text.
type index struct {
	spellings map[string][]spelling // by their first minSecret bytes
	longest   int
}

// spelling is one of the texts that show a secret.
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
	for _, reading := range readings(text) {
		for i := range max(0, len(reading)-minSecret+1) {
			for _, s := range x.spellings[reading[i:i+minSecret]] {
				if strings.HasPrefix(reading[i:], s.text) && !slices.Contains(found, s.secret) {
					found = append(found, s.secret)
				}
			}
		}
	}
	return found
}

// maxReported is how much of a text is reported.
const maxReported = 500

// redact is the beginning of text with the names of the secrets in their places.
func (x *index) redact(text string) string {
	var b strings.Builder
	for len(text) > 0 && b.Len() < maxReported {
		name, n := x.starts(text)
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

// starts returns the name and the length of the secret that text begins with.
func (x *index) starts(text string) (name string, n int) {
	for _, s := range x.spellings[text[:min(len(text), minSecret)]] {
		if strings.HasPrefix(text, s.text) {
			return "[" + s.secret.name + "]", len(s.text)
		}
	}
	return "", 0
}

// hides reports whether text shows secret in any of the encodings in which credentials travel.
func hides(text, secret string) bool {
	spellings := spell(secret)
	return slices.ContainsFunc(readings(text), func(reading string) bool {
		return slices.ContainsFunc(spellings, func(s string) bool { return strings.Contains(reading, s) })
	})
}

// readings are the texts that text may stand for: itself, without percent encoding as in paths and as in queries, and
// Basic credentials.
func readings(text string) []string {
	all := []string{text}
	add := func(reading string) {
		if !slices.Contains(all, reading) {
			all = append(all, reading)
		}
	}
	for _, escaped := range []string{text, strings.ReplaceAll(text, "+", " ")} {
		add(escaped)
		for rounds := 0; rounds < 3 && strings.Contains(escaped, "%"); rounds++ { // a URL in a URL in a URL
			escaped = unescape(escaped)
			add(escaped)
		}
	}
	// What spell knows of base64 is enough for secrets of some length.
	if scheme, rest, _ := strings.Cut(text, " "); strings.EqualFold(scheme, "Basic") {
		plain, _ := base64.StdEncoding.DecodeString(strings.TrimSpace(rest))
		add(string(plain))
	}
	return all
}

// unescape decodes percent encoding wherever there is some: unlike url.PathUnescape it is content with any text.
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

// spell returns the texts that show the secret: itself, as fmt and encoding/json quote it, in base64 at any offset of
// what was encoded, in hexadecimal, and as the bytes of a slice. Of a short one it returns the secret alone.
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
			// Without the letters that hold bits of what stands before and behind.
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
