package contentrange_test

import (
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
