package pullthroughtest

import "strings"

// matchPattern reports whether s matches pattern. In a pattern * stands for any run of characters, slashes and spaces
// included, and any other character stands for itself. An empty pattern matches everything.
func matchPattern(pattern, s string) bool {
	if pattern == "" {
		return true
	}
	first, rest, starred := strings.Cut(pattern, "*")
	if !starred {
		return s == pattern
	}
	s, ok := strings.CutPrefix(s, first)
	for ok {
		part, next, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(s, part)
		}
		// The leftmost match of a middle part leaves the most for the parts behind it.
		_, s, ok = strings.Cut(s, part)
		rest = next
	}
	return false
}
