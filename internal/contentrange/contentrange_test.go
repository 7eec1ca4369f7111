package contentrange_test

import (
	"fmt"
	"math/big"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/contentrange"
)

func TestParse(t *testing.T) {
	first, last, total, ok := contentrange.Parse("bytes 5-9/10")
	assert.True(t, ok)
	assert.Equal(t, [3]int64{5, 9, 10}, [3]int64{first, last, total})
	for _, v := range []string{
		"", "bytes", "bytes 5-9", "bytes 5-9/*", "bytes */10", "bytes 9-5/10", "bytes 5-10/10", "items 5-9/10",
		"bytes +5-9/10", "bytes 5--9/10", "bytes 5-9/10 ", "bytes 5-99999999999999999999/100000000000000000000",
	} {
		_, _, _, ok := contentrange.Parse(v)
		assert.False(t, ok, v)
	}
}

// FuzzContentRange compares with a reading by regular expression and big numbers.
func FuzzContentRange(f *testing.F) {
	for _, seed := range []string{"bytes 0-0/1", "bytes 5-9/10", "bytes 9-5/10", "bytes */10", "bytes 0-9/*", "bytes 0-9223372036854775808/9223372036854775809", "bytes +0-1/2"} {
		f.Add(seed)
	}
	form := regexp.MustCompile(`^bytes ([0-9]+)-([0-9]+)/([0-9]+)$`)
	f.Fuzz(func(t *testing.T, v string) {
		first, last, total, ok := contentrange.Parse(v)
		m := form.FindStringSubmatch(v)
		if m == nil {
			assert.False(t, ok)
			return
		}
		var n [3]*big.Int
		fits := true
		for i := range n {
			n[i], _ = new(big.Int).SetString(m[i+1], 10)
			fits = fits && n[i].IsInt64()
		}
		assert.Equal(t, fits && n[0].Cmp(n[1]) <= 0 && n[1].Cmp(n[2]) < 0, ok)
		if ok {
			assert.Equal(t, []string{n[0].String(), n[1].String(), n[2].String()}, []string{fmt.Sprint(first), fmt.Sprint(last), fmt.Sprint(total)})
		}
	})
}
