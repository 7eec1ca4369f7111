package challenge_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/ecr-pullthrough/pullthrough/internal/challenge"
)

type params = map[string]string

// Short constructors, since every expectation is a list of these.
func bare(scheme string) challenge.Challenge { return challenge.Challenge{Scheme: scheme} }
func with(scheme string, p params) challenge.Challenge {
	return challenge.Challenge{Scheme: scheme, Params: p}
}
func token68(scheme, t string) challenge.Challenge {
	return challenge.Challenge{Scheme: scheme, Token68: t}
}

var (
	basic  = with("basic", params{"realm": "r"})
	bearer = with("bearer", params{"realm": "https://a/t", "service": "s"})
)

// one and two are the spellings that most cases put around their subject.
const (
	one = `Basic realm="r"`
	two = `Bearer realm="https://a/t",service="s"`
)

type cases map[string]struct {
	lines []string
	want  []challenge.Challenge
}

func (cs cases) run(t *testing.T) {
	t.Helper()
	for name, c := range cs {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, c.want, challenge.Parse(c.lines))
		})
	}
}

func lines(s ...string) []string                             { return s }
func list(c ...challenge.Challenge) []challenge.Challenge    { return c }
func join(c []challenge.Challenge, sep string) (line string) { return strings.Join(canonical(c), sep) }

func canonical(cs []challenge.Challenge) (out []string) {
	for _, c := range cs {
		out = append(out, c.String())
	}
	return out
}

// The forms on which parsers in the field differ.
func TestFormsOnWhichParsersDiffer(t *testing.T) {
	realm := func(v string) []challenge.Challenge { return list(with("bearer", params{"realm": v})) }
	cases{
		"several lines":                 {lines(one, two), list(basic, bearer)},
		"one line, Bearer then Basic":   {lines(two + ", " + one), list(bearer, basic)},
		"one line, Basic then Bearer":   {lines(one + ", " + two), list(basic, bearer)},
		"one line, Digest then Bearer":  {lines(`Digest realm="d", qop="auth,auth-int", nonce=abc, ` + two), list(with("digest", params{"realm": "d", "qop": "auth,auth-int", "nonce": "abc"}), bearer)},
		"upper-case parameter names":    {lines(`BEARER REALM="https://a/t",Service="s"`), list(bearer)},
		"comma inside quotes":           {lines(`Bearer realm="a,b",scope="repository:x:pull,push"`), list(with("bearer", params{"realm": "a,b", "scope": "repository:x:pull,push"}))},
		"quoted-pairs":                  {lines(`Bearer realm="a\"b\\c"`), realm(`a"b\c`)},
		"quoted-pair of a plain letter": {lines(`Bearer realm="\l\,\=\n"`), realm(`l,=n`)},
		"space before a comma":          {lines(`Bearer realm="https://a/t" ,service="s"`), list(bearer)},
		"empty list elements":           {lines(`, Bearer realm="https://a/t",,service="s"`), list(bearer)},
		"unquoted URL":                  {lines(`Bearer realm=https://a/t,service="s"`), nil},
		"unterminated quote":            {lines(`Bearer realm="https://a/t,service=`), nil},
	}.run(t)
}

func TestChallengesOfRegistries(t *testing.T) {
	cases{
		"Docker Hub": {
			lines(`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull"`),
			list(with("bearer", params{"realm": "https://auth.docker.io/token", "service": "registry.docker.io", "scope": "repository:library/nginx:pull"})),
		},
		"GitHub, with an error": {
			lines(`Bearer realm="https://ghcr.io/token",service="ghcr.io",scope="repository:user/image:pull",error="invalid_token"`),
			list(with("bearer", params{"realm": "https://ghcr.io/token", "service": "ghcr.io", "scope": "repository:user/image:pull", "error": "invalid_token"})),
		},
		"ECR": {
			lines(`Basic realm="https://1.dkr.ecr.us-east-1.amazonaws.com/",service="ecr.amazonaws.com"`),
			list(with("basic", params{"realm": "https://1.dkr.ecr.us-east-1.amazonaws.com/", "service": "ecr.amazonaws.com"})),
		},
		"a proxy in front": {
			lines("Negotiate", "NTLM", `Basic realm="proxy", charset="UTF-8"`),
			list(bare("negotiate"), bare("ntlm"), with("basic", params{"realm": "proxy", "charset": "UTF-8"})),
		},
	}.run(t)
}

