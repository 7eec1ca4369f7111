package history_test

import "time"

// timeline is the values that something has had, with their times. A change takes a
// while, in which both values count.
type timeline[T any] struct{ spans []span[T] }

// span is a value and its time. A zero to means that it still holds.
type span[T any] struct {
	value    T
	from, to time.Time
}

// set notes a change that was made between before and after.
func (t *timeline[T]) set(value T, before, after time.Time) {
	if n := len(t.spans); n > 0 {
		t.spans[n-1].to = after
	}
	t.spans = append(t.spans, span[T]{value: value, from: before})
}

// now is the last value. Where there is none it is the zero value.
func (t *timeline[T]) now() (value T) {
	if n := len(t.spans); n > 0 {
		return t.spans[n-1].value
	}
	return value
}

// during are the spans that touch the time from lo to hi.
func (t *timeline[T]) during(lo, hi time.Time) (spans []span[T]) {
	if t == nil {
		return nil
	}
	for _, s := range t.spans {
		if !s.from.After(hi) && (s.to.IsZero() || !s.to.Before(lo)) {
			spans = append(spans, s)
		}
	}
	return spans
}
