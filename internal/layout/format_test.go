package layout_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/layout"
)

func TestFormats(t *testing.T) {
	for content, ok := range map[string]bool{
		layout.FormatNote: true, "1": true, "1\n": true, "1.1\nmore": true, "1.x": true,
		"2": false, "2.0": false, "0": false, "-1": false, "": false, "one": false, " 1": false, "1 \n": false, "99999999999999999999": false,
	} {
		said, known := layout.CheckFormat([]byte(content))
		assert.Equal(t, ok, known, content)
		assert.True(t, strings.HasPrefix(content, said))
	}
	assert.Less(t, len(layout.FormatNote), layout.MaxFormat)
	assert.Contains(t, layout.FormatMessage("2"), `pullthrough/format is "2"`)
}
