package pullthroughtest

import (
	"encoding/json"
	"fmt"
	"iter"
	"log/slog"
	"reflect"
)

// maxErrors is how many errors of one tree are looked at.
const maxErrors = 1000

// prints returns the names and texts of all the ways in which a program may print v.
func prints(v any) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		if !printOne(v, fmt.Sprintf("%T", v), yield) {
			return
		}
		queue := errorsIn(v)
		for n := 0; len(queue) > 0 && n < maxErrors; n++ {
			err := queue[0]
			queue = append(queue[1:], errorsIn(err)...)
			if !printOne(err, fmt.Sprintf("%T in %T", err, v), yield) {
				return
			}
		}
	}
}

func printOne(v any, name string, yield func(string, string) bool) bool {
	for _, verb := range []string{"%v", "%+v", "%#v"} {
		if !yield(verb+" of "+name, fmt.Sprintf(verb, v)) {
			return false
		}
	}
	if text, err := json.Marshal(v); err == nil && !yield("the JSON of "+name, string(text)) {
		return false
	}
	return yield("the log value of "+name, slog.AnyValue(v).Resolve().String())
}

// errorsIn returns the errors that v wraps and, if v is a struct, those in its exported fields.
func errorsIn(v any) (errs []error) {
	switch v := v.(type) {
	case interface{ Unwrap() error }:
		errs = append(errs, v.Unwrap())
	case interface{ Unwrap() []error }:
		errs = append(errs, v.Unwrap()...)
	}
	value := reflect.ValueOf(v)
	if value.Kind() == reflect.Pointer {
		value = value.Elem()
	}
	if value.Kind() == reflect.Struct {
		for _, field := range value.Fields() {
			if field.CanInterface() {
				err, _ := field.Interface().(error)
				errs = append(errs, err)
			}
		}
	}
	return removeNil(errs)
}

func removeNil(errs []error) (rest []error) {
	for _, err := range errs {
		if err != nil {
			rest = append(rest, err)
		}
	}
	return rest
}
