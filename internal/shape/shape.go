// Package shape has the constraints of Amazon ECR's API model, and ECR's messages for
// values that violate them.
package shape

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// String is a string shape. A zero field sets no constraint.
type String struct {
	Min, Max int // characters
	Pattern  *Pattern
	Enum     []string
}

// Check returns an *Error if value violates the shape. at is the member's name.
func (s String) Check(at, value string) error {
	n := utf8.RuneCountInString(value)
	switch {
	case n < s.Min:
		return &Error{at, fmt.Sprintf("Member must have length greater than or equal to %d", s.Min)}
	case s.Max > 0 && n > s.Max:
		return &Error{at, fmt.Sprintf("Member must have length less than or equal to %d", s.Max)}
	case s.Pattern != nil && !s.Pattern.whole.MatchString(value):
		return &Error{at, "Member must satisfy regular expression pattern: " + s.Pattern.text}
	case s.Enum != nil && !slices.Contains(s.Enum, value):
		return &Error{at, "Member must satisfy enum value set: [" + strings.Join(s.Enum, ", ") + "]"}
	}
	return nil
}

// Need is Check for a required member. nil means that the member was not sent.
func (s String) Need(at string, value *string) error {
	if value == nil {
		return &Error{at, "Member must not be null"}
	}
	return s.Check(at, *value)
}

// May is Check for an optional member. nil means that the member was not sent.
func (s String) May(at string, value *string) error {
	if value == nil {
		return nil
	}
	return s.Check(at, *value)
}

// Each is Check for every value of a list that must have minimum to maximum values. A nil
// list means that the member was not sent. A maximum of 0 means no maximum.
func (s String) Each(at string, values []string, minimum, maximum int) error {
	if values == nil {
		return nil
	}
	if err := Length(at, len(values), minimum, maximum); err != nil {
		return err
	}
	for _, value := range values {
		if err := s.Check(at, value); err != nil {
			return &Error{at, "Member must satisfy constraint: [" + err.(*Error).Constraint + "]"}
		}
	}
	return nil
}

// Length checks the number of a list's items. A maximum of 0 means no maximum.
func Length(at string, n, minimum, maximum int) error {
	switch {
	case n < minimum:
		return &Error{at, fmt.Sprintf("Member must have length greater than or equal to %d", minimum)}
	case maximum > 0 && n > maximum:
		return &Error{at, fmt.Sprintf("Member must have length less than or equal to %d", maximum)}
	}
	return nil
}

// Number checks an optional number. nil means that the member was not sent.
func Number(at string, n *int64, minimum, maximum int64) error {
	switch {
	case n == nil:
		return nil
	case *n < minimum:
		return &Error{at, fmt.Sprintf("Member must have value greater than or equal to %d", minimum)}
	case *n > maximum:
		return &Error{at, fmt.Sprintf("Member must have value less than or equal to %d", maximum)}
	}
	return nil
}

// Error is a violated constraint.
type Error struct {
	At         string // the member's name
	Constraint string
}

// Error returns Amazon ECR's message. The frame and the constraints of length, value,
// pattern and enum are known from ECR's answers.
func (e *Error) Error() string {
	return "Invalid parameter at '" + e.At + "' failed to satisfy constraint: '" + e.Constraint + "'"
}

// Pattern is a regular expression of the model, which a whole value must match.
type Pattern struct {
	text  string // as in the model
	whole *regexp.Regexp
}

func pattern(text string) *Pattern {
	return &Pattern{text, regexp.MustCompile(`\A(?:` + text + `)\z`)}
}
