package challenge_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/challenge"
)

const (
	maxChallenges = 16
	maxParams     = 32
	maxBytes      = 8 << 10
)

// FuzzParse feeds any header, its lines separated by line feeds.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		one, two, one + ", " + two, one + "\n" + two, "Negotiate abc==, " + two, `Digest realm="d", qop="auth,int", nonce=x, ` + two,
		`Bearer realm="a\"b\\c\l"`, `, Bearer realm="a" ,,service = s,`, `Bearer realm=https://a/t,service="s"`, `Bearer realm="x` + "\n" + two,
		`Bearer realm="x\`, `Foo a=b,A=c`, "Foo a=, b", "Foo ==, a", `Foo "a, b" c=d`, "Foo\ta=b", "Foo abc=\n c=d", "Foo a=\"\x00\"", "=,\"\",\\\"",
	} {
		f.Add(seed)
	}
	for _, seed := range spoken(f) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		in := strings.Split(header, "\n")
		got := challenge.Parse(in)
		checkBounds(t, got)
		checkPrinting(t, got)
		for _, c := range got {
			checkPresent(t, in, c)
		}
		checkHidesNothing(t, in, got)
	})
}

// spoken are the challenges in the transcripts of registries.
func spoken(f *testing.F) (challenges []string) {
	files, err := filepath.Glob(filepath.Join("..", "..", "testdata", "registries", "*.txt"))
	require.NoError(f, err)
	for _, file := range files {
		content, err := os.ReadFile(file)
		require.NoError(f, err)
		for line := range strings.Lines(string(content)) {
			if c, ok := strings.CutPrefix(line, "< WWW-Authenticate: "); ok {
				challenges = append(challenges, strings.TrimSpace(c))
			}
		}
	}
	require.NotEmpty(f, challenges)
	return challenges
}

// checkBounds wants output that an attacker cannot blow up and that is safe in a
// log line.
func checkBounds(t *testing.T, got []challenge.Challenge) {
	size := 0
	require.LessOrEqual(t, len(got), maxChallenges)
	for _, c := range got {
		require.LessOrEqual(t, len(c.Params), maxParams)
		require.False(t, c.Token68 != "" && c.Params != nil)
		require.Equal(t, strings.ToLower(c.Scheme), c.Scheme)
		require.NotEmpty(t, c.Scheme)
		size += len(c.Scheme) + len(c.Token68)
		for name, value := range c.Params {
			size += len(name) + len(value)
			require.Equal(t, strings.ToLower(name), name)
			require.False(t, strings.ContainsAny(value, "\x00\r\n\x1b\x7f"), "%q", value)
		}
	}
	require.LessOrEqual(t, size, maxBytes)
}

// checkPrinting wants the canonical form to read as the same challenges, as
// lines and joined. Quotes may take it over the limit, where nothing is promised.
func checkPrinting(t *testing.T, got []challenge.Challenge) {
	joined := join(got, ", ")
	if len(joined) > maxBytes {
		return
	}
	require.Equal(t, got, challenge.Parse(canonical(got)))
	require.Equal(t, got, challenge.Parse([]string{joined}))
	require.Equal(t, got, challenge.Parse([]string{join(got, " ,,\t")}))
}

// checkPresent wants every value of c to be written in the header: between
// quotes modulo backslashes, or unquoted from one delimiter to the next.
func checkPresent(t *testing.T, in []string, c challenge.Challenge) {
	for _, value := range c.Params {
		require.True(t, anyLine(in, func(line string) bool { return written(line, value) }), "%q", value)
	}
	if c.Token68 != "" {
		require.True(t, anyLine(in, func(line string) bool { return strings.Contains(line, " "+c.Token68) }), "%q", c.Token68)
	}
}

func anyLine(in []string, ok func(string) bool) bool {
	for _, line := range in {
		if ok(line) {
			return true
		}
	}
	return false
}

func written(line, value string) bool {
	for i := range len(line) {
		if quotedAt(line[i:], value) || tokenAt(line[i:], value) {
			return true
		}
	}
	return false
}

// quotedAt matches `"` value `"` with any number of bytes escaped.
func quotedAt(s, value string) bool {
	s, ok := strings.CutPrefix(s, `"`)
	for i := 0; ok && i < len(value); i++ {
		s, ok = strings.CutPrefix(strings.TrimPrefix(s, `\`), value[i:i+1])
	}
	return ok && strings.HasPrefix(s, `"`)
}

// tokenAt matches "=" value where the element or its line ends behind the value.
func tokenAt(s, value string) bool {
	s, ok := strings.CutPrefix(s, "=")
	s, found := strings.CutPrefix(strings.TrimLeft(s, " \t"), value)
	s = strings.TrimLeft(s, " \t")
	return ok && found && value != "" && (s == "" || s[0] == ',')
}

// checkHidesNothing puts good challenges around any text. A bare scheme stands
// between, or parameters at the start of the text would rightly be the good
// one's.
func checkHidesNothing(t *testing.T, in []string, got []challenge.Challenge) {
	if len(strings.Join(in, ""))+len(one+"Foo, "+two) > maxBytes || len(got) > maxChallenges-3 {
		return
	}
	front := append([]string{one + ", Foo, " + in[0]}, in[1:]...)
	require.Equal(t, basic, challenge.Parse(front)[0])
	after := challenge.Parse(append(in[:len(in):len(in)], two))
	require.Equal(t, append(got[:len(got):len(got)], bearer), after)
}

// FuzzSpelling works the other way round: whatever the well-formed challenges
// and however they are spelled, exactly these are found.
func FuzzSpelling(f *testing.F) {
	for _, seed := range []string{"", "\x01\x02\x03\x04", "spelling", strings.Repeat("\x07\x33\xfe", 40), strings.Repeat("\x02\x01\x05\x09\x0b", 60)} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, choices []byte) {
		s := speller{choices: choices}
		want, in := s.header()
		if len(strings.Join(in, ", ")) > maxBytes {
			return
		}
		require.Equal(t, want, challenge.Parse(in), "%q", in)
		require.Equal(t, want, challenge.Parse([]string{strings.Join(in, ", ")}), "%q", in)
	})
}

