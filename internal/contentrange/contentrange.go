// Package contentrange reads Content-Range headers (RFC 9110, section 14.4).
package contentrange

import (
	"strconv"
	"strings"
)

// Parse reads "bytes FIRST-LAST/TOTAL". ok is false for anything else: another
// unit, an unknown total, or numbers that contradict each other.
func Parse(v string) (first, last, total int64, ok bool) {
	spec, ok := strings.CutPrefix(v, "bytes ")
	if !ok {
		return 0, 0, 0, false
	}
	span, size, _ := strings.Cut(spec, "/")
	from, to, _ := strings.Cut(span, "-")
	first, ok1 := Digits(from)
	last, ok2 := Digits(to)
	total, ok3 := Digits(size)
	ok = ok1 && ok2 && ok3 && first <= last && last < total
	return first, last, total, ok
}

// Digits parses a number that consists of digits only. strconv.ParseInt accepts a sign,
// which HTTP headers do not allow.
func Digits(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}