func TestElementsOpenAChallengeOrBelongToTheOpenOne(t *testing.T) {
	cases{
		"no lines":                      {nil, nil},
		"empty lines":                   {lines("", " ", "\t", ",", ", ,\t,"), nil},
		"bare scheme":                   {lines("Negotiate"), list(bare("negotiate"))},
		"bare schemes in a row":         {lines("Negotiate, NTLM ,Foo"), list(bare("negotiate"), bare("ntlm"), bare("foo"))},
		"bare scheme before parameters": {lines("Negotiate, " + two), list(bare("negotiate"), bearer)},
		"bare scheme after parameters":  {lines(two + ", Negotiate"), list(bearer, bare("negotiate"))},
		"comma right after the scheme":  {lines(`Bearer , realm="https://a/t",service="s"`), list(bearer)},
		"unknown scheme":                {lines(`HOBA max-age="180", challenge="16:MTEy", ` + two), list(with("hoba", params{"max-age": "180", "challenge": "16:MTEy"}), bearer)},
		"the same scheme twice":         {lines(one + ", " + two + ", " + one), list(basic, bearer, basic)},
		"scheme named like a parameter": {lines(`realm realm="r"`), list(with("realm", params{"realm": "r"}))},
		"parameter named like a scheme": {lines(`Foo basic="r", bearer = x`), list(with("foo", params{"basic": "r", "bearer": "x"}))},
		"space before the equals sign":  {lines(`Foo a=b, Bar ="r"`, `Bar ="r"`), list(with("foo", params{"a": "b", "bar": "r"}))},
		"parameter without a challenge": {lines(`realm="r", ` + two), list(bearer)},
		"a line starts afresh":          {lines(one, `charset="UTF-8"`, two), list(basic, bearer)},
		"challenge text inside quotes":  {lines(`Foo x=", Bearer realm=\"https://evil/\", "`), list(with("foo", params{"x": `, Bearer realm="https://evil/", `}))},
	}.run(t)
}

func TestToken68(t *testing.T) {
	cases{
		"alone":                          {lines("Negotiate a87421000492aa874209af8bc028"), list(token68("negotiate", "a87421000492aa874209af8bc028"))},
		"every character":                {lines("Foo aZ09-._~+/"), list(token68("foo", "aZ09-._~+/"))},
		"padding":                        {lines("Foo abc=", "Foo abc==", "Foo abc====  "), list(token68("foo", "abc="), token68("foo", "abc=="), token68("foo", "abc===="))},
		"several spaces":                 {lines("Foo   abc="), list(token68("foo", "abc="))},
		"does not swallow the next":      {lines("Negotiate abc==, " + two), list(token68("negotiate", "abc=="), bearer)},
		"without a space after it":       {lines("Negotiate abc==," + two), list(token68("negotiate", "abc=="), bearer)},
		"between others":                 {lines(one + ", NTLM TlRM=, " + two), list(basic, token68("ntlm", "TlRM="), bearer)},
		"after Bearer and Basic":         {lines("Bearer abc, Basic def="), list(token68("bearer", "abc"), token68("basic", "def="))},
		"named like a parameter":         {lines("Foo realm=, " + one), list(token68("foo", "realm="), basic)},
		"two of them":                    {lines("Foo abc def, " + one), list(basic)},
		"padding only":                   {lines("Foo ==, " + one), list(basic)},
		"padding inside":                 {lines("Foo a==b, " + one), list(basic)},
		"padding after a space":          {lines("Foo abc =, " + one), list(basic)},
		"character outside":              {lines("Foo ab:c, " + one), list(basic)},
		"a token, but no token68":        {lines("Foo a*c, " + one), list(basic)},
		"followed by parameters":         {lines(`Foo abc, realm="x", ` + one), list(basic)},
		"slash and parameter":            {lines(`Foo a/b="x", ` + one), list(basic)},
		"one character, then a comma":    {lines("Foo a,b"), list(token68("foo", "a"), bare("b"))},
		"equals sign makes a parameter":  {lines("Foo a=b"), list(with("foo", params{"a": "b"}))},
		"quote makes a parameter":        {lines(`Foo a=""`), list(with("foo", params{"a": ""}))},
		"space around makes a parameter": {lines(`Foo a = "b"`, `Foo a= b`), list(with("foo", params{"a": "b"}), with("foo", params{"a": "b"}))},
	}.run(t)
}