// speller makes up challenges and one of their spellings, byte by byte.
type speller struct{ choices []byte }

// pick returns a number below n, 0 when the choices have run out.
func (s *speller) pick(n int) int {
	if len(s.choices) == 0 {
		return 0
	}
	c := int(s.choices[0])
	s.choices = s.choices[1:]
	return c % n
}

func (s *speller) header() (want []challenge.Challenge, in []string) {
	line := s.list()
	for len(s.choices) > 0 && len(want) < maxChallenges {
		c, text := s.challenge()
		want = append(want, c)
		line += text + s.list()
		if s.pick(3) == 0 {
			in, line = append(in, line), s.list()
		} else {
			line += ","
		}
	}
	return want, append(in, line)
}

// list spells what may stand between the elements of a list besides one comma.
func (s *speller) list() string { return s.of("", " ", "\t", ",", " , ", ",,\t,") }

func (s *speller) of(forms ...string) string { return forms[s.pick(len(forms))] }

func (s *speller) challenge() (challenge.Challenge, string) {
	c := bare(s.of("bearer", "basic", "digest", "x-#!"))
	text := s.cased(c.Scheme)
	switch s.pick(4) {
	case 0:
		return c, text
	case 1:
		c.Token68 = s.of("abc", "a/b+c~", "realm") + s.of("", "=", "==")
		return c, text + s.of(" ", "   ") + c.Token68
	}
	c.Params = params{}
	text += s.of(" ", "  ", " , ")
	for i, name := range []string{"realm", "service", "scope", "x!"}[s.pick(4):] {
		if i > 0 {
			text += s.list() + "," + s.list()
		}
		value, spelled := s.value()
		c.Params[name] = value
		text += s.cased(name) + s.bws() + "=" + s.bws() + spelled
	}
	return c, text
}

func (s *speller) bws() string { return s.of("", "", " ", "\t ") }

func (s *speller) cased(word string) string {
	if s.pick(2) == 1 {
		return strings.ToUpper(word)
	}
	return word
}

func (s *speller) value() (value, spelled string) {
	if s.pick(3) == 0 {
		token := s.of("t", "abc", "v1.0_*")
		return token, token
	}
	var b strings.Builder
	for range s.pick(12) {
		c := s.of("a", `"`, `\`, ",", "=", " ", "\t", "é", "/", "Bearer realm=")
		if c == `"` || c == `\` || len(c) == 1 && s.pick(3) == 0 {
			b.WriteByte('\\')
		}
		b.WriteString(c)
		value += c
	}
	return value, `"` + b.String() + `"`
}
