package weblink_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/weblink"
)

// none is where no link is found.
const none = "none"

func find(lines ...string) string {
	target, ok := weblink.Find(lines, "next")
	if !ok {
		return none
	}
	return target
}

func TestTheNextLinkIsFound(t *testing.T) {
	for name, tc := range map[string]struct {
		lines []string
		want  string
	}{
		"quoted":                    {[]string{`</x?n=1>; rel="next"`}, "/x?n=1"},
		"not quoted":                {[]string{`</x?n=1>; rel=next`}, "/x?n=1"},
		"not quoted, a blank after": {[]string{`</x>; rel=next ; title=x`}, "/x"},
		"without blanks":            {[]string{`</x>;rel=next`}, "/x"},
		"many blanks":               {[]string{"\t< /x >\t;  REL \t= \"Next\" ,"}, "/x"},
		"the second in a line":      {[]string{`</a>; rel="first", </x>; rel="next"`}, "/x"},
		"the first in a line":       {[]string{`</x>; rel="next", </a>; rel="first"`}, "/x"},
		"in another line":           {[]string{`</a>; rel="first"`, `</x>; rel="next"`}, "/x"},
		"the first of two":          {[]string{`</x>; rel=next, </y>; rel=next`}, "/x"},
		"several relations":         {[]string{`</x>; rel="last  next prev"`}, "/x"},
		"several, not quoted":       {[]string{`</x>; rel=last next`}, "/x"},
		"after other parameters":    {[]string{`</x>; title="a, b; rel=\"prev\""; n; ; rel="next"`}, "/x"},
		"before other parameters":   {[]string{`</x>; rel="next"; title="<y>; rel=next"`}, "/x"},
		"commas in the target":      {[]string{`</x?a=1,2;3>; rel="next"`}, "/x?a=1,2;3"},
		"empty elements":            {[]string{`, ,, </x>; rel="next"`}, "/x"},
		"an empty target":           {[]string{`<>; rel="next"`}, ""},
		"escapes":                   {[]string{`</x>; rel="n\ext"`}, "/x"},
		"after what is no link":     {[]string{`nonsense "a, <y>; rel=next", </x>; rel="next"`}, "/x"},
		"text after a quote":        {[]string{`</x>; rel="next" nonsense`}, "/x"},
		"a quote that does not end": {[]string{`</x>; rel="next`}, "/x"},

		"no line":                 {nil, none},
		"another relation":        {[]string{`</x>; rel="prev"`}, none},
		"part of a word":          {[]string{`</x>; rel="nextpage"`}, none},
		"the second rel of one":   {[]string{`</x>; rel="prev"; rel="next"`}, none},
		"rev":                     {[]string{`</x>; rev="next"`}, none},
		"of another resource":     {[]string{`</x>; rel="next"; anchor="/y"`}, none},
		"without a relation":      {[]string{`</x>`}, none},
		"in quotes of another":    {[]string{`</a>; title="</x>; rel=next, </x>; rel=next"`}, none},
		"in an open quote":        {[]string{`</a>; title=", </x>; rel="next`}, none},
		"a target without an end": {[]string{`</x; rel="next"`}, none},
		"no angle brackets":       {[]string{`/x; rel="next"`}, none},
		"text before":             {[]string{`a </x>; rel="next"`}, none},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, tc.want, find(tc.lines...)) })
	}
}

// FuzzFind feeds any header, its lines separated by line feeds.
func FuzzFind(f *testing.F) {
	for _, seed := range []string{
		`</x?n=1>; rel="next"`, `</a>; rel=first, </x>; rel="last next"`, "</a>; rel=first\n</x>;rel=next", `</x>; title="a, b; \"c"; rel="next"`,
		`</x>; rel="next"; anchor="/y", <z>; rel=next`, `, "a, <b>; rel=next", <c>; rel=next`, `<a;rel="next`, `<a>;rel="next`, `<a>;=;;x=;rel=next`, `<a>; rel="\`,
	} {
		f.Add(seed)
	}
	const other = `<other>; rel="first"; title="a, <b>; rel=next; \" c"`
	f.Fuzz(func(t *testing.T, header string) {
		lines := strings.Split(header, "\n")
		target := find(lines...)
		assert.Equal(t, target, find(append([]string{other}, lines...)...), "other lines change nothing")
		lines[0] = other + ", " + lines[0]
		assert.Equal(t, target, find(lines...), "nor do other links")
		if target == none {
			return
		}
		assert.Contains(t, header, target)
		assert.NotContains(t, target, ">")
		assert.Equal(t, target, find("<"+target+`>; rel="next"`))
	})
}