func TestWhitespace(t *testing.T) {
	cases{
		"around everything":              {lines("\t ,  Bearer   realm \t=\t \"https://a/t\" \t,\t service = s\t , "), list(bearer)},
		"tab does not separate a scheme": {lines("Bearer\trealm=\"x\", " + one), list(basic)},
		"tab after a bare scheme":        {lines("Negotiate\t,\t" + two), list(bare("negotiate"), bearer)},
		"quote does not either":          {lines(`Bearer"x", ` + one), list(basic)},
	}.run(t)
}

func TestValues(t *testing.T) {
	all := "!#$%&'*+-.^_`|~azAZ09"
	cases{
		"token":                   {lines("Foo a=" + all), list(with("foo", params{"a": all}))},
		"every name character":    {lines("Foo " + all + "=x"), list(with("foo", params{strings.ToLower(all): "x"}))},
		"empty":                   {lines(`Foo a="",b="x"`), list(with("foo", params{"a": "", "b": "x"}))},
		"tab and UTF-8 in quotes": {lines("Foo a=\"\té\""), list(with("foo", params{"a": "\té"}))},
		"escaped quote at an end": {lines(`Foo a="\"x\""`), list(with("foo", params{"a": `"x"`}))},
		"empty without quotes":    {lines(`Foo a="x",b=, ` + one), list(basic)},
	}.run(t)
}

func TestMalformedChallengeHidesNoOther(t *testing.T) {
	for name, bad := range map[string]string{
		"parameter twice":               `Foo realm="a",realm="b"`,
		"twice with the same value":     `Foo realm="a",realm="a"`,
		"twice in different case":       `Foo realm="a",x=y,REALM="b"`,
		"unquoted URL first":            `Foo realm=https://a/t,service="s"`,
		"unquoted URL last":             `Foo service="s",realm=https://a/t`,
		"unquoted URL with a query":     `Foo realm=https://a/t?x=y`,
		"unquoted base64":               `Foo a=b=`,
		"no value":                      `Foo a="x",b=`,
		"no name, second":               `Foo a="x",="y"`,
		"name that is no token":         `Foo re@lm="x"`,
		"name that is no token, second": `Foo a="x",re@lm="y"`,
		"missing comma":                 `Foo a="x" b="y"`,
		"text after a quoted value":     `Foo a="x"y`,
		"two quoted values":             `Foo a="x""y, Bearer realm=z"`,
		"quote inside a token":          `Foo a=x"y, z"`,
		"scheme that is no token":       `F@o realm="x"`,
		"scheme that is no token, bare": `F@o`,
		"scheme in quotes":              `"Foo" realm="x"`,
		"only a quoted string":          `"x"`,
		"control character":             "Foo realm=\"a\x00b\"",
		"escaped control character":     "Foo realm=\"a\\\nb\"",
		"delete character":              "Foo realm=\"a\x7fb\"",
		"control character in a token":  "Foo realm=a\x01",
		"non-ASCII token":               "Foo realm=é",
		"non-ASCII scheme":              "Föo",
		"Kelvin sign in a name":         "Foo to\u212aen=x", // its lower case is an ASCII k
		"Kelvin sign in a scheme":       "to\u212aen x=y",
	} {
		t.Run(name, func(t *testing.T) {
			assert.Empty(t, challenge.Parse(lines(bad)))
			assert.Equal(t, list(bearer, basic), challenge.Parse(lines(two, bad, one)), "own lines")
			assert.Equal(t, list(basic), challenge.Parse(lines(bad+", "+one)), "in front")
			assert.Equal(t, list(bare("negotiate"), basic), challenge.Parse(lines("Negotiate, "+bad+" , "+one)), "in the middle")
			assert.Equal(t, list(bearer), challenge.Parse(lines(two+","+bad)), "behind")
		})
	}
}

