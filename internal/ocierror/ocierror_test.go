package ocierror_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/ecr-pullthrough/pullthrough/internal/ocierror"
)

func TestCode(t *testing.T) {
	for body, want := range map[string]string{
		`{"errors":[{"code":"MANIFEST_UNKNOWN","message":"x"},{"code":"DENIED"}]}`: "MANIFEST_UNKNOWN",
		`{"errors":[]}`:                                           "",
		`{"errors":[{"code":"not a code"}]}`:                      "",
		`{"errors":[{"code":"` + strings.Repeat("A", 65) + `"}]}`: "",
		`<html>`: "",
		``:       "",
	} {
		assert.Equal(t, want, ocierror.Code([]byte(body)), body)
	}
}

func TestExcerpt(t *testing.T) {
	for _, tc := range []struct {
		text  string
		limit int
		want  string
	}{
		{"a  plain\n\ttext", 100, "a plain text"},
		{"cut where it is too long", 10, "cut where"},
		{"see https://x.example/y?token=z", 100, "see https://x.example/y"},
		{"word " + strings.Repeat("x", 41), 100, "word ..."},
		{"not\x00print\x1bable\u00e9", 100, "not print able"},
		{strings.Repeat("ab ", 1000), 1000, strings.TrimSpace(strings.Repeat("ab ", 1000)[:ocierror.MaxExcerpt])},
		{"", 10, ""},
	} {
		assert.Equal(t, tc.want, ocierror.Excerpt([]byte(tc.text), tc.limit), tc.text)
	}
}