func TestUnterminatedQuoteTakesTheRestOfItsLine(t *testing.T) {
	cases{
		"what came before stays":  {lines(one + `, Foo realm="x, ` + two), list(basic)},
		"the next line is read":   {lines(`Foo realm="x`, two), list(bearer)},
		"escape at the end":       {lines(`Foo realm="x\`, two), list(bearer)},
		"escaped closing quote":   {lines(`Foo realm="x\"`, two), list(bearer)},
		"opening quote alone":     {lines(`Foo realm="`, two), list(bearer)},
		"quote between elements":  {lines(one + `, ", ` + two), list(basic)},
		"quote in malformed text": {lines(one + `, Foo a=b c " , ` + two), list(basic)},
		"the next line's params":  {lines(`Foo realm="x`, `service="s", `+one), list(basic)},
	}.run(t)
}

func TestAtMost16Challenges(t *testing.T) {
	many := lines()
	for i := range 1_000 {
		many = append(many, fmt.Sprintf("Foo a=%d", i))
	}
	got := challenge.Parse(many)
	require.Len(t, got, 16)
	assert.Equal(t, with("foo", params{"a": "15"}), got[15])
	assert.Equal(t, got, challenge.Parse(lines(strings.Join(many[:500], ", "))), "the same on one line")
}

func TestMalformedChallengesDoNotCount(t *testing.T) {
	bad := strings.Repeat(`Foo a=b=c, `, 100)
	assert.Equal(t, list(bearer), challenge.Parse(lines(bad+two)))
	assert.Equal(t, list(bearer), challenge.Parse(append(strings.Split(bad, ","), two)))
}

func TestChallengeWithMoreThan32ParametersIsMalformed(t *testing.T) {
	var ps []string
	for i := range 33 {
		ps = append(ps, fmt.Sprintf("p%d=v", i))
	}
	got := challenge.Parse(lines("Foo " + strings.Join(ps[:32], ",") + ", " + one))
	require.Len(t, got, 2)
	assert.Len(t, got[0].Params, 32)
	assert.Equal(t, list(basic), challenge.Parse(lines("Foo "+strings.Join(ps, ",")+", "+one)))
}

func TestNothingIsReadBeyond8KiB(t *testing.T) {
	const limit = 8 << 10
	fill := func(n int) string { return `Foo a="` + strings.Repeat("x", n-len(`Foo a=""`)) + `"` }
	assert.Len(t, challenge.Parse(lines(fill(limit))), 1, "to the last byte")
	assert.Empty(t, challenge.Parse(lines(fill(limit+1))))
	assert.Equal(t, list(basic), challenge.Parse(lines(one, fill(limit))), "the line that does not fit")
	assert.Equal(t, list(basic), challenge.Parse(lines(one+", "+fill(limit))), "the challenge that does not fit")
	assert.Len(t, challenge.Parse(lines(fill(limit), one)), 1, "lines behind it")
	assert.Len(t, challenge.Parse(lines(fill(limit-len(one)), one, one)), 2)
	assert.Empty(t, challenge.Parse(lines(strings.Repeat(",", limit)+one)))
}

// A cut must not turn a restricted challenge into an unrestricted one, nor a
// long realm into a short one.
func TestChallengeCutByTheLimitIsLeftOut(t *testing.T) {
	const limit = 8 << 10
	line := strings.Repeat(" ", limit-len(two)) + two
	require.Len(t, challenge.Parse(lines(line)), 1)
	for n := 1; n < 45; n++ {
		assert.Empty(t, challenge.Parse(lines(strings.Repeat(" ", n)+line)), "cut by %d", n)
		assert.Empty(t, challenge.Parse(lines(line+strings.Repeat(" ", n))), "followed by %d", n)
	}
}

func TestCanonicalForm(t *testing.T) {
	for want, c := range map[string]challenge.Challenge{
		`negotiate`:                      bare("negotiate"),
		`negotiate abc==`:                token68("negotiate", "abc=="),
		`basic realm=""`:                 with("basic", params{"realm": ""}),
		`bearer a="1", b="2", realm="3"`: with("bearer", params{"realm": "3", "b": "2", "a": "1"}),
		`basic realm="a\"b\\c, d=e"`:     with("basic", params{"realm": `a"b\c, d=e`}),
	} {
		assert.Equal(t, want, c.String())
		assert.Equal(t, list(c), challenge.Parse(lines(want)))
	}
}

func TestJoinedLinesGiveTheSameList(t *testing.T) {
	well := lines("Negotiate", one, "NTLM abc==", two, "Foo", `Digest qop="auth,auth-int" , nonce = x`, "Bar a")
	want := challenge.Parse(well)
	require.Len(t, want, len(well))
	assert.Equal(t, want, challenge.Parse(lines(strings.Join(well, ", "))))
	assert.Equal(t, want, challenge.Parse(lines(strings.Join(well, ","))))
	assert.Equal(t, want, challenge.Parse(lines(join(want, ", "))), "canonical")
}

func BenchmarkParse(b *testing.B) {
	for name, ls := range map[string][]string{
		"usual":   lines(two),
		"escapes": lines(`Foo a="` + strings.Repeat(`\"`, 4_000)),
		"equals":  lines("Foo " + strings.Repeat("a=", 4_000)),
		"commas":  lines(strings.Repeat("a,", 100_000)),
		"lines":   strings.Split(strings.Repeat("a,", 100_000), ","),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				challenge.Parse(ls)
			}
		})
	}
}
